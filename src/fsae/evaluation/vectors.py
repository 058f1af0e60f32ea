"""`vectors`: metrics from one pass over held-out vectors, without a language model or known features."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.decoder import decoder_max_cosine
from fsae.evaluation.description_length import DescriptionLengthMetric
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.finiteness import check_finite
from fsae.evaluation.fisher import FisherMetric
from fsae.evaluation.parts import meanings_of_parts, of_parts
from fsae.evaluation.reconstruction import PartsMetric, ReconstructionMetric
from fsae.evaluation.sparsity import SparsityMetric, density_histogram
from fsae.evaluation.subject import Subject
from fsae.evaluation.tail import TailMetric
from fsae.losses.fisher import Fisher
from fsae.outputs.results import LARGE_TAIL, Better, Meaning, Shown
from fsae.ranges import COUNT, between
from fsae.sources.source import Batch

log = logging.getLogger(__name__)

# Above this share of non-zero entries dense products between samples are faster: the cost of sparse ones rises with
# its square.
_CHEAP_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class VectorEvaluation:
    """The result of one pass over the held-out vectors.

    Attributes:
        scalars: every metric by name, in raw activation units.
        samples: number of held-out vectors.
        density: (d_sae,) share of them that each latent is on for; times `samples` it is a count.
        mean_activation: (d_out,) mean of the targets, their replacement in mean ablation.
        parts: the metrics of each part of the targets, by its name; empty if there is one part.
    """

    scalars: dict[str, float]
    samples: int
    density: Float[Tensor, " d_sae"]
    mean_activation: Float[Tensor, " d_out"]
    parts: dict[str, dict[str, float]] = field(default_factory=dict)


@torch.no_grad()
def evaluate_vectors(
    autoencoders: Sequence[Autoencoder],
    batches: Iterable[Batch],
    fishers: Sequence[Fisher],
    sparse: bool = True,
) -> list[VectorEvaluation]:
    """Return every metric of trained autoencoders on the same held-out vectors, in one pass over them.

    Args:
        autoencoders: in eval mode and in raw units, that is with the activation scale folded into the weights.
        batches: raw vectors; all of one size except for a smaller last one.
        fishers: for each autoencoder, the form, the estimator and the scope of its `fisher` and `fisher_ratio`.
        sparse: keep only the entries of the codes that may be non-zero, unless a batch has so many that dense codes are
            cheaper. The numbers are the same.

    Raises:
        ValueError: fewer than two vectors, or activations that are not finite (how many and where).
    """
    sums = [_Sums(each, fisher, sparse) for each, fisher in zip(autoencoders, fishers, strict=True)]
    samples, tail = 0, TailMetric()
    for index, batch in enumerate(batches):
        check_finite(batch.inputs, f"batch {index} of the held-out vectors")
        if batch.targets is not batch.inputs:
            check_finite(batch.targets, f"batch {index} of the held-out targets")
        samples += len(batch.inputs)
        tail.update(batch.targets)
        for each in sums:
            each.add(batch)
    if samples == 0:
        raise ValueError("the held-out part has no vectors to evaluate on; give the dataset more text")
    return [each.evaluation(tail) for each in sums]


class _Sums:
    """The sums of one autoencoder."""

    def __init__(self, autoencoder: Autoencoder, fisher: Fisher, sparse: bool):
        assert not autoencoder.training
        device = autoencoder.W_dec.device
        self._autoencoder, self._sparse = autoencoder, sparse
        ends = autoencoder.ends
        self._reconstruction = ReconstructionMetric(autoencoder.d_out, device, denoises=ends.same)
        # After the metric of the joined vectors, whose numbers it replaces if there are several parts.
        self._parts = PartsMetric(ends, device)
        self._sparsity = SparsityMetric(autoencoder.d_sae, device)
        length = DescriptionLengthMetric(autoencoder, self._reconstruction)
        self._metrics = (self._reconstruction, self._parts, self._sparsity, length, FisherMetric(fisher, device))

    def add(self, batch: Batch) -> None:
        autoencoder = self._autoencoder
        x = batch.inputs.to(autoencoder.W_dec)
        targets = None if batch.targets is batch.inputs else batch.targets.to(autoencoder.W_dec)
        record = autoencoder(x, self._sparse, targets)
        if self._sparse and record.codes.values.numel() > _CHEAP_SHARE * len(x) * autoencoder.d_sae:
            self._sparse = False
            record = autoencoder(x, self._sparse, targets)
        for metric in self._metrics:
            metric.update(record)

    def evaluation(self, tail: TailMetric) -> VectorEvaluation:
        reconstruction = self._reconstruction
        scalars = {name: value for metric in self._metrics for name, value in metric.compute().items()}
        scalars |= tail.compute(reconstruction)
        scalars["decoder_max_cosine"] = decoder_max_cosine(self._autoencoder.W_dec)
        mean, parts = reconstruction.mean_target, self._parts.of_each()
        return VectorEvaluation(scalars, reconstruction.samples, self._sparsity.density, mean, parts)


@dataclass(frozen=True, kw_only=True)
class Vectors(Evaluation, group="eval.vectors"):
    """Reconstruction, sparsity, independence and similarity of latents, over held-out vectors.

    Attributes:
        samples: held-out vectors.
        batch_size: vectors per batch. The Fisher metrics are statistics of a batch, so runs are comparable only at the
            same size.
    """

    samples: int = field(default=32768, metadata=COUNT)
    batch_size: int = field(default=2048, metadata=between(least=2, most=10**9, meaning="a number of samples"))

    meanings: ClassVar[dict[str, Meaning]] = {
        "fvu": Meaning("fraction of variance unexplained", better=Better.less, shown=Shown.first),
        "explained_variance": Meaning("1 - fvu", better=Better.more, shown=Shown.files),
        "l0": Meaning("active latents per sample", shown=Shown.first),
        "fisher_ratio": Meaning("off-diagonal over diagonal squares of the Fisher matrix", shown=Shown.first),
        "dead_share": Meaning("share of latents that never fire", better=Better.less, shown=Shown.first),
        "description_length": Meaning("size of a sample's codes", unit="bits"),
        "dense_share": Meaning("share of latents on for more than 10 % of samples", better=Better.less),
        "code_correlation_excess": Meaning("code_correlation minus its value for independent latents"),
        "decoder_max_cosine": Meaning("cosine of a decoder row and its nearest other"),
        "cosine": Meaning("cosine of reconstruction and input", better=Better.more),
        "l2_ratio": Meaning("|reconstruction| / |input|, best at 1"),
        "fvu_of_inputs": Meaning("fvu of the noisy inputs against the clean targets", better=Better.less),
        "mse": Meaning("squared error, summed over dimensions", better=Better.less, shown=Shown.files),
        "l1": Meaning("sum of |code| x |decoder row|", shown=Shown.files),
        "fisher": Meaning("off-diagonal squares of the Fisher matrix, summed, in raw units", shown=Shown.files),
        "fisher_batch": Meaning("samples per batch of fisher and fisher_ratio", shown=Shown.files),
        "code_correlation": Meaning("mean squared correlation of two latents", shown=Shown.files),
        "top_variance_share": Meaning("share of variance in the 0.1 % of samples of largest norm", shown=Shown.files),
        "massive_share": Meaning("share of samples left out (source.max_norm_multiple)", shown=Shown.files),
        "best_fvu": Meaning("fvu of the member that was best in training", better=Better.less),
        "best_member": Meaning("number of the member that was best in training", shown=Shown.files),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.samples < self.batch_size:
            raise ValueError(
                f"eval.vectors.samples is {self.samples}, less than one batch of eval.vectors.batch_size="
                f"{self.batch_size}; raise eval.vectors.samples or lower eval.vectors.batch_size"
            )

    @property
    def held_out(self) -> int:
        return self.samples

    def measure(self, subject: Subject) -> list[Measured]:
        """Return the metrics of every autoencoder, and keep the result of the pass for later evaluations."""
        batches = subject.held_out(self.samples, self.batch_size, "evaluating")
        found = evaluate_vectors(subject.autoencoders, batches, subject.fishers)
        subject.keep(found)
        left_out = subject.source.massive_share
        massive = {} if left_out is None else {"massive_share": left_out}
        _warn_of_tail(found[0].scalars["top_variance_share"], subject.source.tail_remedy)
        measured = []
        for run, own in zip(subject.runs, subject.by_run(found), strict=True):
            numbers = [each.scalars | massive for each in own]
            shared = {}
            if len(own) > 1:
                shared = {"best_fvu": numbers[run.best]["fvu"], "best_member": float(run.best)}
            densities = [each.density for each in own]
            histogram = _histogram(densities)
            dead = sum(each["dead_share"] for each in numbers) / len(numbers)
            pictures = {"firing.png": _firing(histogram, dead)}
            content: dict[str, Any] = {"density_histogram": histogram}
            if own[0].parts:
                content["parts"] = [each.parts for each in own]
            parts = [each.parts for each in own]
            numbers = [each | of_parts("fvu", own_parts) for each, own_parts in zip(numbers, parts, strict=True)]
            meanings = meanings_of_parts("fvu", self.meanings["fvu"], parts[0])
            measured.append(
                Measured(numbers, shared, content, pictures=pictures, densities=densities, meanings=meanings)
            )
        return measured


def _histogram(frequencies: Sequence[Float[Tensor, " d_sae"]]) -> dict[str, Any]:
    """Return the histogram of density over all members of a run."""
    histograms = [density_histogram(each) for each in frequencies]
    return histograms[0] | {"latents": torch.tensor([each["latents"] for each in histograms]).sum(0).tolist()}


def _firing(histogram: dict[str, Any], dead_share: float) -> Callable[[Path], None]:
    from fsae.analysis.run_plots import plot_density

    return partial(plot_density, histogram, dead_share)


def _warn_of_tail(share: float, remedy: str) -> None:
    if share > LARGE_TAIL:
        log.warning(
            "0.1 %% of the held-out vectors hold %.0f %% of the variance. fvu describes the reconstruction of these, "
            "and hardly that of all others%s",
            100 * share, f": {remedy}" if remedy else "",
        )  # fmt: skip
