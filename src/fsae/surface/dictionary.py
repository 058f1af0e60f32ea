"""A trained dictionary: its weights, its codes, and the record of its training."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.configuration.existing import apply_provenance, with_its_norm_limit
from fsae.configuration.recorded import evaluated_dictionary, recorded_settings
from fsae.configuration.resolvers import choice_names
from fsae.configuration.schema import RunSettings, Task
from fsae.evaluation.vectors import Vectors
from fsae.export.dictionary_files import is_dictionary, load_autoencoder, read_provenance, stored_at
from fsae.export.provenance import Provenance
from fsae.export.saelens import CONFIG, read_density, save_saelens
from fsae.language_models.hub import downloaded_part, is_hub_name
from fsae.language_models.interventions import Edit, Intervention
from fsae.language_models.left_out import LeftOut
from fsae.language_models.sites import Site
from fsae.latents.findings import weights_digest
from fsae.outputs.latent_store import META, LatentStore
from fsae.outputs.results import read_results
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import read_status
from fsae.runs.build import request_of
from fsae.sources.layout import LayoutSettings, Sites
from fsae.sources.tokens import special_tokens
from fsae.sparse.codes import Codes
from fsae.surface.language_model import LanguageModel, language_model

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_HUB_EXAMPLE = 'fsae.load("google/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82")'

# Held-out vectors that are encoded at a time.
_BATCH = 1024


class Dictionary:
    """A trained autoencoder that reads raw vectors, such as a language model's activations as they are.

    `fsae.load` and `fsae.train` make one. Inputs are cast to the dictionary's type and moved to its device. Gradients
    flow to inputs that require them; the weights are constants.

    Args:
        autoencoder: in raw units; it is put into evaluation mode.
        settings: of the run that trained it.
        results: numbers of the run's evaluation, by the names of results.json.
        provenance: what it was trained on, in SAELens' words.
        density: (d_sae,) share of held-out samples on which each latent is on.
        folder: the folder or file that it was read from.
        run: the run that trained it, or that evaluated it and has findings on its latents.

    Attributes:
        autoencoder: the module itself, for everything that this class does not offer.
        results: as given; empty if there was no evaluation.
        provenance: as given; all None if nothing is known.
        density: as given; None if it is unknown.
        folder: as given; None if it was trained in this process.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        *,
        settings: RunSettings | None = None,
        results: Mapping[str, Any] | None = None,
        provenance: Provenance | None = None,
        density: Float[Tensor, " d_sae"] | None = None,
        folder: Path | None = None,
        run: Path | None = None,
    ):
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.results = dict(results or {})
        self.provenance = provenance or Provenance()
        self.density = density
        self.folder = folder
        self._settings = settings
        self._run = run

    @property
    def d_in(self) -> int:
        """Return the width of the vectors that it reads."""
        return self.autoencoder.d_in

    @property
    def d_out(self) -> int:
        """Return the width of the vectors that it writes; a transcoder's may differ from `d_in`."""
        return self.autoencoder.d_out

    @property
    def d_sae(self) -> int:
        """Return the number of latents."""
        return self.autoencoder.d_sae

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:  # noqa: N802
        """Return the encoder weights, one column per latent, for raw vectors."""
        return self.autoencoder.W_enc

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:  # noqa: N802
        """Return the decoder weights, one row per latent, in the unit of the vectors per unit of the code."""
        return self.autoencoder.W_dec

    @property
    def b_dec(self) -> Float[Tensor, " d_in"]:
        """Return the decoder bias, in the unit of the vectors."""
        return self.autoencoder.b_dec

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.autoencoder.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the weights, which is also the type of codes and reconstructions."""
        return self.autoencoder.W_dec.dtype

    @property
    def architecture(self) -> str:
        """Return the name of the `arch=` choice that computes codes as this dictionary does.

        SAELens' format has no batch_topk: such a dictionary is a jumprelu once it has been saved, and `settings.arch`
        says how it was trained.
        """
        kind = self.autoencoder.settings_type
        return choice_names().get(kind, kind.__name__)

    @cached_property
    def settings(self) -> RunSettings | None:
        """Return the settings of the run that trained it; None if none of fsae did, or if it is unknown.

        Raises:
            ValueError: another version of fsae wrote settings that this version lacks.
        """
        reading = self._reading
        return None if reading is None or reading.task is Task.eval else reading

    @cached_property
    def _reading(self) -> RunSettings | None:
        """The settings by which vectors were read for it: of the run that trained it or evaluated it."""
        if self._settings is None and self._run is not None:
            return apply_provenance(recorded_settings(self._run))
        return self._settings

    @cached_property
    def cfg(self) -> dict[str, Any]:
        """Return the words of SAELens' cfg.json: what the files say, or what they mean in another project's layout.

        It is empty if the dictionary was read from no files.
        """
        return {} if self.folder is None else stored_at(self.folder).config

    @property
    def site(self) -> Site | None:
        """Return the site in the language model at which its vectors are read, the first one if there are several; None
        if they are of no language model.

        Raises:
            ValueError: SAELens' name of the hook is no site of fsae.
        """
        hook = self.provenance.hook_name
        if hook is not None:
            return Site.of_hook(hook, self.provenance.hook_head_index, self.provenance.writes_elsewhere)
        # A dictionary of another program may not name it, and was evaluated at one.
        reading = self._reading
        return None if reading is None or reading.model is None else reading.site

    @property
    def written_site(self) -> Site | None:
        """Return the site that it writes: another than `site` for a transcoder; None if it is of no language model.

        Raises:
            ValueError: SAELens' name of the hook is no site of fsae.
        """
        hook = self.provenance.hook_name_out
        return self.site if hook is None else Site.of_hook(hook)

    @property
    def sites(self) -> Sites | None:
        """Return all sites that it reads and that it writes, in their order; None if it is of no language model.

        Raises:
            ValueError: SAELens' name of a hook is no site of fsae, or it is of two models and of no run, whose settings
                say how the second one is opened.
        """
        said, reading = self.provenance, self._reading
        if said.model_names is not None and reading is None:
            raise ValueError(
                f"{self!r} is of two language models, and only a run's settings say how both are opened; load its run, "
                "or the run that `python -m fsae.latents` makes of it"
            )
        if said.model_names is not None or not said.hooks_in:
            return None if reading is None else reading.sites
        read = tuple(Site.of_hook(hook, said.hook_head_index, said.writes_elsewhere) for hook in said.hooks_in)
        return Sites(read, tuple(map(Site.of_hook, said.hooks_out)) if said.writes_elsewhere else read)

    @cached_property
    def language_model(self) -> LanguageModel | None:
        """Return the language model whose activations it reads, opened at the first use; None if it has none.

        Raises:
            ValueError: the model cannot be opened (`fsae.language_model` has the reasons).
        """
        settings = self._reading
        if settings is not None:
            return None if settings.model is None else LanguageModel(settings.model)
        if self.provenance.model_name is None:
            return None
        if self.provenance.model_note is not None:
            log.warning(
                "%s is opened, but it was trained on %s", self.provenance.model_name, self.provenance.model_note
            )
        return language_model(self.provenance.model_name)

    @property
    def latents(self) -> "pd.DataFrame":
        """Return the findings of a pass over text on every latent, a row per latent.

        `latent_store` has their top contexts.

        Raises:
            ValueError: there was no pass, its files are damaged, or they are of other weights.
        """
        return self.latent_store.table

    @cached_property
    def latent_store(self) -> LatentStore:
        """Return the findings of a pass over text: `table`, and `hits(latent)`, its top contexts and samples.

        Raises:
            ValueError: there was no pass, its files are damaged, or they are of other weights.
        """
        if self._latents_folder is None or self.folder is None:
            raise ValueError(f"{self!r}: it belongs to no run, so there is no folder with findings on its latents")
        store = LatentStore(self._latents_folder)
        if store.meta.weights != weights_digest(load_autoencoder(self.folder)):
            raise ValueError(
                f"{store.folder} is of another dictionary than the one in {self.folder}; make it again with "
                f"python -m fsae.latents {self._run}"
            )
        return store

    @property
    def _latents_folder(self) -> Path | None:
        if self._run is None or self.folder is None:
            return None
        run = RunFolder(self._run)
        if not self.folder.is_relative_to(run.sae):
            return run.latents
        # latents/ for sae/, and latents/0 for sae/0 of a population.
        return run.latents / self.folder.relative_to(run.sae)

    @cached_property
    def largest_activations(self) -> Float[Tensor, " d_sae"]:
        """Return each latent's code of the largest absolute value, with its sign; 0 for a latent that is never active.

        It is over the samples of the run's latent store, or, without one, over the run's held-out activations. These
        are read from the activation store, and harvested again if it has been deleted.

        Raises:
            ValueError: the dictionary belongs to no run, or the run read no language model.
        """
        if self._latents_folder is not None and (self._latents_folder / META).is_file():
            largest = np.nan_to_num(self.latents["max"].to_numpy())
            return torch.tensor(largest, dtype=self.dtype, device=self.device)
        settings = self._reading
        if settings is None or settings.model is None or self.folder is None:
            raise ValueError(
                f"{self!r}: the largest activations of its latents are unknown, because it belongs to no run on a "
                'language model; give them with largest={LATENT: ...}, or strengths with unit="absolute"'
            )
        log.info("measuring the largest activation of each latent on the run's held-out activations")
        request = request_of(settings)
        samples = request.held_out_samples or Vectors().samples
        request = replace(request, training_samples=0, held_out_samples=samples, spliced=False)
        if self.provenance.pair_hook_names is not None:
            # Each autoencoder of a pair has one of the run's sites.
            request = replace(request, site=self.site, layout=LayoutSettings())
        source = with_its_norm_limit(settings.source, self.provenance, self.folder)
        largest = torch.zeros(self.d_sae, dtype=self.dtype, device=self.device)
        with source.open(request, lambda: None) as opened:
            for batch in opened.held_out(samples, _BATCH):
                codes = self.encode(batch.inputs)
                for extreme in (codes.amax(0), codes.amin(0)):
                    largest = torch.where(extreme.abs() > largest.abs(), extreme, largest)
        return largest

    @contextmanager
    def intervene(
        self,
        *edits: Edit,
        largest: Mapping[int, float] | Float[Tensor, " d_sae"] | None = None,
        language_model: LanguageModel | None = None,
    ) -> Iterator[LanguageModel]:
        """Edit latents in the language model within a `with` block.

            with dictionary.intervene(fsae.Add(12, 2.0), fsae.Ablate(40)) as model:
                print(model.generate("The cat sat on"))

        The activations at the dictionary's site become decode(edited codes) + error, with the error of the
        reconstruction that the plain codes give; see `fsae.language_models.interventions`. Those of a transcoder change
        at the site that it writes. Positions that the
        dictionary's training left out (special tokens, massive activations) are not edited. Blocks may be nested, also
        those of dictionaries at other sites; of two at one site, the inner one encodes what the outer one has edited.

        Args:
            *edits: `Ablate`, `Scale`, `Add` and `Clamp`, in the order in which they act; none changes nothing.
            largest: the largest activation of the latents, which is the unit of strengths; None for
                `largest_activations`.
            language_model: the model to edit; None for the dictionary's own. Dictionaries at several sites of one model
                need the same one.

        Yields:
            The language model, which is edited until the block ends, also by an exception.

        Raises:
            ValueError: there is no language model, a latent does not exist, its largest activation is unknown, or the
                model's site cannot be edited.
        """
        model = language_model or self.language_model
        site, written = self.site, self.written_site
        if model is None or site is None or written is None:
            missing = "language model" if model is None else "site"
            raise ValueError(
                f"{self!r}: it was not trained on a language model's activations (it has no {missing}), so there is "
                "nothing to intervene in; load the run of a dictionary that was"
            )
        ends = self.autoencoder.ends
        if len(ends.input.parts) > 1 or len(ends.target.parts) > 1:
            raise ValueError(
                f"{self!r} reads or writes several sites, and edits act at one; use a dictionary with "
                "layout=autoencoder or layout=transcoder"
            )
        for verb, place, own in (("reads", site, self.d_in), ("writes", written, self.d_out)):
            width = model.model.width(place)
            if width != own:
                raise ValueError(
                    f"{self!r} {verb} vectors of width {own}, and {place} of model {model.name} has width {width}; "
                    "give the language model that it was trained on"
                )
        relative = [edit.latent for edit in edits if edit.relative and edit.latent < self.d_sae]
        if isinstance(largest, Tensor):
            largest = dict(enumerate(largest.tolist()))
        elif largest is None:
            values = self.largest_activations if relative else None
            largest = {} if values is None else {latent: float(values[latent]) for latent in relative}
        intervention = Intervention(
            self.autoencoder,
            site,
            [_with_token(edit, model) for edit in edits],
            largest=largest,
            left_out=self.left_out(model),
            written=written,
        )
        with model.intervened(intervention):
            yield model

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Return the codes of vectors.

        Args:
            x: raw vectors; any number of axes before the last one.

        Returns:
            Codes in the dictionary's type and on its device; zero for latents that are off. `codes @ W_dec + b_dec`
            has the unit of the vectors.

        Raises:
            ValueError: the last axis is not d_in long, or the numbers are not floating-point.
        """
        flat = self._rows(x, self.d_in, "encode: x", "d_in")
        return self.autoencoder.encode(flat).codes.dense().view(*x.shape[:-1], self.d_sae)

    def decode(self, codes: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_out"]:
        """Return the vectors that codes stand for, `codes @ W_dec + b_dec`, in the vectors' unit.

        A skip transcoder adds a linear path from its input, which codes do not determine: call the dictionary for it.

        Args:
            codes: any number of axes before the last one.

        Raises:
            ValueError: the last axis is not d_sae long, the numbers are not floating-point, or the dictionary
                normalises each sample, so that codes alone have no vector; call the dictionary with the samples then.
        """
        flat = self._rows(codes, self.d_sae, "decode: codes", "d_sae")
        return self.autoencoder.decode(Codes(flat)).view(*codes.shape[:-1], self.d_out)

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Return the reconstruction for raw vectors, in their own type and on their device.

        It can replace the vectors, or, of a transcoder, those at the site that it writes.

        Raises:
            ValueError: as `encode` does.
        """
        flat = self._rows(x, self.d_in, "the dictionary: x", "d_in")
        return self.autoencoder(flat).reconstruction.view(*x.shape[:-1], self.d_out).to(x)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Dictionary":
        """Move the weights to a device, cast them to a type, and return this dictionary.

        Args:
            device: such as "cuda"; None leaves them where they are.
            dtype: floating-point; None leaves it. Thresholds stay in float32 when the others become shorter.
        """
        self.autoencoder.to(device=device, dtype=dtype)
        return self

    def __repr__(self) -> str:
        of = f", {self.provenance.places}" if self.provenance.hooks_in else ""
        return f"Dictionary({self.architecture}, d_in={self.d_in}, d_sae={self.d_sae}{of})"

    def left_out(self, model: LanguageModel) -> LeftOut:
        """Return the positions that training left out of text in the tokens of a model."""
        excluded = self.provenance.exclude_special_tokens
        if not isinstance(excluded, list):
            excluded = special_tokens(model.model) if excluded else []
        return LeftOut(
            tokens=frozenset(excluded),
            positions=(self.provenance.seqpos_slice or [0])[0] or 0,
            norm_limit=self.provenance.max_activation_norm,
        )

    def _rows(self, given: Tensor, width: int, what: str, name: str) -> Float[Tensor, "rows width"]:
        if given.dim() < 1 or given.shape[-1] != width or not given.is_floating_point():
            raise ValueError(
                f"{what}: expected floating-point numbers of shape (..., {name}) with {name} = {width}, found "
                f"{tuple(given.shape)} of {str(given.dtype).removeprefix('torch.')}"
            )
        return given.to(self.device, self.dtype).reshape(-1, width)


def load(path: str | Path, part: str | None = None, *, member: int | None = None) -> Dictionary:
    """Load a dictionary from a run's folder, from files of SAELens or of another project, or from the hub.

        fsae.load("outputs/runs/RUN")
        fsae.load("google/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82")

    Args:
        path: a run's folder (`RUN`), one member of a population (`RUN/sae/0`), or the folder or file of a dictionary
            in one of the layouts that the documentation lists: SAELens' own, which `fsae.save` writes, Gemma Scope's,
            and others. The folder of a run that evaluated such a dictionary (`task=eval`, `python -m fsae.latents
            DICTIONARY`) gives the dictionary with the run's findings. With `part`, it may be a repository of the hub.
        part: the dictionary's folder or file within `path`; "." for a repository that holds one dictionary.
        member: which member of a population's run, counted from 0; None for a run that trained one dictionary.

    Returns:
        The dictionary in raw units, on the CPU, in float32.

    Raises:
        ValueError: no such folder, no dictionary in it, a population without `member`, damaged files, or the hub does
            not give them.
    """
    path = _located(str(path), part)
    evaluated = _evaluated(path)
    folder = _exported(evaluated or path, member)
    # A file of the hub's cache is a link to a file without its name.
    folder = folder.resolve() if folder.is_dir() else folder.absolute()
    run = path.resolve() if evaluated else _run_of(folder)
    return Dictionary(
        load_autoencoder(folder),
        results=read_results(RunFolder(run).results) if run is not None else None,
        provenance=read_provenance(folder),
        density=read_density(folder),
        folder=folder,
        run=run,
    )


def save(
    dictionary: Dictionary | Autoencoder,
    folder: str | Path,
    provenance: Provenance | None = None,
) -> None:
    """Write a dictionary in SAELens' format: cfg.json, sae_weights.safetensors and, if known, sparsity.safetensors.

    `sae_lens.SAE.load_from_disk` opens the folder, as `fsae.load` does; kmeans and local_pca only `fsae.load` opens.

    Args:
        dictionary: or an autoencoder in raw units.
        folder: replaced in one step if it exists and is in SAELens' format.
        provenance: what it was trained on; None writes what the dictionary has.

    Raises:
        ValueError: `folder` is a file, or a folder that holds something else than a dictionary.
        OSError: the disk is full or the folder cannot be written; an earlier dictionary there is untouched.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not (folder / CONFIG).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(
            f"{folder}: expected a new folder, an empty one or one that holds a dictionary, found other files; name "
            "another folder"
        )
    if isinstance(dictionary, Dictionary):
        save_saelens(dictionary.autoencoder, folder, provenance or dictionary.provenance, dictionary.density)
    else:
        save_saelens(dictionary, folder, provenance or Provenance())


def _with_token(edit: Edit, model: LanguageModel) -> Edit:
    """Return an edit whose `after` is the id of a token."""
    if edit.after is None:
        return edit
    return replace(edit, after=model.token_id(edit.after, f"{type(edit).__name__}.after"))


def _located(path: str, part: str | None) -> Path:
    """Return the folder or file that is meant, downloaded if it is the hub's."""
    local = Path(path).expanduser()
    if part is not None and not local.exists() and is_hub_name(path):
        return downloaded_part(path, part, caller="fsae.load")
    return local if part is None else local / part


def _exported(path: Path, member: int | None) -> Path:
    """Return the folder or file of the dictionary that is meant."""
    if not path.exists():
        raise ValueError(
            f"{path}: expected the folder of a run or of a dictionary, found no folder; a dictionary on the hub needs "
            f"its folder there as well, as in {_HUB_EXAMPLE}"
        )
    sae = path if path.is_file() or is_dictionary(path) else RunFolder(path).sae
    if is_dictionary(sae) or path.is_file():
        if member is not None:
            raise ValueError(f"{path}: member is {member}, but it holds one dictionary; leave member out")
        return sae
    # Also of a population's `sae` itself.
    members = {
        int(each.parent.name): each.parent for each in [*sae.glob(f"*/{CONFIG}"), *path.glob(f"[0-9]*/{CONFIG}")]
    }
    if not members:
        status = read_status(path)
        if status is None and any(path.iterdir()):
            # Its message names the layouts that are read.
            stored_at(path)
        found = "an empty folder" if status is None else f"a run in the state {status.state.value!r}"
        raise ValueError(
            f"{path}: expected a dictionary ({CONFIG} here or in sae/), found {found}; a training that has finished "
            "holds one"
        )
    if member not in members:
        raise ValueError(
            f"{path}: it holds the {len(members)} members {min(members)} to {max(members)} of a population, and member "
            f"is {member}; choose one, as in fsae.load({str(path)!r}, member={min(members)})"
        )
    return members[member]


def _evaluated(path: Path) -> Path | None:
    """Return the dictionary that the run in a folder evaluated; None if it trained its own, or if there is no run."""
    run = RunFolder(path)
    holds_dictionary = is_dictionary(path) or run.sae.is_dir()
    return evaluated_dictionary(path) if run.config.is_file() and not holds_dictionary else None


def _run_of(folder: Path) -> Path | None:
    """Return the run that exported a dictionary there, RUN for RUN/sae and RUN/sae/0; None if none did."""
    above = folder.parents
    for run, sae in ((above[0], folder), (above[1], above[0])) if len(above) > 1 else ():
        if sae.name == RunFolder(run).sae.name and RunFolder(run).config.is_file():
            return run
    return None
