"""Top-AFA: as many latents as it takes to reach the norm of the input (Lee et al. 2025, arXiv 2503.24277)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import AffineMap, Encoding, SAELensForm
from fsae.autoencoders.settings import DecoderInit, SparseAutoencoderSettings
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern, lowered


@dataclass(frozen=True, kw_only=True)
class TopAFASettings(SparseAutoencoderSettings):
    """Settings of the top-AFA autoencoder: each sample has a number of active latents of its own, and no setting has
    a part in it."""

    saelens_names: ClassVar[tuple[str, ...]] = ("top_afa",)

    def __post_init__(self):
        super().__post_init__()
        if self.decoder_init is DecoderInit.zeros:
            raise ValueError(
                "arch.decoder_init is zeros, and arch TopAFA chooses latents by the lengths of what they write, so "
                "none would ever be on; choose another arch.decoder_init"
            )

    @property
    def reads_decoder(self) -> bool:
        return True

    def check_ends(self, ends: Ends) -> None:
        super().check_ends(ends)
        if not ends.plain:
            raise ValueError(
                "arch TopAFA compares the lengths of what its latents write with the norm of its input, so both must "
                "be vectors of one site, in one unit; set layout=autoencoder, or choose another arch"
            )

    def density(self, d_in: int, progress: float) -> float:
        # Products of scaled inputs with random directions are about normal. Of four times as many latents as there are
        # dimensions, the d_in / 4 longest have the norm of the input, and of more latents fewer.
        return min(0.5, d_in / (4 * self.width(d_in)))

    def build(self, ends: Ends | int, generator: torch.Generator) -> "TopAFA":
        return TopAFA(ends, self, generator)


class TopAFA(SparseAutoencoder):
    """An autoencoder with codes = relu(pre) at the latents of largest length, as many as bring their norm nearest to
    that of the centred input.

    With pre = (x - b_dec) W_enc + b_enc, the length of a latent is l_i = relu(pre_i) |W_dec_i|. In their order from
    the largest, the first k have the norm c_k = sqrt(sum l_i^2), and k >= 1 is the one with the least
    |c_k - |x - b_dec||. Latents of directions that are nearly orthogonal then have the norm of what they explain.
    Lengths are in float32 at least, their sums in float64, and the choice passes no gradient.

    The authors' code differs in two ways. It overwrites the last c_k with a large number, so that it never chooses all
    latents. It has no b_enc, which starts at zero here.
    """

    latents_compete = True

    def __init__(self, ends: Ends | int, settings: TopAFASettings, generator: torch.Generator):
        super().__init__(ends, settings, generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        with torch.no_grad():
            norms = (x.to(torch.promote_types(x.dtype, torch.float32)) - self.b_dec).norm(dim=1)
        raw = self.encoder_product(x, self._candidates(norms) if sparse else None)
        pre = raw.with_values(raw.values + raw.columns(self.b_enc))
        codes = pre.with_values(torch.relu(pre.values) * self._chosen(pre, norms))
        return Encoding(codes, AffineMap(x, self.W_enc, self.b_enc, centre=self.centre))

    @torch.no_grad()
    def _chosen(self, pre: Codes, norms: Float[Tensor, " batch"]) -> Bool[Tensor, "..."]:
        """Return which of the pre-activations are on, given the norms that the latents of a sample should have."""
        lengths = torch.relu(pre.values.to(norms.dtype)) * pre.columns(self._row_norms(norms.dtype))
        if pre.pattern is None:
            last = last_lengths(lengths, norms).unsqueeze(1)
        else:
            last = last_lengths(pre.pattern.padded(lengths), norms, self.d_in)[pre.pattern.rows]
        # Latents as long as the last one are on, too, so that their order does not count.
        return (lengths >= last) & (lengths > 0)

    def _candidates(self, norms: Float[Tensor, " batch"]) -> Callable[[Tensor], Pattern]:
        """Return a function that finds the entries that may be on, in the products of some samples after the others."""
        rest, row_norms = norms, self._row_norms(norms.dtype)

        def select(products: Tensor) -> Pattern:
            nonlocal rest
            own, rest = rest[: len(products)], rest[len(products) :]
            lengths = (products + self.b_enc).to(norms.dtype) * row_norms
            # Products may be rounded, and with them each norm.
            last = last_lengths(torch.relu(lengths), -lowered(-own, products.dtype, own), self.d_in)
            size = torch.maximum(last, row_norms.max())
            return Pattern.of_mask(lengths >= lowered(last, products.dtype, size).unsqueeze(1))

        return select

    def _row_norms(self, dtype: torch.dtype) -> Float[Tensor, " d_sae"]:
        return self.W_dec.detach().to(dtype).norm(dim=1)

    @property
    def stages(self) -> list[Callable[[Tensor, bool], Encoding]]:
        # Shorter codes would be more of them, because the sample's norm decides how many there are.
        return []

    def to_saelens(self) -> SAELensForm:
        return SAELensForm("top_afa", self.saelens_tensors("b_enc"), known=False)


def last_lengths(
    lengths: Float[Tensor, "batch latents"], norms: Float[Tensor, " batch"], count: int | None = None
) -> Float[Tensor, " batch"]:
    """Return the smallest of as many of the largest lengths of each sample as bring their norm nearest to its own.

    Args:
        lengths: not negative.
        norms: of the samples.
        count: of the largest lengths that are looked at first. A sample whose norm they do not reach is looked at again
            with more of them, for which a device would have to wait. None looks at all of them.
    """
    width = lengths.shape[1]
    longest = lengths.topk(width if count is None else min(count, width), dim=1).values
    # In float32 the shortest of many lengths would be lost in their sum.
    sums = longest.double().square().cumsum(1).sqrt()
    nearest = (sums - norms.unsqueeze(1)).abs().argmin(dim=1, keepdim=True)
    found = longest.gather(1, nearest).squeeze(1)
    if count is not None and count < width:
        short = ((sums[:, -1] < norms) & (longest[:, -1] > 0)).nonzero().squeeze(1)
        if len(short) > 0:
            found[short] = last_lengths(lengths[short], norms[short], 4 * count)
    return found
