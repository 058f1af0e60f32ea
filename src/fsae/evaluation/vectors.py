"""One pass over held-out vectors: everything that can be said of autoencoders without the language model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.decoder import decoder_max_cosine
from fsae.evaluation.description_length import DescriptionLengthMetric
from fsae.evaluation.finiteness import check_finite
from fsae.evaluation.fisher import FisherMetric
from fsae.evaluation.reconstruction import ReconstructionMetric
from fsae.evaluation.sparsity import SparsityMetric
from fsae.evaluation.tail import TailMetric
from fsae.losses.fisher import Fisher
from fsae.sources.source import Batch

# Above this share of entries the products between samples, whose cost rises with its square, are faster dense.
_CHEAP_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class VectorEvaluation:
    """What one pass over the held-out vectors gives.

    Attributes:
        scalars: every metric by name, in raw activation units.
        samples: number of held-out vectors.
        firing_frequency: (d_sae,) share of them that each latent is on for; times `samples` it is a count.
        mean_activation: (d_in,) mean of the vectors, which mean ablation puts in their place.
    """

    scalars: dict[str, float]
    samples: int
    firing_frequency: Float[Tensor, " d_sae"]
    mean_activation: Float[Tensor, " d_in"]


@torch.no_grad()
def evaluate_vectors(
    autoencoders: Sequence[Autoencoder],
    batches: Iterable[Batch],
    fishers: Sequence[Fisher],
    sparse: bool = True,
) -> list[VectorEvaluation]:
    """Every metric of trained autoencoders on the same held-out vectors, in one pass over them.

    Args:
        autoencoders: in eval mode and in raw units, that is with the activation scale folded into the weights.
        batches: raw vectors; all of one size but for a smaller last one.
        fishers: for each autoencoder, the form and the estimator of its `fisher` and `fisher_ratio`.
        sparse: keep only the entries of the codes that may be non-zero, unless a batch shows that they are too many for
            it to be cheaper. The numbers are the same.

    Raises:
        ValueError: no vectors or a single one, or activations that are not finite (how many and where).
    """
    sums = [_Sums(each, fisher, sparse) for each, fisher in zip(autoencoders, fishers, strict=True)]
    samples, tail = 0, TailMetric()
    for index, batch in enumerate(batches):
        check_finite(batch.inputs, f"batch {index} of the held-out vectors")
        samples += len(batch.inputs)
        tail.update(batch.targets)
        for each in sums:
            each.add(batch)
    if samples == 0:
        raise ValueError("the held-out part has no vectors to evaluate on; give the dataset more text")
    return [each.evaluation(tail) for each in sums]


class _Sums:
    """What is summed up of one autoencoder."""

    def __init__(self, autoencoder: Autoencoder, fisher: Fisher, sparse: bool):
        assert not autoencoder.training
        device = autoencoder.W_dec.device
        self._autoencoder, self._sparse = autoencoder, sparse
        self._reconstruction = ReconstructionMetric(autoencoder.d_in, device)
        self._sparsity = SparsityMetric(autoencoder.d_sae, device)
        length = DescriptionLengthMetric(autoencoder, self._reconstruction)
        self._metrics = (self._reconstruction, self._sparsity, length, FisherMetric(fisher, device))

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
        return VectorEvaluation(
            scalars, reconstruction.samples, self._sparsity.firing_frequency, reconstruction.mean_input
        )
