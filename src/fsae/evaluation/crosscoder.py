"""`crosscoder`: the latents of a dictionary of several sites that are of one site alone, and those that sites share."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.subject import Subject
from fsae.evaluation.vectors import VectorEvaluation
from fsae.latents.weights import relative_norms
from fsae.outputs.latent_scaling import LATENT_SCALING, NU_ERROR, NU_RECONSTRUCTION
from fsae.outputs.results import Meaning, Shown
from fsae.ranges import COUNT, between
from fsae.sources.source import Batch
from fsae.sparse.codes import Codes

# A latent is of one part by its norms if its relative norm there is above the first limit, and shared if all of its
# relative norms lie between the others (Lindsey et al. 2024).
_ONE_PART, _SHARED = 0.9, (0.4, 0.6)
_BINS = 20


class LatentScaling:
    """Factors by which latents would be scaled to fit targets, from sums over batches (arXiv 2504.02922).

    For targets t and a latent's direction d, beta minimises sum_b |t_b - beta f_b d|^2, so it is
    sum_b f_b (t_b . d) / (sum_b f_b^2 |d|^2). Only the entries of the codes are read.

    Args:
        directions: of each latent.
        parts: parts that have targets.
    """

    def __init__(self, directions: Float[Tensor, "d_sae d"], parts: int):
        self.directions = directions
        self._products = directions.new_zeros(parts, len(directions), dtype=torch.float64)
        self._squares = torch.zeros_like(self._products[0])

    def add(self, codes: Codes, targets: Sequence[Float[Tensor, "batch d"]]) -> None:
        """Add a batch, with its targets of each part."""
        values = codes.values.double()
        self._squares += codes.with_values(values.square()).column_sums()
        for product, target in zip(self._products, targets, strict=True):
            along = codes.sample(target, self.directions).values
            product += codes.with_values(values * along).column_sums()

    @property
    def betas(self) -> Float[Tensor, "d_sae parts"]:
        """The factor of each latent at each part; NaN for a latent that was never on."""
        lengths = self.directions.double().square().sum(1)
        return (self._products / (self._squares * lengths)).T


def ratios(betas: Float[Tensor, "d_sae parts"], part: Int[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """Return nu: the largest factor at another part over the factor at a latent's own part.

    It is infinite if the own factor is not positive, which no ratio describes.
    """
    own = betas.gather(1, part.unsqueeze(1)).squeeze(1)
    other = betas.scatter(1, part.unsqueeze(1), -torch.inf).amax(1)
    return torch.where(own.isnan() | (own > 0), other / own, torch.inf)


@dataclass(frozen=True, eq=False)
class PartsOfLatents:
    """The parts of a dictionary that its latents are of.

    Attributes:
        names: of the parts.
        live: the latents that were on.
        norms: relative norms; see `relative_norms`.
        part: the part with the largest norm.
        cosines: of decoder rows at two parts, by the numbers of both; empty if parts differ in width.
        of_error, of_reconstruction: factors at each part; see `measure_parts`. None if parts differ in width.
    """

    names: list[str]
    live: Bool[Tensor, " d_sae"]
    norms: Float[Tensor, "d_sae parts"]
    part: Int[Tensor, " d_sae"]
    cosines: dict[tuple[int, int], Float[Tensor, " d_sae"]]
    of_error: Float[Tensor, "d_sae parts"] | None = None
    of_reconstruction: Float[Tensor, "d_sae parts"] | None = None

    @property
    def single(self) -> Bool[Tensor, " d_sae"]:
        """The live latents that are of one part by their norms."""
        return self.live & (self.norms.amax(1) > _ONE_PART)

    @property
    def shared(self) -> Bool[Tensor, " d_sae"]:
        """The live latents with nearly equal norms at all parts."""
        least, most = _SHARED
        return self.live & ((self.norms >= least) & (self.norms <= most)).all(1)

    @property
    def specific(self) -> Bool[Tensor, " d_sae"] | None:
        """The live latents that are of one part by latent scaling."""
        if self.of_error is None or self.of_reconstruction is None:
            return None
        by_error = ratios(self.of_error, self.part) < NU_ERROR
        return self.live & by_error & (ratios(self.of_reconstruction, self.part) < NU_RECONSTRUCTION)

    def numbers(self) -> dict[str, float]:
        """Return the numbers of the dictionary; parts of different widths have only those of norms."""
        live, single, specific = self.live.sum(), self.single, self.specific
        found = {
            "crosscoder_shared": (self.shared.sum() / live).item(),
            "crosscoder_single": (single.sum() / live).item(),
        }
        if specific is not None:
            found["crosscoder_specific"] = (specific.sum() / live).item()
            if single.any():
                found["crosscoder_confirmed"] = ((single & specific).sum() / single.sum()).item()
        if self.cosines:
            found["crosscoder_cosine"] = torch.stack([each[self.live] for each in self.cosines.values()]).mean().item()
        return found

    def counts(self) -> dict[str, dict[str, Any]]:
        """Return, by part, the live latents that are of it alone, and the histogram of relative norms."""
        found: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(self.names):
            here = self.part == number
            norms = self.norms[self.live, number].cpu()
            found[name] = {"single": int((self.single & here).sum())}
            if self.specific is not None:
                found[name]["specific"] = int((self.specific & here).sum())
            found[name]["relative_norms"] = torch.histc(norms, _BINS, 0, 1).long().tolist()
        return found

    def table(self) -> dict[str, list[Any]]:
        """Return a column per fact, with a row per latent; None for a latent that was never on."""
        columns: dict[str, Tensor] = {}
        for number, name in enumerate(self.names):
            columns[f"relative_norm {name}"] = self.norms[:, number]
            if self.of_error is not None and self.of_reconstruction is not None:
                columns[f"beta_error {name}"] = self.of_error[:, number]
                columns[f"beta_reconstruction {name}"] = self.of_reconstruction[:, number]
        for (first, second), cosine in self.cosines.items():
            columns[f"cosine {self.names[first]} {self.names[second]}"] = cosine
        if self.of_error is not None and self.of_reconstruction is not None:
            columns["nu_error"] = ratios(self.of_error, self.part)
            columns["nu_reconstruction"] = ratios(self.of_reconstruction, self.part)
        live = self.live.tolist()
        facts: dict[str, list[Any]] = {
            name: [_rounded(value) if is_on else None for value, is_on in zip(column.tolist(), live, strict=True)]
            for name, column in columns.items()
        }
        part = [self.names[number] for number in self.part.tolist()]
        found: dict[str, list[Any]] = {"part": part, "live": live, **facts}
        return found if self.specific is None else found | {"specific": self.specific.tolist()}


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


@torch.no_grad()
def measure_parts(
    autoencoders: Sequence[Autoencoder], vectors: Sequence[VectorEvaluation], batches: Iterable[Batch]
) -> list[PartsOfLatents]:
    """Return the parts that the latents of each dictionary are of, from one pass over held-out vectors.

    Everything is measured in units of each part's root mean square distance from its mean, so that no part counts for
    more because its vectors are longer. A latent's direction is its decoder row at the part at which that is longest.
    `of_reconstruction` are its factors for what all latents write, and `of_error` for the error of the reconstruction
    plus what the latent itself writes.

    Args:
        autoencoders: of several parts, in eval mode and in raw units.
        vectors: the evaluation of each on held-out vectors.
        batches: held-out vectors.
    """
    sums = [_Sums(autoencoder, own) for autoencoder, own in zip(autoencoders, vectors, strict=True)]
    for batch in batches:
        for each in sums:
            each.add(batch)
    return [each.found() for each in sums]


class _Sums:
    """The sums of one dictionary."""

    def __init__(self, autoencoder: Autoencoder, vectors: VectorEvaluation):
        assert not autoencoder.training
        self._autoencoder, self._layout = autoencoder, autoencoder.ends.target
        self._spreads = [part["spread"] for part in vectors.parts.values()]
        rows = self._in_units(autoencoder.W_dec)
        norms = torch.stack([each.norm(dim=1) for each in rows], dim=1)
        names, width = self._layout.names, self._layout.widths[0]
        # Rows at parts of different widths cannot be compared.
        self._rows = torch.stack(rows) if self._layout.widths == [width] * len(names) else None
        cosines = {}
        if self._rows is not None:
            pairs = combinations(range(len(names)), 2)
            cosines = {pair: F.cosine_similarity(*self._rows[list(pair)], dim=1) for pair in pairs}
        live = vectors.density > 0
        self._facts = PartsOfLatents(names, live, relative_norms(norms), norms.argmax(1), cosines)
        self._scaling = []
        if self._rows is not None:
            directions = self._rows[self._facts.part, torch.arange(len(norms), device=norms.device)]
            self._scaling = [LatentScaling(directions, len(names)) for _ in range(2)]

    def _in_units(self, vectors: Float[Tensor, "*batch d"]) -> list[Tensor]:
        return [part / spread for part, spread in zip(self._layout.split(vectors), self._spreads, strict=True)]

    def add(self, batch: Batch) -> None:
        if not self._scaling:
            return
        record = self._autoencoder(batch.inputs.to(self._autoencoder.W_dec), sparse=True)
        written = record.reconstruction - self._autoencoder.b_dec
        for scaling, targets in zip(self._scaling, (record.error, written), strict=True):
            scaling.add(record.codes, self._in_units(targets))

    def found(self) -> PartsOfLatents:
        if self._rows is None:
            return self._facts
        of_error, of_reconstruction = self._scaling
        directions = of_error.directions.double()
        own = (self._rows.double() * directions).sum(2).T / directions.square().sum(1, keepdim=True)
        return replace(self._facts, of_error=of_error.betas + own, of_reconstruction=of_reconstruction.betas)


@dataclass(frozen=True, kw_only=True)
class Crosscoder(Evaluation, group="eval.crosscoder"):
    """The latents of a crosscoder that are of one of its sites alone: by norms, and by latent scaling.

    Attributes:
        samples: held-out vectors.
        batch_size: vectors per batch.
    """

    samples: int = field(default=32768, metadata=COUNT)
    batch_size: int = field(default=2048, metadata=between(least=1, most=10**9, meaning="a number of samples"))

    needs: ClassVar[frozenset[str]] = frozenset({"several_parts", "vectors"})
    in_folder: ClassVar[bool] = True
    meanings: ClassVar[dict[str, Meaning]] = {
        "crosscoder_single": Meaning("share of live latents with one long decoder part"),
        "crosscoder_specific": Meaning("share of live latents of one part by latent scaling"),
        "crosscoder_shared": Meaning("share of live latents with decoder parts of one norm"),
        "crosscoder_confirmed": Meaning("share of crosscoder_single that scaling confirms", shown=Shown.files),
        "crosscoder_cosine": Meaning("cosine of a decoder row's parts", shown=Shown.files),
    }

    @property
    def held_out(self) -> int:
        return self.samples

    def measure(self, subject: Subject) -> list[Measured]:
        """Return the numbers of every dictionary, and a table with a row per latent as a file of the run."""
        vectors = subject.found(VectorEvaluation)
        assert vectors is not None
        batches = subject.held_out(self.samples, self.batch_size, "scaling latents")
        measured = []
        for own in subject.by_run(measure_parts(subject.autoencoders, vectors, batches)):
            counts = [each.counts() for each in own]
            measured.append(
                Measured(
                    [each.numbers() for each in own],
                    content={"crosscoder_parts": counts},
                    files={LATENT_SCALING: [each.table() for each in own]},
                    pictures={"relative_norms.png": _picture(counts)},
                )
            )
        return measured


def _picture(counts: Sequence[dict[str, dict[str, Any]]]) -> Callable[[Path], None]:
    from fsae.analysis.run_plots import plot_relative_norms

    sums = {name: torch.tensor([each[name]["relative_norms"] for each in counts]).sum(0).tolist() for name in counts[0]}
    return partial(plot_relative_norms, sums)
