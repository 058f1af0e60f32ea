"""The decoder and bias of least squared error at fixed codes, found from sums over any number of samples."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.sparse.codes import Codes
from fsae.sparse.gram import SAMPLES_AT_ONCE, GramSum


class Solution(NamedTuple):
    """A decoder and its bias, in float64, with the factor and the norm of their equations A W = C.

    Attributes:
        factor: U of A = U'U, upper triangular.
        norm: A's 1-norm.
    """

    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    factor: Float[Tensor, "d_sae d_sae"]
    norm: Float[Tensor, ""]

    def condition(self) -> float:
        """Return A's condition number in the 1-norm, by LAPACK's estimate (Higham 1988), which reads U on the CPU."""
        from scipy.linalg import get_lapack_funcs  # takes a quarter of a second, which --help does not need

        factor = self.factor.cpu().numpy()
        (pocon,) = get_lapack_funcs(["pocon"], (factor,))
        reciprocal, _ = pocon(factor, self.norm.item(), uplo="U")
        return 1 / reciprocal if reciprocal > 0 else float("inf")


class _Sums(NamedTuple):
    """Sums over samples, in float64."""

    zz: GramSum
    zx: Float[Tensor, "d_sae d_in"]
    z: Float[Tensor, " d_sae"]
    x: Float[Tensor, " d_in"]


class LeastSquares:
    """Statistics of the samples seen that a decoder's closed form needs: means of z z', z x', z and x.

    z are codes, and x are the targets of decoding. All products are computed in float64 for every type of inputs: for
    latents that hardly vary, or vary only together, the difference mean z z' - mean z mean z' is as small as the ridge.
    Memory is d_sae x (d_sae + d_in) numbers and the codes of a few thousand samples, however many samples were seen;
    solving takes three times as much in addition.
    """

    def __init__(self, samples_at_once: int = SAMPLES_AT_ONCE):
        self.samples, self._samples_at_once = 0.0, samples_at_once
        # None if no sample was seen.
        self._sums: _Sums | None = None

    @torch.no_grad()
    def add(self, codes: Codes, targets: Float[Tensor, "batch d_in"]) -> None:
        """Add samples to the statistics."""
        codes, targets = codes.with_values(codes.values.detach().double()), targets.double()
        if self._sums is None:
            (n, d), zeros = (codes.shape[1], targets.shape[1]), targets.new_zeros
            self._sums = _Sums(GramSum(zeros(n, n), self._samples_at_once), zeros(n, d), zeros(n), zeros(d))
        zz, zx, z, x = self._sums
        zz.add(codes)
        codes.add_transposed_product(zx, targets)
        z += codes.column_sums()
        x += targets.sum(0)
        self.samples += len(targets)

    def decay(self, factor: float) -> None:
        """Multiply the weight of all samples seen so far by a factor, 0 to 1."""
        if factor == 0:
            self.samples, self._sums = 0.0, None
        elif factor < 1 and self._sums is not None:
            self.samples *= factor
            zz, *others = self._sums
            for each in (zz.total, *others):
                each.mul_(factor)

    @torch.no_grad()
    def solve(
        self,
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        *,
        alpha: float = 0.0,
        beta: float = 0.0,
        mu: float = 0.0,
        nu: float = 0.0,
    ) -> Solution:
        """Return the only minimum over W and b together of

            mean |x - z W - b|^2 + alpha |W|^2 + beta |b|^2 + mu |W - W_dec|^2 + nu |b - b_dec|^2

        (Budd et al. 2025, arXiv 2505.11836, the decoder's step of PAM-SGD; there squares are summed over N samples, and
        the other weights are N times as large). With S = 1 + beta + nu and means over all samples,

            ((alpha + mu) I + mean z z' - mean z mean z' / S) W = mu W_dec + mean z x' - mean z (mean x + nu b_dec)' / S
            b = (mean x + nu b_dec - W' mean z) / S,

        solved by Cholesky's method in float64. The samples do not determine the rows of latents that never fired,
        and alpha alone would make these rows zero: they stay as they were. Waits for the device.

        Args:
            W_dec, b_dec: the weights from which mu and nu penalise moving.

        Raises:
            ValueError: the equations have no single solution, or something seen was not finite.
        """
        assert self._sums is not None, "nothing was seen"
        zz, zx, z, x = self._sums
        S, z = 1 + beta + nu, z / self.samples
        wanted = x / self.samples + nu * b_dec.double()
        # Only the upper triangle: Cholesky's method reads no more.
        A = (zz.total / self.samples).addr_(z, z, alpha=-1 / S).triu_()
        A.diagonal().add_(alpha + mu)
        sizes = torch.linalg.vector_norm(A, 1, dim=0) + torch.linalg.vector_norm(A, 1, dim=1) - A.diagonal().abs()
        U, failed = torch.linalg.cholesky_ex(A, upper=True)
        del A
        C = (zx / self.samples).addr_(z, wanted, alpha=-1 / S).add_(W_dec.double(), alpha=mu)
        W = torch.cholesky_solve(C, U, upper=True)
        never_fired = zz.total.diagonal() == 0
        # On a GPU a failed factor may show only in its numbers.
        if ((failed != 0) | ~torch.isfinite(W).all()).item():
            if not all(torch.isfinite(each).all() for each in (zz.total.triu(), zx)):
                raise ValueError("codes became infinite or NaN; lower trainer.lr or set trainer.clip_norm")
            raise ValueError(
                f"the decoder's equations have no single solution (d_sae {len(z)}, {self.samples:,.0f} samples, "
                f"{int(never_fired.sum())} latents that never fired, trainer.alpha + trainer.mu "
                f"{alpha + mu:g}); raise trainer.alpha or trainer.mu"
            )
        W = torch.where(never_fired.unsqueeze(1), W_dec.double(), W)
        return Solution(W, (wanted - z @ W) / S, U, sizes.max())

    def state_dict(self) -> dict[str, Any]:
        if self._sums is None:
            return {"samples": self.samples, "zz": None, "others": []}
        zz, *others = self._sums
        return {"samples": self.samples, "zz": zz.state_dict(), "others": others}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.samples, self._sums = state["samples"], None
        if state["zz"] is not None:
            zz = GramSum.of_state(state["zz"], device, self._samples_at_once)
            self._sums = _Sums(zz, *(each.to(device) for each in state["others"]))
