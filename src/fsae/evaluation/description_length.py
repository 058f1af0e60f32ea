"""The description length of a sample's codes, in bits."""

import math

import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.record import ForwardRecord
from fsae.evaluation.reconstruction import ReconstructionMetric

# Contributions are rounded to the samples' spread divided by this.
STEPS = 64


class DescriptionLengthMetric:
    """Bits per sample that the codes take, by the minimum description length of MDL-SAEs (arXiv 2410.11179).

    description_length: sum_i [H(p_i) + p_i h_i], in bits. p_i is the share of samples that latent i is on for and
        H(p) = -p log2 p - (1 - p) log2 (1 - p) are the bits that encode whether the latent is on. Each latent is
        encoded by itself. The components of local_pca have no H, because they are on if their cell's centre is.
        h_i are the bits of a latent's value while it is on. The contribution f_i |W_dec_i| is rounded to multiples of
        d, a sixty-fourth of the samples' root mean square distance from their mean (l0 such roundings add l0 / 49,152
        to fvu): h_i = max(0, log2(2 pi e s_i^2 / d^2) / 2), with s_i the contribution's standard deviation while the
        latent is on. This is the entropy of a normal variable, the largest at this deviation; the histogram's entropy
        would be too small for latents that are rarely on. A code that is always 1 if it is on takes no bits. The
        decoder is not counted. Latents that exclude each other save nothing: n equally full cells take
        log2 n + 1.44 bits.

    Args:
        autoencoder: the autoencoder that makes the codes.
        reconstruction: the metric of the same samples; it has their spread.
    """

    def __init__(self, autoencoder: Autoencoder, reconstruction: ReconstructionMetric):
        self._reconstruction, self._deciding = reconstruction, autoencoder.deciding
        shape, device = (3, autoencoder.d_sae), autoencoder.W_dec.device
        self._fired, self._sum, self._squares = torch.zeros(shape, dtype=torch.float64, device=device)
        self._samples = 0

    def update(self, record: ForwardRecord) -> None:
        codes = record.codes
        norms = record.W_dec.norm(dim=1).double()
        contributions = codes.with_values(codes.values.double() * codes.columns(norms))
        self._samples += codes.shape[0]
        self._fired += codes.firing_counts
        self._sum += contributions.column_sums()
        self._squares += contributions.map(torch.square).column_sums()

    def compute(self) -> dict[str, float]:
        share, fired = self._fired / self._samples, self._fired.clamp_min(1)
        variance = (self._squares / fired - (self._sum / fired).square()).clamp_min(0)
        step = self._reconstruction.spread / STEPS
        values = (0.5 * (2 * math.pi * math.e * variance / step**2).log2()).clamp_min(0)
        places = (torch.special.entr(share) + torch.special.entr(1 - share)) / math.log(2)
        return {"description_length": (places[self._deciding].sum() + (share * values).sum()).item()}
