"""The number of latents that are on, the size of their codes, and the density of each latent."""

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.record import ForwardRecord

# A latent that is on for more than this share of the samples counts as dense.
DENSE = 0.1


class SparsityMetric:
    """Activity of the codes f over all samples b and latents i of the held-out set. A latent is on if f_bi != 0.

    l0: mean_b #{i : f_bi != 0}.
    l1: mean_b sum_i |f_bi| |W_dec_i|; with decoder rows of unit norm it is sae_lens' l1.
    dead_share: share of latents that are on for no sample.
    dense_share: share of latents that are on for more than a tenth of the samples.
    """

    def __init__(self, d_sae: int, device: torch.device):
        self._samples = 0
        self._fired = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self._l1 = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Return the share of the samples that each latent is on for, in float64."""
        return self._fired / self._samples

    def update(self, record: ForwardRecord) -> None:
        codes = record.codes
        self._samples += codes.shape[0]
        self._fired += codes.firing_counts
        norms = record.W_dec.norm(dim=1)
        self._l1 += (codes.values.abs() * codes.columns(norms)).sum(dtype=torch.float64)

    def compute(self) -> dict[str, float]:
        frequency = self.density
        return {
            "l0": (self._fired.sum() / self._samples).item(),
            "l1": (self._l1 / self._samples).item(),
            "dead_share": (frequency == 0).double().mean().item(),
            "dense_share": (frequency > DENSE).double().mean().item(),
        }


def density_histogram(density: Float[Tensor, " d_sae"]) -> dict[str, list[float]]:
    """Return the histogram of log10 density in bins from 1e-6 to 1, without dead latents.

    Returns:
        `log10_edges` (61,) and `latents` (60,).
    """
    logs = density[density > 0].log10().float().cpu()
    counts = torch.histc(logs, bins=60, min=-6.0, max=0.0)
    return {"log10_edges": torch.linspace(-6.0, 0.0, 61).tolist(), "latents": counts.tolist()}
