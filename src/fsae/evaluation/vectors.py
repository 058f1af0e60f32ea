"""One pass over held-out vectors: everything that can be said of an autoencoder without the language model."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.base import Autoencoder
from fsae.evaluation.decoder import decoder_max_cosine
from fsae.evaluation.finiteness import check_finite
from fsae.evaluation.fisher import FisherMetric
from fsae.evaluation.reconstruction import ReconstructionMetric
from fsae.evaluation.sparsity import SparsityMetric
from fsae.losses.fisher import Fisher

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
    autoencoder: Autoencoder, batches: Iterable[Float[Tensor, "batch d_in"]], fisher: Fisher, sparse: bool = True
) -> VectorEvaluation:
    """Every metric of a trained autoencoder on held-out vectors, in one pass.

    Args:
        autoencoder: in eval mode and in raw units, that is with the activation scale folded into its weights.
        batches: raw activations; all of one size but for a smaller last one.
        fisher: names the form and the estimator of `fisher` and `fisher_ratio`.
        sparse: keep only the entries of the codes that may be non-zero, unless a batch shows that they are too many for
            it to be cheaper. The numbers are the same.

    Raises:
        ValueError: no vectors or a single one, or activations that are not finite (how many and where).
    """
    assert not autoencoder.training
    device = autoencoder.W_dec.device
    reconstruction = ReconstructionMetric(autoencoder.d_in, device)
    sparsity = SparsityMetric(autoencoder.d_sae, device)
    metrics = (reconstruction, sparsity, FisherMetric(fisher, device))
    for index, batch in enumerate(batches):
        check_finite(batch, f"batch {index} of the held-out vectors")
        x = batch.to(autoencoder.W_dec)
        record = autoencoder(x, sparse)
        if sparse and record.codes.values.numel() > _CHEAP_SHARE * batch.shape[0] * autoencoder.d_sae:
            sparse = False
            record = autoencoder(x, sparse)
        for metric in metrics:
            metric.update(record)
    if reconstruction.samples == 0:
        raise ValueError("the held-out part has no vectors to evaluate on; give the dataset more text")
    scalars = {name: value for metric in metrics for name, value in metric.compute().items()}
    scalars["decoder_max_cosine"] = decoder_max_cosine(autoencoder.W_dec)
    return VectorEvaluation(scalars, reconstruction.samples, sparsity.firing_frequency, reconstruction.mean_input)
