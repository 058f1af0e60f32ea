"""`mdl`: bits per sample that codes take once they are rounded as far as the error allows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.parts import equal_parts, left_to_codes
from fsae.evaluation.subject import Subject
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.ranges import COUNT, between
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern

# Numbers of bins per latent that are tried, coarsest first.
BINS = tuple(2**power for power in range(11))
# Steps of contributions that are tried, as shares of the samples' spread, coarsest first.
STEPS = tuple(2.0**-power for power in range(13))


@dataclass(frozen=True, kw_only=True)
class Mdl(Evaluation, group="eval.mdl"):
    """The description length of codes at a given error (MDL-SAEs, Ayonrinde et al. 2024, arXiv 2410.11179).

    Codes are rounded as coarsely as lets their fvu rise by at most `tolerance` of itself; the number is the bits of a
    rounded sample's codes, each latent encoded by itself: sum_i [H(p_i) + p_i H_i], with p_i the latent's density,
    H(p_i) the bits of whether it is on, and H_i those of its value while it is on.

    In the entropy form, as SAEBench has it, each latent has bins of equal width from 0 to its largest code, as many for
    all latents, and H_i is the entropy of its bins. In the other form, that of `description_length`, contributions
    f_i |W_dec_i| are rounded to multiples of one step for all latents, and H_i is the entropy of a normal variable of
    the contribution's deviation. The control has no dictionary: the bits in which the best code of normal samples with
    the covariance of these ones has the same error (reverse water-filling).

    Attributes:
        samples: held-out samples.
        batch_size: samples per batch.
        tolerance: share by which rounding may raise the fvu.
    """

    samples: int = field(default=8192, metadata=COUNT)
    batch_size: int = field(default=2048, metadata=COUNT)
    tolerance: float = field(default=0.05, metadata=between(above=0, most=1))

    in_sweeps: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = {
        **accompanied(
            "mdl_bits",
            Meaning("codes' entropy at the error mdl_fvu", unit="bits", better=Better.less),
            {"pca": "normal samples, without a dictionary"},
        ),
        "mdl_bits_normal": Meaning("the same with normal values and one step", unit="bits", shown=Shown.files),
        "mdl_fvu": Meaning("fvu of rounded codes", better=Better.less, shown=Shown.files),
        "mdl_bins": Meaning("bins per latent that this error needs", shown=Shown.files),
    }

    @property
    def held_out(self) -> int:
        return self.samples

    @torch.no_grad()
    def measure(self, subject: Subject) -> list[Measured]:
        """Return the bits of every autoencoder's codes, and the curve of bits and error over bins."""
        read = list(subject.held_out(self.samples, self.batch_size, "reading"))
        found = []
        for autoencoder in subject.each("rounding codes"):
            inputs = [batch.inputs.to(autoencoder.W_dec) for batch in read]
            targets = [batch.targets.to(autoencoder.W_dec) for batch in read]
            found.append(self.bits(RoundedCodes(autoencoder, inputs, targets)))
        return [
            Measured(
                [numbers for numbers, _ in own],
                content={"mdl_curves": [curve for _, curve in own] if len(own) > 1 else own[0][1]},
            )
            for own in subject.by_run(found)
        ]

    def bits(self, codes: "RoundedCodes") -> tuple[dict[str, float], dict[str, Any]]:
        """Return the numbers of one autoencoder, and its curve."""
        allowed = (1 + self.tolerance) * codes.fvu(codes.values)
        curve: dict[str, Any] = {"bins": [], "bits": [], "fvu": []}
        for bins in BINS:
            rounded, places = codes.in_bins(bins)
            curve["bins"].append(bins)
            curve["bits"].append(codes.entropy(places))
            curve["fvu"].append(codes.fvu(rounded))
            if curve["fvu"][-1] <= allowed:
                break
        halves = [codes.entropy(codes.in_bins(curve["bins"][-1])[1], half) for half in (0, 1)]
        step = next((step for step in STEPS if codes.fvu(codes.in_steps(step)) <= allowed), STEPS[-1])
        numbers = {
            "mdl_bits": curve["bits"][-1],
            # Two halves of the samples differ by sqrt(2) x their deviation, which is sqrt(2) x that of the whole.
            "mdl_bits_noise": abs(halves[0] - halves[1]) / 2,
            "mdl_bits_pca": gaussian_bits(codes.targets, curve["fvu"][-1]),
            "mdl_bits_normal": codes.normal_bits(step),
            "mdl_fvu": curve["fvu"][-1],
            "mdl_bins": float(curve["bins"][-1]),
        }
        return numbers, curve


class RoundedCodes:
    """An autoencoder's codes of some samples, which can be rounded and decoded.

    Args:
        autoencoder: in eval mode and in raw units.
        inputs, targets: the samples, in batches.

    Attributes:
        values: the codes that are not zero.
        targets: (samples, d) the vectors that reconstructions are compared with; if they have several parts, each with
            a variance of 1.
    """

    def __init__(self, autoencoder: Autoencoder, inputs: Sequence[Tensor], targets: Sequence[Tensor]):
        autoencoder.check_decodes_alone()
        self.targets = torch.cat(list(targets))
        unit = equal_parts(autoencoder.ends.target, self.targets)
        self.targets = self.targets * unit
        self._W_dec, self._b_dec = autoencoder.W_dec.detach() * unit, autoencoder.b_dec.detach() * unit
        self._norms, self._deciding = self._W_dec.norm(dim=1), autoencoder.deciding
        patterns, values = [], []
        for x in inputs:
            codes = autoencoder(x, True).codes.dense()
            patterns.append(Pattern.of_mask(codes != 0))
            values.append(codes[codes != 0])
        self._pattern, self.values = Pattern.stacked(patterns), torch.cat(values)
        pairs = zip(inputs, targets, strict=True)
        self._explained = torch.cat([left_to_codes(autoencoder, *pair) for pair in pairs]) * unit
        self._spread = (self.targets - self.targets.mean(0)).square().sum(1).mean().sqrt().item()

    def fvu(self, values: Float[Tensor, " entries"]) -> float:
        """Return the fvu of codes with these values in place of their own."""
        error = self._explained - (Codes(values, self._pattern).decode(self._W_dec) + self._b_dec)
        return error.square().sum(1).mean().item() / self._spread**2

    def in_bins(self, bins: int) -> tuple[Float[Tensor, " entries"], Int[Tensor, " entries"]]:
        """Return codes at the middles of bins of equal width from 0 to the latent's largest code, and their bins.

        Bins of negative codes have negative numbers.
        """
        columns, sizes = self._pattern.columns, self.values.abs()
        largest = torch.zeros_like(self._norms).scatter_reduce(0, columns, sizes, "amax")
        width = largest[columns] / bins
        places = (sizes / width).ceil().clamp(1, bins)
        return self.values.sign() * (places - 0.5) * width, (self.values.sign() * places).long()

    def in_steps(self, step: float) -> Float[Tensor, " entries"]:
        """Return codes whose contributions are rounded to multiples of a share of the samples' spread."""
        # A decoder row of zeros contributes nothing.
        unit = step * self._spread / self._norms.clamp_min(1e-30)[self._pattern.columns]
        return (self.values / unit).round() * unit

    def entropy(self, bins: Int[Tensor, " entries"], half: int | None = None) -> float:
        """Return the bits per sample of codes in these bins; of every second sample if a half, 0 or 1, is named."""
        samples, chosen = self._pattern.batch, slice(None)
        if half is not None:
            chosen = self._pattern.rows % 2 == half
            samples = (samples + 1 - half) // 2
        columns = self._pattern.columns[chosen]
        _, counts = torch.stack([columns, bins[chosen]]).unique(dim=1, return_counts=True)
        fired = torch.bincount(columns, minlength=len(self._norms)).double()
        # The sum over latents of n_i H_i is that of n_i log n_i, minus that over bins of n_ib log n_ib.
        values = torch.special.xlogy(fired, fired).sum() - torch.special.xlogy(counts.double(), counts).sum()
        return (self._places(fired / samples) + values / samples).item() / math.log(2)

    def normal_bits(self, step: float) -> float:
        """Return the bits per sample if contributions are normal while a latent is on, and rounded to this step."""
        columns, samples = self._pattern.columns, self._pattern.batch
        contributions = (self.values * self._norms[columns]).double()
        zero = torch.zeros(len(self._norms), dtype=torch.float64, device=columns.device)
        fired = torch.bincount(columns, minlength=len(zero)).double()
        mean = zero.index_add(0, columns, contributions) / fired.clamp_min(1)
        variance = zero.index_add(0, columns, (contributions - mean[columns]).square()) / fired.clamp_min(1)
        values = (0.5 * (2 * math.pi * math.e * variance / (step * self._spread) ** 2).log()).clamp_min(0)
        return (self._places(fired / samples) + (fired / samples * values).sum()).item() / math.log(2)

    def _places(self, share: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
        """Return the nats of which latents are on; those that follow others take none."""
        return (torch.special.entr(share) + torch.special.entr(1 - share))[self._deciding].sum()


@torch.no_grad()
def gaussian_bits(samples: Float[Tensor, "samples d"], fvu: float) -> float:
    """Return the bits per sample in which normal samples of the same covariance can be coded with this fvu.

    A principal component of variance v takes log2(v / w) / 2 bits if v is above the water level w, and none otherwise;
    the error is the sum of min(v, w) (Cover and Thomas, section 10.3.3).
    """
    variances = torch.linalg.eigvalsh(torch.cov(samples.double().T, correction=0)).clamp_min(0)
    low, high = torch.zeros((), dtype=torch.float64), variances.max()
    for _ in range(200):
        level = (low + high) / 2
        if torch.minimum(variances, level).sum() > fvu * variances.sum():
            high = level
        else:
            low = level
    above = variances[variances > low]
    return (0.5 * (above / low.clamp_min(1e-300)).log2()).sum().item()
