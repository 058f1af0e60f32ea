"""`latents`: what every latent means, in a store and in pages that open without a server."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.subject import Examined, Subject
from fsae.evaluation.vectors import Vectors
from fsae.files import digest_of
from fsae.latents.bins import EDGES
from fsae.latents.contexts import Contexts, SampleContexts, TextContexts
from fsae.latents.control import control_of
from fsae.latents.findings import LatentFindings, findings, weights_digest, with_control, write_findings
from fsae.latents.footprint import Footprint, footprint, slices_needed
from fsae.latents.hits import HitSizes
from fsae.latents.labels import MEANINGS
from fsae.latents.latent_pass import Sizes
from fsae.latents.slices import Slices, survey_slices
from fsae.memory import free_bytes
from fsae.outputs.latent_store import LatentStore, Meta
from fsae.outputs.results import Meaning
from fsae.progress import working
from fsae.ranges import COUNT, POSITIVE, SEED, between
from fsae.sources.layout import Sites
from fsae.sources.shard import Part
from fsae.sparse.codes import Codes

log = logging.getLogger(__name__)

# Vectors on which densities are measured for the control.
_CALIBRATED_ON = 8192


@dataclass(frozen=True, kw_only=True)
class Latents(Evaluation, group="eval.latents"):
    """One pass over data that finds what every latent means: top contexts, samples, histograms, co-firing, labels.

    Attributes:
        tokens: tokens of text, or samples of other data.
        text: the part of the text.
        top: contexts in which a latent's largest code is greatest, kept of each latent.
        per_bin: samples of each activation bin (half an octave).
        bins: activation bins that are sampled, from that of the maximum down.
        window: positions on either side of a peak whose codes are kept.
        cofiring: samples of each latent in which other latents are counted.
        partners: latents that co-fire with a latent, at most.
        triggers: latents whose shortest trigger is searched for, with further forward passes.
        control: random directions of equal density, on which the same numbers are measured. 0 for none.
        seed: of the sampling and the control.
        workers: processes that read text at the same time, each with a language model of its own. They decide no
            number.
        memory_gb: the most memory for what is kept of latents. If all latents need more, the data are read several
            times, each time for some of the latents; this decides no number. None for three quarters of what is free.
    """

    tokens: int = field(default=100_000, metadata=COUNT)
    text: Part = Part.held_out
    top: int = field(default=20, metadata=between(least=1, most=1000))
    per_bin: int = field(default=3, metadata=between(least=0, most=100))
    bins: int = field(default=12, metadata=between(least=1, most=96))
    window: int = field(default=24, metadata=between(least=0, most=10_000))
    cofiring: int = field(default=32, metadata=between(least=2, most=10_000))
    partners: int = field(default=10, metadata=between(least=1, most=1000))
    triggers: int = field(default=64, metadata=between(least=0, most=10**9))
    control: int = field(default=256, metadata=between(least=0, most=100_000))
    seed: int = field(default=0, metadata=SEED)
    workers: int = field(default=1, metadata=between(least=1, most=1000))
    memory_gb: float | None = field(default=None, metadata=POSITIVE)

    # The pages show each latent's scaling.
    reads: ClassVar[frozenset[str]] = frozenset({"crosscoder"})
    in_sweeps: ClassVar[bool] = False
    in_folder: ClassVar[bool] = True
    # `vectors` reports the other numbers, over more samples.
    meanings: ClassVar[dict[str, Meaning]] = {
        name: meaning for name, meaning in MEANINGS.items() if name not in Vectors.meanings
    }

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's numbers, and the latent store and pages of each as folders of the run."""
        with working("reading the text" if subject.source.text is not None else "reading the samples"):
            contexts = self._contexts(subject)
        vectors = _first_vectors(contexts)
        # A dictionary with its control, the next one with its control, and so on.
        dictionaries, footprints = [], []
        for run in subject.runs:
            own = []
            for autoencoder in run.autoencoders:
                codes = _codes(autoencoder, vectors)
                control = self._control(vectors, codes, autoencoder)
                own += [autoencoder, *control]
                for each in (codes, *(_codes(each, vectors) for each in control)):
                    footprints.append(footprint(self._sizes, each, contexts.count * contexts.length, contexts.parts))
            dictionaries.append(own)
        has_folders = all(run.folder is not None for run in subject.runs)
        count = self._slices(footprints, vectors.device, has_folders)
        runs = [
            Slices(own, self._sizes, count, run.folder, self._key(contexts, own))
            for run, own in zip(subject.runs, dictionaries, strict=True)
        ]
        survey_slices(contexts, runs, subject.heartbeat, self.workers)
        with working("labelling latents"):
            found = [
                self._measured(contexts, vectors, slices, run, subject)
                for slices, run in zip(runs, subject.runs, strict=True)
            ]
        subject.keep([store for _, stores in found for store in stores])
        return [measured for measured, _ in found]

    def _contexts(self, subject: Subject) -> Contexts:
        text = subject.source.text
        if text is None:
            batches = subject.source.held_out(self.tokens, 2048)
            return SampleContexts(torch.cat([batch.inputs for batch in subject.beating(batches)]))
        rows = text.rows(self.text, self.tokens, subject.heartbeat)
        if rows.tokens.numel() < self.tokens:
            log.warning(
                "the %s text has %d tokens, and eval.latents.tokens asks for %d%s", self.text.name,
                rows.tokens.numel(), self.tokens,
                "; eval.latents.text=train has more" if self.text is Part.held_out else "",
            )  # fmt: skip
        if not rows.keep.any():
            raise ValueError(
                f"none of the {rows.tokens.numel()} tokens that eval.latents reads counts: all are special or skipped; "
                "raise eval.latents.tokens, or see dataset.skip_positions and dataset.exclude_tokens"
            )
        return TextContexts(rows, text.model_at, text.sites, text.rows_at_once, text.input_limits, text.reopen_models)

    @property
    def _sizes(self) -> Sizes:
        return Sizes(HitSizes(self.top, self.per_bin, self.bins, self.window), self.cofiring, self.seed)

    def _control(self, vectors: Tensor, codes: Codes, autoencoder: Autoencoder) -> Sequence[Autoencoder]:
        """Return random directions of the dictionary's densities; none if it has no latent that is on."""
        if not self.control or not codes.firing_counts.any():
            return []
        densities = (codes.firing_counts / len(vectors)).cpu().numpy()
        return [control_of(densities, vectors.to(autoencoder.W_dec), autoencoder.d_in, self.control, self.seed)]

    def _slices(self, footprints: Sequence[Footprint], device: torch.device, has_folders: bool) -> int:
        """Return the number of slices of latents, and log the memory that their surveys take.

        Raises:
            ValueError: memory is too small.
        """
        room = 0.75 * free_bytes(device) if self.memory_gb is None else self.memory_gb * 1e9
        most = sum(each.most for each in footprints)
        needed = slices_needed(footprints, room)
        if not needed or (needed > 1 and not has_folders):
            raise ValueError(
                f"what is kept of all latents takes {most / 1e9:.2f} GB of memory, and {room / 1e9:.2f} GB may be "
                "used; lower eval.latents.top, eval.latents.per_bin or eval.latents.window, or set a greater "
                "eval.latents.memory_gb"
            )
        log.info(
            "the findings about all latents take %.2f GB of memory, and up to %.2f GB while a block is surveyed",
            sum(each.kept for each in footprints) / 1e9, most / 1e9,
        )  # fmt: skip
        if needed > 1:
            log.info(
                "%.2f GB may be used: the data are read %d times, each time for some of the latents", room / 1e9, needed
            )
        return needed

    def _key(self, contexts: Contexts, dictionaries: list[Autoencoder]) -> str:
        data = {"count": contexts.count, "length": contexts.length, "at_once": contexts.at_once}
        if isinstance(contexts, TextContexts):
            tokens = contexts.rows.tokens
            digest = blake2b(tokens.numpy().tobytes(), digest_size=8).hexdigest()
            data |= {"tokens": digest, "site": _named(contexts.sites), "limits": contexts.norm_limits}
        sizes = [self.top, self.per_bin, self.bins, self.window, self.cofiring, self.seed]
        weights = [weights_digest(each) for each in dictionaries]
        # Another version may keep something else.
        return digest_of({"data": data, "sizes": sizes, "weights": weights, "version": version("fsae")})

    def _measured(
        self, contexts: Contexts, vectors: Tensor, slices: Slices, run: Examined, subject: Subject
    ) -> tuple[Measured, list["NewStore"]]:
        found: dict[Autoencoder, LatentFindings] = {}
        for number, autoencoder in enumerate(slices.autoencoders):
            triggers = self.triggers if autoencoder in run.autoencoders else 0
            found[autoencoder] = findings(
                contexts,
                autoencoder,
                partial(slices.surveys, number),
                slices.counts(number),
                self.partners,
                triggers,
                subject.heartbeat,
                spreads=_spreads(vectors, autoencoder),
            )
        controls = dict(zip(slices.autoencoders, slices.autoencoders[1:], strict=False))
        numbers, controlled, folders, stores = [], [], {}, []
        for member, autoencoder in enumerate(run.autoencoders):
            own, control = found[autoencoder], controls.get(autoencoder)
            of_control = None if control is None or control in run.autoencoders else found[control]
            meta = with_control(self._meta(contexts, autoencoder, own, subject), own, of_control)
            numbers.append({name: value for name, value in own.numbers.items() if name in self.meanings})
            controlled.append(meta.control)
            place = None if run.folder is None else (run.folder, run.member(member))
            # What was surveyed is needed until the last folder is written.
            close = slices.close if member == len(run.autoencoders) - 1 else None
            stores.append(NewStore(own, contexts, meta))
            folders[store_name(run, member)] = partial(_write, stores[-1], close, place)
        common = set.intersection(*(set(each) for each in numbers))
        of_each = [{name: each[name] for name in each if name in common} for each in numbers]
        return Measured(of_each, content={"latents_control": controlled}, folders=folders), stores

    def _meta(self, contexts: Contexts, autoencoder: Autoencoder, found: LatentFindings, subject: Subject) -> Meta:
        by_text = contexts.count * contexts.length - found.samples - found.left_out
        text = contexts if isinstance(contexts, TextContexts) else None
        picture = subject.source.picture
        return Meta(
            kind="samples" if text is None else "text",
            d_sae=autoencoder.d_sae,
            architecture=type(autoencoder).__name__,
            weights=weights_digest(autoencoder),
            positions=found.samples,
            excluded={"special or skipped": by_text, "massive": found.left_out},
            contexts=contexts.count,
            context=contexts.length,
            window=self.window,
            top=self.top,
            per_bin=self.per_bin,
            bin_edges=EDGES,
            seed=self.seed,
            model=None if text is None else text.model.name,
            site=None if text is None else _named(text.sites),
            dataset=None if subject.source.text is None else subject.source.text.dataset,
            part=None if text is None else self.text.name,
            picture=None if picture is None else list(picture),
            parts=autoencoder.ends.target.names if _has_parts(autoencoder) else None,
            fsae=version("fsae"),
            dtype=None if text is None else str(text.model.dtype).removeprefix("torch."),
        )


@dataclass(eq=False)
class NewStore:
    """The latent store of one autoencoder, for evaluations that read it; it is written to one folder, once.

    Attributes:
        found, contexts, meta: its content.
        has_pages: whether its pages are written; until then they are still to come.
    """

    found: LatentFindings
    contexts: Contexts
    meta: Meta
    has_pages: bool = False
    _written: bool = False

    def write(self, folder: Path) -> None:
        """Replace the store in a folder, unless that was done already: then the surveys may be gone.

        Raises:
            OSError: no space is left; an earlier store is untouched.
        """
        if not self._written:
            write_findings(self.found, self.contexts, self.meta, folder)
            self._written = True


def store_name(run: Examined, member: int) -> str:
    """Return the folder of a member's latent store in the run's folder."""
    number = run.member(member)
    return "latents" if number is None else f"latents/{number}"


def _named(sites: Sites) -> str:
    """Return the names of the sites that are read."""
    return " + ".join(map(str, sites.input))


@torch.no_grad()
def _codes(autoencoder: Autoencoder, vectors: Float[Tensor, "vectors d_in"]) -> Codes:
    return autoencoder.encode(vectors.to(autoencoder.W_dec), sparse=True).codes


def _first_vectors(contexts: Contexts) -> Float[Tensor, "vectors d_in"]:
    """Return the vectors on which densities are measured, read once for all dictionaries."""
    vectors, found = [], 0
    for read in contexts.blocks(0):
        vectors.append(read.vectors)
        found += len(read.vectors)
        if found >= _CALIBRATED_ON:
            break
    return torch.cat(vectors)


def _has_parts(autoencoder: Autoencoder) -> bool:
    """Return whether the dictionary reads and writes the same parts, and several of them."""
    return autoencoder.ends.same and len(autoencoder.ends.target.parts) > 1


def _spreads(vectors: Float[Tensor, "vectors d_in"], autoencoder: Autoencoder) -> list[float] | None:
    """Return the root mean square distance of each part's vectors from their mean; None without several parts."""
    if not _has_parts(autoencoder):
        return None
    parts = autoencoder.ends.target.split(vectors.float())
    return [(part - part.mean(0)).square().sum(1).mean().sqrt().item() for part in parts]


def _write(
    store: NewStore, close: Callable[[], None] | None, place: tuple[Path, int | None] | None, folder: Path
) -> None:
    """Write the store and its pages; `place` is the run's folder and the member, if there is a run."""
    from fsae.analysis.latent_pages import write_latent_pages
    from fsae.analysis.origin import Origin

    store.write(folder)
    if close is not None:
        close()
    write_latent_pages(LatentStore(folder), folder, Origin("latents") if place is None else Origin.of(*place))
    store.has_pages = True
