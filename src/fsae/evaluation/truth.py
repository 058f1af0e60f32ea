"""How well an autoencoder found features that are known."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fsae.autoencoders.base import Autoencoder, ForwardRecord
from fsae.losses.mutual import assignment
from fsae.sources.source import Batch


class TruthMetric:
    """Scores against the features that synthetic data are made of.

    mcc: mean absolute cosine of decoder rows and true features under the best one-to-one assignment.
    mmcs_truth: mean over true features of the nearest decoder row's cosine: how much of the truth was found.
    mmcs_latents: mean over decoder rows of the nearest true feature's cosine: how much of what was found is true.
    uniqueness: distinct true features among those nearest to each latent, over the number of latents (of true features
        where these are fewer).
    precision, recall, f1: of each assigned latent as a detector of its feature (on where the feature is), averaged
        over assigned pairs; a latent that never fires has none of the three and counts 0.

    Args:
        features: (true, d_in) directions, of any length.
        W_dec: (d_sae, d_in).
    """

    def __init__(self, features: Float[Tensor, "true d_in"], W_dec: Float[Tensor, "d_sae d_in"]):
        truth, rows = (torch.nn.functional.normalize(each.double(), dim=1) for each in (features, W_dec))
        cosines = rows @ truth.T
        self._latents, self._features = assignment(cosines.abs())
        nearest = cosines.argmax(1)
        self._cosines = {
            "mcc": cosines.abs()[self._latents, self._features].mean().item(),
            "mmcs_truth": cosines.amax(0).mean().item(),
            "mmcs_latents": cosines.amax(1).mean().item(),
            "uniqueness": len(nearest.unique()) / min(cosines.shape),
        }
        self.nearest_cosine = cosines.amax(1)
        self._both = torch.zeros(len(nearest), dtype=torch.double, device=W_dec.device)[: len(self._latents)]
        self._fired, self._present = self._both.clone(), self._both.clone()

    def update(self, record: ForwardRecord, present: Bool[Tensor, "batch true"]) -> None:
        """Add one batch, and which true features its samples have."""
        fired = (record.codes.dense() != 0)[:, self._latents].double()
        there = present[:, self._features].double()
        self._both += (fired * there).sum(0)
        self._fired += fired.sum(0)
        self._present += there.sum(0)

    def compute(self) -> dict[str, float]:
        precision = self._both / self._fired.clamp_min(1)
        recall = self._both / self._present.clamp_min(1)
        f1 = 2 * self._both / (self._fired + self._present).clamp_min(1)
        return self._cosines | {
            "precision": precision.mean().item(),
            "recall": recall.mean().item(),
            "f1": f1.mean().item(),
        }


@torch.no_grad()
def evaluate_truth(
    autoencoders: Sequence[Autoencoder],
    features: Float[Tensor, "true d_in"],
    batches: Iterable[Batch],
    presence: Iterable[Bool[Tensor, "batch true"]],
) -> list[TruthMetric]:
    """Each autoencoder's scores on held-out samples; `presence` says which features those of each batch have."""
    metrics = [TruthMetric(features.to(each.W_dec.device), each.W_dec) for each in autoencoders]
    for batch, present in zip(batches, presence, strict=True):
        for autoencoder, metric in zip(autoencoders, metrics, strict=True):
            record = autoencoder(batch.inputs.to(autoencoder.W_dec), True)
            metric.update(record, present.to(autoencoder.W_dec.device))
    return metrics
