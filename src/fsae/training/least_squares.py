"""The decoder and bias of least squared error at fixed codes, found from sums over any number of samples."""

from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.codes import Codes, Pattern, add_rows

# Samples whose sparse codes are put by before their products are added up: going through the whole of a d_sae x d_sae
# matrix takes as long as the products of some thousand samples.
_SAMPLES_AT_ONCE = 8192


class Solution(NamedTuple):
    """A decoder and its bias, in float64, and the condition number (in the 1-norm, estimated) of their equations."""

    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    condition: float


class _Sums(NamedTuple):
    """Over samples, in float64; of z z' only the upper triangle means anything."""

    zz: Float[Tensor, "d_sae d_sae"]
    zx: Float[Tensor, "d_sae d_in"]
    z: Float[Tensor, " d_sae"]
    x: Float[Tensor, " d_in"]


class LeastSquares:
    """What a decoder's closed form needs of the samples seen: means of z z', z x', z and x, whatever their number.

    z are codes, x what they shall be decoded to. Batches' sums are added up in float64; of sparse codes each sample
    costs the square of its active latents. Memory is d_sae x (d_sae + d_in) numbers and the codes of a few thousand
    samples.
    """

    def __init__(self):
        self.samples = 0.0
        # None where nothing was seen.
        self._sums: _Sums | None = None
        self._waiting: list[Codes] = []

    @torch.no_grad()
    def add(self, codes: Codes, targets: Float[Tensor, "batch d_in"]) -> None:
        """Count samples in."""
        codes = codes.with_values(codes.values.detach())
        if self._sums is None:
            (n, d), new = (codes.shape[1], targets.shape[1]), partial(targets.new_zeros, dtype=torch.float64)
            self._sums = _Sums(new(n, n), new(n, d), new(n), new(d))
        zz, zx, z, x = self._sums
        add_rows(zx, codes.transposed_product(targets))
        z += codes.column_sums()
        x += targets.sum(0)
        self.samples += len(targets)
        if codes.pattern is None:
            codes.add_gram(zz)
            return
        self._waiting.append(codes)
        if sum(each.shape[0] for each in self._waiting) >= _SAMPLES_AT_ONCE:
            self._catch_up()

    def decay(self, factor: float) -> None:
        """Let what was seen so far count only by a factor, 0 to 1."""
        if factor == 0:
            self.samples, self._sums, self._waiting = 0.0, None, []
        elif factor < 1 and self._sums is not None:
            self._catch_up()
            self.samples *= factor
            for each in self._sums:
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
        """The one minimum over W and b together of

            mean |x - z W - b|^2 + alpha |W|^2 + beta |b|^2 + mu |W - W_dec|^2 + nu |b - b_dec|^2

        (Budd et al. 2025, arXiv 2505.11836, the decoder's step of PAM-SGD; there squares are summed over N samples, and
        the other weights are N times as large). With S = 1 + beta + nu and means over all samples,

            ((alpha + mu) I + mean z z' - mean z mean z' / S) W = mu W_dec + mean z x' - mean z (mean x + nu b_dec)' / S
            b = (mean x + nu b_dec - W' mean z) / S,

        solved by Cholesky's method in float64. Waits for the device.

        Args:
            W_dec, b_dec: where it is costly to move from.

        Raises:
            ValueError: the equations have no single solution, or something seen was not finite.
        """
        assert self._sums is not None, "nothing was seen"
        self._catch_up()
        zz, zx, z, x = (each / self.samples for each in self._sums)
        S = 1 + beta + nu
        wanted = x + nu * b_dec.double()
        A = zz.addr_(z, z, alpha=-1 / S).triu_()
        A += A.triu(1).T
        A.diagonal().add_(alpha + mu)
        C = zx.addr_(z, wanted, alpha=-1 / S).add_(W_dec.double(), alpha=mu)
        size = torch.linalg.matrix_norm(A, 1).item()
        L, failed = torch.linalg.cholesky_ex(A)
        if failed.item():
            if not torch.isfinite(A).all():
                raise ValueError("codes became infinite or NaN; lower trainer.lr or set trainer.clip_norm")
            raise ValueError(
                f"the decoder's equations have no single solution (d_sae {len(z)}, {self.samples:,.0f} samples, "
                f"{int((z == 0).sum())} latents that never fired, trainer.alpha + trainer.mu "
                f"{alpha + mu:g}); raise trainer.alpha or trainer.mu"
            )
        W = torch.cholesky_solve(C, L)
        return Solution(W, (wanted - z @ W) / S, _condition(L, size))

    def _catch_up(self) -> None:
        if not self._waiting:
            return
        assert self._sums is not None
        codes, self._waiting = self._waiting, []
        pattern = Pattern.stacked([each.pattern for each in codes if each.pattern is not None])
        Codes(torch.cat([each.values for each in codes]), pattern).add_gram(self._sums.zz)

    def state_dict(self) -> dict[str, Any]:
        waiting = [
            {"values": each.values, "columns": each.pattern.columns, "offsets": each.pattern.offsets}
            for each in self._waiting
            if each.pattern is not None
        ]
        return {"samples": self.samples, "sums": list(self._sums or ()), "waiting": waiting}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.samples = state["samples"]
        self._sums = _Sums(*(each.to(device) for each in state["sums"])) if state["sums"] else None
        self._waiting = []
        for each in state["waiting"]:
            assert self._sums is not None
            values, columns, offsets = (each[name].to(device) for name in ("values", "columns", "offsets"))
            self._waiting.append(Codes(values, Pattern(columns, offsets, len(self._sums.z))))


def _condition(L: Float[Tensor, "n n"], size: float) -> float:
    """Of L L', whose 1-norm is `size`: LAPACK's estimate (Higham 1988), which reads L a few times."""
    from scipy.linalg import get_lapack_funcs  # a quarter of a second, which --help can do without

    factor = L.cpu().numpy()
    (pocon,) = get_lapack_funcs(["pocon"], (factor,))
    reciprocal, _ = pocon(factor, size, uplo="L")
    return 1 / reciprocal if reciprocal > 0 else float("inf")
