"""The schema: all settings, and the step from composed YAML to frozen settings objects.

Each component's settings are a frozen dataclass next to it. Here they are gathered into `RunSettings` and stored
under `schema/...`, from which the YAML files take them, so that unknown keys and wrong types fail at composition.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from fsae.autoencoders.choices import CHOICES as ARCHITECTURES
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.settings import AutoencoderSettings
from fsae.configuration.conf_folder import choices_of
from fsae.configuration.values import lenient_node
from fsae.evaluation.choices import CHOICES as EVALUATIONS
from fsae.evaluation.evaluation import Evaluation
from fsae.evaluation.search_objective import SearchObjective
from fsae.evaluation.suite_settings import SuiteSettings
from fsae.language_models.settings import ModelSettings, OtherModelSettings
from fsae.language_models.sites import Site
from fsae.losses.choices import CHOICES as LOSSES
from fsae.losses.term import LossTerm
from fsae.plugins import check_groups, with_outside
from fsae.ranges import SEED, Ranged, check_number, is_nullable, range_of
from fsae.sources.choices import CHOICES as SOURCES
from fsae.sources.documents import DatasetSettings
from fsae.sources.layout import LayoutSettings, Sites
from fsae.sources.source import SourceSettings
from fsae.tracking.tracker import TrackingSettings
from fsae.training.choices import CHOICES as TRAINERS
from fsae.training.population import PopulationSettings
from fsae.training.settings import TrainerSettings


class Task(Enum):
    """The task of a run.

    Attributes:
        train: trains an autoencoder and evaluates it.
        eval: evaluates the autoencoder at `sae.path`, in a folder of its own.
        reevaluate: evaluates a finished run again, in its own folder; only `fsae.evaluate` sets it.
        harvest: fills the activation store that the others read.
    """

    train = "train"
    eval = "eval"
    reevaluate = "reevaluate"
    harvest = "harvest"


@dataclass(frozen=True, kw_only=True)
class PathsSettings:
    """Absolute folders.

    Attributes:
        outputs: everything is written below this folder.
        runs: the folders of single runs.
        sweeps: the folders of sweeps.
        activations: stored activations. This folder alone may lie outside `outputs`.
    """

    outputs: str
    runs: str
    sweeps: str
    activations: str


@dataclass(frozen=True, kw_only=True)
class SaeSettings:
    """An existing autoencoder.

    Attributes:
        path: a folder in SAELens' format.
    """

    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunSettings(Ranged):
    """All settings of one run.

    Attributes:
        task: what to do.
        name: the run's name, in its folder's name and in MLflow; null for a name made from the settings.
        seed: seed of the weights, the data's order and every other draw.
        model, site, dataset: origin of a language model's activations; None for another source.
        layout: which sites the dictionaries read and write.
        suite: sizes that the evaluations share.
        eval: the evaluations, by name.
    """

    task: Task
    name: str | None
    seed: int = field(metadata=SEED)
    paths: PathsSettings
    model: ModelSettings | None
    site: Site | None
    layout: LayoutSettings = field(default_factory=LayoutSettings)
    dataset: DatasetSettings | None
    source: SourceSettings
    arch: AutoencoderSettings
    loss: dict[str, LossTerm]
    population: PopulationSettings
    trainer: TrainerSettings
    suite: SuiteSettings
    eval: dict[str, Evaluation]
    search: SearchObjective
    tracking: TrackingSettings
    sae: SaeSettings

    def __post_init__(self):
        super().__post_init__()
        if self.name is not None:
            _check_name(self.name)

    def place(self) -> tuple[ModelSettings, Site, DatasetSettings]:
        """Return the model, the site and the data set of the activations; only for a run on activations."""
        assert self.model is not None, "the source has no language model"
        assert self.site is not None
        assert self.dataset is not None
        return self.model, self.site, self.dataset

    @property
    def sites(self) -> Sites | None:
        """The sites that the dictionaries read and write; None without a language model."""
        return None if self.site is None else self.layout.sites(self.site)

    def existing(self) -> Path:
        """Return the folder of the autoencoder that task=eval evaluates."""
        assert self.sae.path is not None
        return Path(self.sae.path).expanduser()

    def search_value(self, results: Mapping[str, Any]) -> float | None:
        """Return what a sweeper may minimise; None for a task that nothing is searched by."""
        return self.search.value(results) if self.task in (Task.train, Task.eval) else None

    def matryoshka_widths(self, d_sae: int) -> list[int] | None:
        """Return the widths of the prefixes of the latents that training reconstructs from; None if there are none."""
        widths = [term.prefix_widths(d_sae) for term in self.loss.values() if term.weight > 0]
        return next(filter(None, widths), None)

    def check_ends(self, ends: Ends) -> None:
        """Raise ValueError if the architecture, the trainer or a loss term is impossible between these ends."""
        self.arch.check_ends(ends)
        self.trainer.check_ends(self.arch, ends)
        d_sae = self.arch.width(ends.input.width)
        for name, term in self.loss.items():
            term.check_width(name, d_sae)
            if ends.blocks and term.reads_prefixes:
                raise ValueError(
                    f"loss.{name} reads the first latents alone, and these are latents of the first part; "
                    "choose another loss, or a layout whose latents read all parts"
                )


def _check_name(name: str) -> None:
    """Raise ValueError if the run's folder cannot have this name."""
    if not name.strip(". "):
        raise ValueError(f"name is {name!r}; it has to have a letter or a digit, or be null")
    if "/" in name or "\\" in name or not name.isprintable():
        raise ValueError(f"name is {name!r}; it names one folder, so it may have no slash and no line break")
    # A folder's name has at most 255 bytes, and a run's folder may end in a number.
    if len(name.encode()) > 200:
        raise ValueError(f"name is {len(name.encode())} bytes long; a folder's name may have 200")


# The groups that choose between several components: the table of each, and the base class of its settings.
TABLES: dict[str, tuple[Mapping[str, type], type]] = {
    "source": (SOURCES, SourceSettings),
    "arch": (ARCHITECTURES, AutoencoderSettings),
    "loss": (LOSSES, LossTerm),
    "trainer": (TRAINERS, TrainerSettings),
    "eval": (EVALUATIONS, Evaluation),
}
# The groups with one schema each, whose name is the group's.
SINGLE: dict[str, type] = {
    "paths": PathsSettings,
    "model": ModelSettings,
    "site": Site,
    "layout": LayoutSettings,
    "dataset": DatasetSettings,
    "population": PopulationSettings,
    "suite": SuiteSettings,
    "search": SearchObjective,
    "tracking": TrackingSettings,
    "sae": SaeSettings,
}


@cache
def schemas() -> dict[str, type]:
    """Return all schemas by group and name, such as "arch/gated", including those of other distributions.

    Raises:
        ValueError: a distribution's entry point is broken, names no group, or has the name of another choice.
    """
    check_groups(TABLES)
    single = {f"{group}/{group}": schema for group, schema in SINGLE.items()}
    of_tables = {
        f"{group}/{name}": schema
        for group, (own, base) in TABLES.items()
        for name, schema in with_outside(group, own, base).items()
    }
    return single | of_tables


NO_EVALUATION = "eval names no evaluation; list one or more, as in eval=[vectors,splice]"
# Keys that are no settings, or no longer, and what to set instead.
INSTEAD = {
    "loss.fisher": "the Fisher penalty is loss.penalty, and theta is loss.penalty.weight; penalty=none trains without",
    "trainer.tokens": "it is trainer.samples",
    "trainer.centres": "it is trainer.centre_fraction",
    "objective": "it is search, as in search.metric=eval/fvu",
    "arch.tied": "a tied encoder is a choice of arch.encoder_init: set arch.encoder_init=tied, or leave it out",
    "model.name": "a model's name follows from what it is: choose another model, as in model=gpt2 or model=custom "
    "model.path=FOLDER_OR_HUB_NAME; name=... names the run",
    "dataset.name": "a data set's name follows from what it is: choose another one, as in dataset=tinystories or "
    "dataset=text_files dataset.path=FOLDER; name=... names the run",
    "eval.tokens": "each evaluation has its own size, as in eval.vectors.samples=32768; suite.samples sets all of them",
    "eval.batch_size": "it is eval.vectors.batch_size now; suite.batch_size sets the batch size of all evaluations",
    "eval.splice_tokens": "it is eval.splice.tokens now; leave splice out of the list for none, as in eval=[vectors]",
    "eval.geometry": "geometry is an evaluation to choose, as in eval=[vectors,splice,geometry]",
    "source.worker": "jobs that harvest together differ by their names, as in name=harvest-1,harvest-2",
}
# Choices of an earlier version, and what to choose instead. The refusal itself finds a choice that only moved into a
# folder.
CHOSEN_INSTEAD = {
    "eval=quick": "how much is evaluated is suite=quick now; eval lists what is measured, as in eval=[vectors,splice]",
    "eval=default": "the default is what runs without any eval=...; suite=default has its sizes",
    "experiment=fisher_grid": "it is experiment=fisher/grid_as_released",
    "loss=abs_topk": "it is loss=topk, which arch=abs_topk brings",
    "loss=base": "it is loss=squared_error, and the penalty is a group of its own, as in penalty=fisher",
    "loss=batch_topk": "it is loss=topk, which arch=batch_topk brings",
    "loss=splines_topk": "it is loss=topk, which arch=splines/topk brings",
    "model=gemma3_270m": "it is model=gemma3_270m_q4_k_m",
    "model=smollm2_135m": "it is model=smollm2_135m_instruct_q4_1",
    "population=mfr": "it is population=mfr/base",
}


def register_schemas() -> None:
    """Store every schema under the path by which YAML files refer to it.

    Raises:
        ValueError: see `schemas`.
    """
    store = ConfigStore.instance()
    for path, schema in schemas().items():
        group, name = path.split("/")
        store.store(name=name, node=lenient_node(schema), group=f"schema/{group}")
    # At the root the groups are untyped: OmegaConf would make a node of the declared base class before the chosen
    # schema arrives. `settings_of` checks their types afterwards.
    root = [
        (f.name, f.type, MISSING)
        if f.name in ("task", "name", "seed")
        else (f.name, Any, None if NoneType in get_args(f.type) else MISSING)
        for f in fields(RunSettings)
    ]
    store.store(name="run_schema", node=lenient_node(make_dataclass("RunSettings", root)))
    # Hydra copies the store for every group that it lists, which takes half of the time of --help; no copy is changed.
    setattr(store, "__deepcopy__", lambda memo: store)  # noqa: B010


def settings_of(config: DictConfig) -> RunSettings:
    """Return the settings objects of a composed config; their own range checks run here.

    Raises:
        ValueError: a value is missing or out of range, a key was added that no schema has, or a group holds something
            else than its schema.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if "eval" in missing:
        raise ValueError(NO_EVALUATION)
    if missing:
        raise ValueError(f"{missing[0]} is not set; add {missing[0]}=... to the command")
    _refuse_unknown(config, {f.name for f in fields(RunSettings)}, "")
    _check_ranges(config, RunSettings, "")
    if (other := OmegaConf.select(config, "layout.model")) is not None:
        # A second model has the schema of the first one: its own class is for refusals, which name its settings.
        OtherModelSettings(**cast(dict[str, Any], OmegaConf.to_container(other, resolve=True)))
    values: dict[str, Any] = {}
    for f in fields(RunSettings):
        if f.name not in config and f.default_factory is not NO_DEFAULT:
            # A run of an earlier version, which had no such group.
            continue
        node = config[f.name]
        values[f.name] = OmegaConf.to_object(node) if OmegaConf.is_config(node) else node
    for f in fields(RunSettings):
        expected = get_args(f.type) or (f.type,)
        if is_dataclass(expected[0]) and not isinstance(values[f.name], cast(tuple[type, ...], expected)):
            kinds = " or ".join(cast(type, kind).__name__ for kind in expected if kind is not NoneType)
            raise ValueError(
                f"{f.name} is not of the kind {kinds}; a YAML file of this group begins with "
                f"`defaults: [/schema/{f.name}@_here_: ..., _self_]`"
            )
    for name, term in values["loss"].items():
        if f"loss.{name}" in INSTEAD:
            raise ValueError(f"loss.{name}: there is no such setting; {INSTEAD[f'loss.{name}']}")
        if isinstance(term, LossTerm):
            continue
        if name == "penalty":
            chosen = term if term in choices_of("penalty") else "none"
            raise ValueError(f"loss.penalty is not a loss term; the penalty is a choice, as in penalty={chosen}")
        raise ValueError(
            f"loss.{name} is not a loss term; give it a schema in the YAML file's defaults, "
            f"for instance `/schema/loss@{name}: l1`"
        )
    for name, evaluation in values["eval"].items():
        if not isinstance(evaluation, Evaluation):
            instead = INSTEAD.get(f"eval.{name}") or (
                "an evaluation is chosen by eval=[...], and its YAML file begins with "
                "`defaults: [/schema/eval@_here_: ..., _self_]`"
            )
            raise ValueError(f"eval.{name} is not an evaluation; {instead}")
    return RunSettings(**values)


def _refuse_unknown(node: DictConfig, known: set[str], path: str) -> None:
    """Raise ValueError for a key that `+key=value` added and no schema has; OmegaConf accepts such keys."""
    for key in node:
        full_key = f"{path}.{key}" if path else str(key)
        if known and key not in known:
            instead = INSTEAD.get(full_key) or f"{path or 'the root'} has: {', '.join(sorted(known))}"
            raise ValueError(f"{full_key}: there is no such setting; {instead}")
        child = node[key]
        if isinstance(child, DictConfig):
            kind = OmegaConf.get_type(child)
            _refuse_unknown(child, {f.name for f in fields(kind)} if is_dataclass(kind) else set(), full_key)


def _check_ranges(node: DictConfig, kind: type | None, path: str) -> None:
    """Raise ValueError for a number that is out of its range, by the key that was typed.

    The check comes before the objects: they know only their own fields' names, and they compute with these numbers.
    """
    ranges = {f.name: (range_of(f.metadata), f.type) for f in fields(kind)} if is_dataclass(kind) else {}
    for key in node:
        child, full_key = node[key], f"{path}.{key}" if path else str(key)
        if isinstance(child, DictConfig):
            _check_ranges(child, OmegaConf.get_type(child), full_key)
            continue
        allowed, annotation = ranges.get(str(key), (None, None))
        if allowed is not None:
            child = OmegaConf.to_container(child) if isinstance(child, ListConfig) else child
            check_number(child, allowed, typed_key(node, key, full_key), is_nullable(annotation))


def typed_key(node: DictConfig, key: Any, full_key: str) -> str:
    """Return the key at which a value was set: another key if this one refers to it."""
    written: Any = OmegaConf.to_container(node, resolve=False)
    found = re.fullmatch(r"\$\{([\w.]+)\}", written[key]) if isinstance(written[key], str) else None
    return full_key if found is None else found[1]
