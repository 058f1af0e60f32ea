"""`decoder_projection`: the n-th largest projection of samples onto decoder rows, which is least at the right l0."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Factor
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.parts import equal_parts, left_to_codes
from fsae.evaluation.subject import Subject
from fsae.matching import unit_rows
from fsae.outputs.results import Meaning
from fsae.ranges import COUNT, between

# Half of a float32: numbers are found by their first and then by their last 16 bits.
_HALF = 2**16


@dataclass(frozen=True, kw_only=True)
class DecoderProjection(Evaluation, group="eval.decoder_projection"):
    """The n-th decoder projection (Chanin and Garriga-Alonso 2025, "Sparse but wrong", arXiv 2508.16560).

    s = (x - b_dec) W_dec' with rows of length 1, over a batch of B samples; the number is the (n B)-th largest of the
    B x d_sae entries of s, averaged over batches. An autoencoder whose l0 is too low mixes correlated features into
    each row, and one whose l0 is too high mixes rows as well: both raise projections of samples that lack the latent.
    So the number's curve against l0 has its minimum at the right l0, at least on data with known features.

    Attributes:
        samples: held-out samples.
        batch_size: samples per batch. The number is a quantile within a batch; compare runs at one size.
        share: n as a share of d_sae; below one half. The paper takes 12,000 of 32,768.
    """

    samples: int = field(default=16_384, metadata=COUNT)
    batch_size: int = field(default=2048, metadata=COUNT)
    share: float = field(default=0.375, metadata=between(above=0, below=0.5))

    in_sweeps: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = {
        "decoder_projection": Meaning("n-th largest projection onto decoder rows"),
    }

    @property
    def held_out(self) -> int:
        return self.samples

    def measure(self, subject: Subject) -> list[Measured]:
        """Return the number of each autoencoder, on the same samples."""
        batches = list(subject.held_out(self.samples, self.batch_size, "reading"))
        found = []
        for autoencoder in subject.each("projecting onto decoder rows"):
            pairs = [(each.inputs.to(autoencoder.W_dec), each.targets.to(autoencoder.W_dec)) for each in batches]
            unit = equal_parts(autoencoder.ends.target, torch.cat([targets for _, targets in pairs]))
            total = 0.0
            for pair in pairs:
                subject.heartbeat()
                total += nth_projection(autoencoder, left_to_codes(autoencoder, *pair), self.share, unit)
            found.append({"decoder_projection": total / len(pairs)})
        return [Measured(own) for own in subject.by_run(found)]


@torch.no_grad()
def nth_projection(
    autoencoder: Autoencoder,
    x: Float[Tensor, "batch d_out"],
    share: float,
    unit: Factor = 1.0,
    latents_at_once: int = 1024,
) -> float:
    """Return the n-th largest projection of samples onto decoder rows, n = share x batch x d_sae (at least 1).

    Samples and rows are multiplied by `unit`. Only the projections onto `latents_at_once` rows are in memory at a time;
    they are computed twice.
    """
    directions = unit_rows(autoencoder.W_dec.float() * unit)
    centred = (x.to(directions) - autoencoder.b_dec.float()) * unit

    def projections() -> Iterator[Tensor]:
        for rows in directions.split(latents_at_once):
            yield centred @ rows.T

    return nth_largest(projections, max(1, round(share * autoencoder.d_sae)) * len(x))


def nth_largest(parts: Callable[[], Iterator[Tensor]], n: int) -> float:
    """Return the n-th largest of the float32 numbers in parts, which are made twice and not kept.

    The first pass counts numbers by their first 16 bits, the second those with the right first bits by their last ones.
    """
    counts = sum(torch.bincount(_ordered(part) // _HALF, minlength=_HALF) for part in parts())
    assert isinstance(counts, Tensor)
    first, n = _bin_of(counts, n)
    counts = torch.zeros(_HALF, dtype=torch.long, device=counts.device)
    for part in parts():
        keys = _ordered(part)
        counts += torch.bincount(keys[keys // _HALF == first] % _HALF, minlength=_HALF)
    last, _ = _bin_of(counts, n)
    key = first * _HALF + last - 2**31
    return torch.tensor(key if key >= 0 else key ^ (2**31 - 1), dtype=torch.int32).view(torch.float32).item()


def _ordered(numbers: Tensor) -> Tensor:
    """Return whole numbers from 0 to 2^32 - 1 in the order of float32 numbers."""
    bits = numbers.flatten().view(torch.int32)
    # The bits of positive numbers have the order of the numbers, the bits of negative numbers the reverse.
    return (bits ^ (bits >> 31 & (2**31 - 1))).long() + 2**31


def _bin_of(counts: Tensor, n: int) -> tuple[int, int]:
    """Return the bin of the n-th largest number, and its place among those of the bin."""
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, n))
    assert place < len(counts), "there are fewer numbers"
    return len(counts) - 1 - place, n - int(above[place] - counts.flip(0)[place])
