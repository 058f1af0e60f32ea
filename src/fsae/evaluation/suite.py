"""A suite of evaluations: the choice of those that can be measured, their order, and their files."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fsae.evaluation.choices import CHOICES
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.subject import Examined, Subject
from fsae.files import digest_of, replacing, write_json
from fsae.language_models.identity import listing_digest
from fsae.outputs.results import MEASURED, Meaning, flat_results
from fsae.outputs.run_folder import RunFolder
from fsae.plugins import with_outside
from fsae.sources.layout import ONE_SITE, PAIR, SEVERAL_PARTS
from fsae.sources.supply import Supply

log = logging.getLogger(__name__)

# The need of evaluations that compare a population's members.
MEMBERS = "members"
# The need of evaluations of what attention computes.
ATTENTION = "attention"
# Names in `results.json` and `evaluations/<name>.json` that no evaluation's content may have.
RESERVED = frozenset({"meanings", "notes", "evaluated", "settings", "numbers", "members", "key"})
PREFIXES = (MEASURED, "data/")
# The reason why a need is not met, and the remedy for a run that is not trained yet.
UNMET = {
    "language_model": ("the source has no language model", "use source=activations"),
    "known_features": (
        "the source's features are not known", "use a synthetic source, as in source=grouped_features"
    ),
    MEMBERS: ("the run trains one autoencoder", "set population.size to 2 or more"),
    PAIR: ("the run is no pair of autoencoders", "choose layout=jacobian_pair"),
    ONE_SITE: ("the dictionary does not read and write one site", "choose layout=autoencoder"),
    SEVERAL_PARTS: ("the dictionary is no crosscoder", "choose layout=crosscoder"),
    ATTENTION: ("the site is not the output of attention", "use site=attn_z or site=attn_out"),
}  # fmt: skip


def chosen(
    evaluations: Mapping[str, Evaluation],
    provided: frozenset[str],
    named: Set[str] = frozenset(),
    in_sweep: bool = False,
    trained: bool = False,
) -> dict[str, Evaluation]:
    """Return the evaluations whose needs are met, in the order in which they are measured.

    Args:
        evaluations: by name.
        provided: the needs that the source and the run meet.
        named: the evaluations that the command line named. A named one whose needs are not met is refused; one that a
            YAML file lists is left out.
        in_sweep: whether evaluations of single runs are left out, as in a sweep's job that names none.
        trained: whether the run is finished, so that its source and its population cannot be changed.

    Raises:
        ValueError: a named evaluation's needs are not met, two evaluations have a number of the same name, or they need
            each other.
    """
    possible: dict[str, Evaluation] = {}
    for name in _ordered(evaluations):
        each = evaluations[name]
        if in_sweep and not each.in_sweeps:
            continue
        missing = sorted(each.needs - provided - possible.keys())
        if not missing:
            possible[name] = each
        elif name in named:
            raise ValueError(f"eval.{name} cannot be measured: {_remedy(missing[0], name, evaluations, trained)}")
    _check_names(possible)
    return possible


def held_out_samples(evaluations: Mapping[str, Evaluation]) -> int:
    """Return how many held-out samples the evaluations read."""
    return max((each.held_out for each in evaluations.values()), default=0)


@dataclass(frozen=True, eq=False)
class Findings:
    """The findings of a suite on one run.

    Attributes:
        evaluations: the suite, by name.
        measured: the findings, by name of the evaluation.
        supply: the samples that the run was trained on and measured on.
        refused: by name of the evaluation, the reason for which it could not measure.
        identity: of the run, as in `Examined`.
    """

    evaluations: Mapping[str, Evaluation]
    measured: Mapping[str, Measured]
    supply: Supply
    refused: Mapping[str, str] = field(default_factory=dict)
    identity: str | None = None

    def check(self) -> None:
        """Raise ValueError with the reasons of the evaluations that could not measure."""
        if self.refused:
            raise ValueError("; ".join(self.refused.values()))

    @cached_property
    def meanings(self) -> dict[str, Meaning]:
        """Return the meaning of each number, in the order of the suite."""
        own = {name: each.meanings for name, each in self.measured.items()}
        all_of_them: dict[str, Meaning] = {}
        for name, each in self.evaluations.items():
            all_of_them |= each.meanings | own.get(name, {})
        return {name: says for name, says in all_of_them.items() if name in self.numbers}

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Return the run's numbers by name: means over its autoencoders, and the numbers of the run as a whole."""
        found: dict[str, float] = {}
        for each in self.measured.values():
            found |= _means(each.numbers) | each.shared
        return found

    @property
    def of_each(self) -> dict[str, float]:
        """Return each member's numbers, as in "0/fvu"; a run of one autoencoder has none."""
        return {
            f"{member}/{name}": value
            for each in self.measured.values()
            if len(each.numbers) > 1
            for member, numbers in enumerate(each.numbers)
            for name, value in numbers.items()
        }

    @property
    def densities(self) -> Sequence[Float[Tensor, " d_sae"]]:
        """Return the density of each of the run's autoencoders; empty if no evaluation measured it."""
        return next((each.densities for each in self.measured.values() if each.densities), ())

    def logged(self) -> dict[str, float]:
        """Return the numbers and the counts of samples, under the names by which they are logged."""
        found = {f"{MEASURED}{name}": value for name, value in (self.numbers | self.of_each).items()}
        return found | self.supply.numbers()

    def results(self) -> dict[str, Any]:
        """Return the content of `results.json`."""
        content = {name: value for each in self.measured.values() for name, value in each.content.items()}
        return flat_results(self.numbers | self.of_each, self.meanings) | content | self.supply.numbers()

    def write(self, folder: RunFolder) -> None:
        """Write `evaluations/<name>.json` of each evaluation, its further files, folders and pictures.

        Every file is replaced in one step: after a kill it is the earlier one or the new one.

        Raises:
            OSError: no space is left.
        """
        folder.evaluations.mkdir(exist_ok=True)
        for name, each in self.measured.items():
            for file, content in each.files.items():
                write_json(folder.path / file, content)
            for inner, write in each.folders.items():
                write(folder.path / inner)
            for picture, draw in each.pictures.items():
                _draw(folder.plots / picture, draw)
            key = {} if self.identity is None else {"key": key_of(self.evaluations[name], self.identity)}
            write_json(folder.evaluations / f"{name}.json", _described(self.evaluations[name], each) | key)


def measure(
    subject: Subject,
    evaluations: Mapping[str, Evaluation],
    keep: Callable[[list[Findings]], None] = lambda findings: None,
) -> list[Findings]:
    """Measure the subject's runs by every evaluation, in their order, and return the findings on each run.

    A run is left out by an evaluation that needs members, if it has none, and by one that finds nothing on it. An
    evaluation that cannot measure is refused, and so are those that need it; the others continue. One that was measured
    already is left alone, if the folders of all runs have it: with the run's identity and the same settings.

    Args:
        subject: the runs.
        evaluations: by name.
        keep: called after each evaluation with its findings on each run, so that a kill in a later one loses nothing.

    Raises:
        ValueError: an evaluation has a number without a meaning, or content of a reserved name.
    """
    wanted = held_out_samples(evaluations)
    found: list[dict[str, Measured]] = [{} for _ in subject.runs]
    refused: dict[str, str] = {}
    earlier = _measured_already(subject, evaluations)

    def of_runs(
        those: Mapping[str, Evaluation], measured: Sequence[Mapping[str, Measured]], refused: Mapping[str, str]
    ) -> list[Findings]:
        found_samples = max((each.found_samples or 0 for each in subject.ends), default=0) or None
        supplies = [
            # They are counted by `vectors`.
            Supply() if "vectors" in earlier else subject.source.supply(run.samples or None, found_samples, wanted)
            for run in subject.runs
        ]
        return [
            Findings(those, own, supply, refused, run.identity)
            for run, own, supply in zip(subject.runs, measured, supplies, strict=True)
        ]

    for name, evaluation in evaluations.items():
        is_measured = _concerns(evaluation, subject.runs)
        if not any(is_measured):
            continue
        if name in earlier:
            for own, each, counts in zip(found, earlier[name], is_measured, strict=True):
                if counts:
                    own[name] = each
            continue
        if needed := sorted(evaluation.needs & refused.keys()):
            refused[name] = f"eval.{name} needs {needed[0]}, which was not measured"
            continue
        try:
            measured = _measured(evaluation, subject)
        except ValueError as error:
            refused[name] = str(error)
            log.error("eval.%s cannot be measured: %s", name, error)
            continue
        for own, each, counts in zip(found, measured, is_measured, strict=True):
            if not counts or each.empty:
                continue
            unknown = {*each.shared, *_means(each.numbers)} - evaluation.meanings.keys() - each.meanings.keys()
            if unknown:
                numbers = ", ".join(sorted(unknown))
                raise ValueError(
                    f"eval.{name} reports {numbers} without a meaning; add it to {type(evaluation).__name__}.meanings"
                )
            reserved = sorted(name for name in each.content if name in RESERVED or name.startswith(PREFIXES))
            if reserved:
                raise ValueError(
                    f"eval.{name} has content named {reserved[0]}, which results.json has for fsae's own; rename it"
                )
            own[name] = each
        keep(of_runs({name: evaluation}, [{name: own[name]} if name in own else {} for own in found], {}))
    return of_runs(evaluations, found, refused)


def key_of(evaluation: Evaluation, identity: str) -> str:
    """Return a digest of what decides the numbers of an evaluation of a run: its settings, the files that its setting
    `path` names, and the run's identity."""
    named, files = getattr(evaluation, "path", None), ""
    if named is not None:
        path = Path(named).expanduser()
        files = listing_digest(path.parent, [each for each in (path, *path.rglob("*")) if each.is_file()])
    return digest_of({"settings": _as_json(asdict(evaluation)), "files": files, "of": identity})


def _measured_already(subject: Subject, evaluations: Mapping[str, Evaluation]) -> dict[str, list[Measured]]:
    """Return the findings on each run of the evaluations that need not be measured again, and log which these are.

    An evaluation that another one reads is measured with it, unless it left what is read in the folder.
    """
    found: dict[str, list[Measured]] = {}
    read: set[str] = set()
    for name, evaluation in reversed(list(evaluations.items())):
        files = [
            RunFolder(run.folder).evaluations / f"{name}.json" if run.folder and counts else None
            for run, counts in zip(subject.runs, _concerns(evaluation, subject.runs), strict=True)
        ]
        earlier = [
            _read(file, key_of(evaluation, run.identity)) if file and run.identity else None
            for run, file in zip(subject.runs, files, strict=True)
        ]
        whole = all(each is not None for each, file in zip(earlier, files, strict=True) if file)
        own = evaluation.repeatable and type(evaluation).__module__.startswith("fsae.")
        if any(files) and whole and own and name not in read:
            found[name] = [each or Measured() for each in earlier]
            there = [file for file in files if file]
            log.info(
                "%s is measured already (%s), left alone; delete the file to measure it again",
                name, there[0] if len(there) == 1 else f"{there[0]} and {len(there) - 1} more",
            )  # fmt: skip
        else:
            in_memory = {each for each in evaluation.reads & evaluations.keys() if not evaluations[each].in_folder}
            read |= evaluation.needs | in_memory
    return found


def _concerns(evaluation: Evaluation, runs: Sequence[Examined]) -> list[bool]:
    """Return for each run whether the evaluation measures it."""
    return [MEMBERS not in evaluation.needs or len(run.autoencoders) > 1 for run in runs]


def _read(path: Path, key: str) -> Measured | None:
    """Return the numbers and the content in a file of an evaluation; None if it is not of this key."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if written.get("key") != key:
        return None

    def finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
        # The results have the others already, with a note of what they are.
        return {name: value for name, value in numbers.items() if value is not None}

    numbers, members = finite(written["numbers"]), [finite(each) for each in written.get("members", ())]
    content = {name: each for name, each in written.items() if name not in RESERVED}
    shared = {name: value for name, value in numbers.items() if name not in _means(members)} if members else {}
    return Measured(members or [numbers], shared=shared, content=content)


def _measured(evaluation: Evaluation, subject: Subject) -> list[Measured]:
    """Return the findings on each run; those on a pair's autoencoders are measured one by one, each at its own site."""
    if PAIR in evaluation.needs or len(subject.ends) == 1:
        return evaluation.measure(subject)
    return [_together(each) for each in zip(*map(evaluation.measure, subject.ends), strict=True)]


def _together(found: Sequence[Measured]) -> Measured:
    """Return the findings on single autoencoders as those on the members of one run.

    Content, files and pictures have the member's number in their names, as in "firing.0.png".
    """

    def numbered(attribute: str) -> dict[str, Any]:
        return {
            f"{Path(name).stem}.{number}{Path(name).suffix}": value
            for number, each in enumerate(found)
            for name, value in getattr(each, attribute).items()
        }

    numbers = [{**(each.numbers[0] if each.numbers else {}), **each.shared} for each in found]
    return Measured(
        numbers=numbers if any(numbers) else [],
        content=numbered("content"),
        files=numbered("files"),
        pictures=numbered("pictures"),
        folders={name: write for each in found for name, write in each.folders.items()},
        densities=[density for each in found for density in each.densities],
        meanings={name: meaning for each in found for name, meaning in each.meanings.items()},
    )


def _ordered(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Return the names in their order, but each after the evaluations that it needs or reads."""
    rest, order = list(evaluations), list[str]()
    while rest:
        before = {name: evaluations[name].needs | evaluations[name].reads for name in rest}
        ready = [name for name in rest if not before[name] & ({*rest} - {name})]
        if not ready:
            raise ValueError(f"the evaluations {', '.join(rest)} need each other; leave one of them out of eval")
        order.append(ready[0])
        rest.remove(ready[0])
    return order


def _remedy(missing: str, name: str, evaluations: Mapping[str, Evaluation], trained: bool) -> str:
    if missing not in UNMET and missing in evaluations:
        return f"it needs {missing}, which cannot be measured either; leave both out of eval"
    if missing not in UNMET and missing in with_outside("eval", CHOICES, Evaluation):
        return f"it needs {missing}; add that, as in eval=[{','.join([missing, *evaluations])}]"
    reason, remedy = UNMET.get(missing, (f"it needs {missing}", f"choose a source that provides {missing}"))
    return f"{reason}; {'' if trained else f'{remedy}, or '}leave {name} out of eval"


def _check_names(evaluations: Mapping[str, Evaluation]) -> None:
    owner: dict[str, str] = {}
    for name, each in evaluations.items():
        for number, meaning in each.meanings.items():
            if not isinstance(meaning, Meaning):
                raise ValueError(
                    f"eval.{name}: the meaning of {number} is {meaning!r}; it must be an fsae.outputs.results.Meaning"
                )
            if number in owner:
                raise ValueError(f"eval.{name} and eval.{owner[number]} both report {number}; leave one of them out")
            owner[number] = name


def _means(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means of the numbers that every member has: a dead one, for instance, has no control."""
    if not numbers:
        return {}
    shared = [name for name in numbers[0] if all(name in each for each in numbers)]
    return {name: sum(each[name] for each in numbers) / len(numbers) for name in shared}


def _draw(picture: Path, draw: Callable[[Path], None]) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    # Drawn elsewhere under its own name: matplotlib chooses the format by the suffix.
    with TemporaryDirectory() as aside, replacing(picture) as unfinished:
        drawn = Path(aside) / picture.name
        draw(drawn)
        shutil.copyfile(drawn, unfinished)


def _described(evaluation: Evaluation, measured: Measured) -> dict[str, Any]:
    """Return the content of `evaluations/<name>.json`."""
    members = [_finite(numbers) for numbers in measured.numbers]
    return {
        "settings": _as_json(asdict(evaluation)),
        "numbers": _finite(_means(measured.numbers) | measured.shared),
        **({"members": members} if len(members) > 1 else {}),
        **measured.content,
        "meanings": {name: meaning.as_json() for name, meaning in (evaluation.meanings | measured.meanings).items()},
    }


def _as_json(value: Any) -> Any:
    """Return a setting with names in place of enumeration members, at any depth."""
    if isinstance(value, Mapping):
        return {name: _as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    return value.name if isinstance(value, Enum) else value


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
