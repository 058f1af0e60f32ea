"""A decoder whose rows stay near convex combinations of the rows from which it starts."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fsae.autoencoders.initialisation import nearest


class Archetypes(nn.Module):
    """The parts of a decoder W_dec = e^m (M C + L), which gradient steps move in its place (RA-SAE, arXiv 2502.12892).

    C are the archetypes, the rows from which the decoder starts; the authors take centroids of k-means. M mixes them:
    its entries are not negative and each row has the sum 1. Rows of L are at most `distance` long. At the start M = 1,
    L = 0 and m = 0. W_dec itself remains the weight that everything else reads.

    Args:
        W_dec: (d_sae, d_out) the first rows.
        distance: the largest norm of a row of L.

    Attributes:
        points: C, (d_sae, d_out).
        mixture: M, (d_sae, d_sae).
        offset: L, (d_sae, d_out).
        log_scale: m.
    """

    points: Tensor

    def __init__(self, W_dec: Float[Tensor, "d_sae d_out"], distance: float):
        super().__init__()
        self._distance = distance
        self.register_buffer("points", torch.empty_like(W_dec))
        self.mixture = nn.Parameter(self.points.new_empty(len(W_dec), len(W_dec)))
        self.offset = nn.Parameter(torch.empty_like(self.points))
        self.log_scale = nn.Parameter(self.points.new_empty(()))
        self.begin(W_dec)

    @torch.no_grad()
    def begin(self, W_dec: Float[Tensor, "d_sae d_out"]) -> None:
        """Let the decoder's present rows be the archetypes."""
        self.points.copy_(W_dec)
        self.mixture.zero_().fill_diagonal_(1.0)
        self.offset.zero_()
        self.log_scale.zero_()

    @torch.no_grad()
    def take_gradient(self, W_dec: nn.Parameter) -> None:
        """Replace the gradient of W_dec by those of its parts."""
        grad = W_dec.grad
        assert grad is not None
        scaled = self.log_scale.exp() * grad
        self.mixture.grad, self.offset.grad = scaled @ self.points.T, scaled
        self.log_scale.grad = (grad * W_dec).sum()
        W_dec.grad = None

    @torch.no_grad()
    def constrain(self, W_dec: nn.Parameter) -> None:
        """Return the parts to where they may be, as the authors do, and W_dec to what they make."""
        self.mixture.clamp_min_(0)
        # A row that has lost all entries stays zero.
        self.mixture.div_(self.mixture.sum(dim=1, keepdim=True) + 1e-8)
        self.offset.copy_(self._shortened(self.offset))
        W_dec.copy_(self.log_scale.exp() * (self.mixture @ self.points + self.offset))

    @torch.no_grad()
    def place(self, latents: Int[Tensor, " latents"], W_dec: nn.Parameter) -> None:
        """Let rows of W_dec that were replaced begin at the archetype that is nearest to each, moved toward the row by
        at most `distance`."""
        wanted = W_dec[latents] / self.log_scale.exp()
        archetypes = nearest(wanted, self.points)
        self.mixture[latents] = nn.functional.one_hot(archetypes, len(self.points)).to(self.mixture)
        self.offset[latents] = self._shortened(wanted - self.points[archetypes])
        W_dec[latents] = self.log_scale.exp() * (self.points[archetypes] + self.offset[latents])

    def _shortened(self, offset: Float[Tensor, "latents d_out"]) -> Float[Tensor, "latents d_out"]:
        norms = offset.norm(dim=1, keepdim=True)
        return offset * (self._distance / norms.clamp_min(1e-30)).clamp_max(1)
