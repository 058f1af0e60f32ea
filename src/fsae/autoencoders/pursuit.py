"""Pursuit: an encoder that takes one latent after another, each for the part of the input that is still unexplained."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Ends, Factor
from fsae.autoencoders.record import Encoding, SAELensForm
from fsae.autoencoders.selection import KSettings
from fsae.autoencoders.settings import EncoderInit, count_in, flag_in, number_in
from fsae.ranges import between
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern
from fsae.sparse.products import first_order, sum_rows

# The most entries of W_dec @ W_dec.T that are kept for a batch: 1 GiB in float32.
GRAM_ENTRIES = 2**28
# Scores that stay in a CPU's cache from step to step, and the least number of samples for which a product is fast.
_CACHED_ENTRIES = 2**18
_LEAST_ROWS = 16
# Exchanges between the latents at zero and the others in a non-negative least-squares problem. Nearly all need one.
EXCHANGES = 10


@dataclass(frozen=True, kw_only=True)
class PursuitSettings(KSettings):
    """Settings of the architectures that pursue: the encoder is the decoder, and rows are unit vectors.

    Attributes:
        k: the most latents per sample, taken one after another.
        residual_threshold: the norm of the unexplained part at which a sample takes no more latents, in units of the
            scaled activations; 0 for never.
        apply_b_dec_to_input: always true: what is explained is x - b_dec.
        decoder_norm: always `unit`. With a row of another norm a step leaves a part of what it explains.
        encoder_init: always `tied`.
    """

    encoder_init: EncoderInit = EncoderInit.tied
    residual_threshold: float = field(default=0.01, metadata=between(least=0, most=10**6))

    provides: ClassVar[frozenset[str]] = frozenset()
    affine_encoder: ClassVar[bool] = False
    fixed_k: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        for name, value, wanted in (
            ("encoder_init", self.encoder_init.name, "tied"),
            ("decoder_norm", self.decoder_norm.name, "unit"),
            ("apply_b_dec_to_input", str(self.apply_b_dec_to_input).lower(), "true"),
        ):
            if value != wanted:
                raise ValueError(
                    f"arch.{name} is {value}, but arch {self.name} explains x - b_dec by unit rows of the decoder, "
                    f"which is its encoder, too; leave arch.{name} at {wanted}"
                )

    @property
    def reads_decoder(self) -> bool:
        return True

    def check_ends(self, ends: Ends) -> None:
        super().check_ends(ends)
        if not ends.plain:
            raise ValueError(
                f"arch {self.name} explains vectors by the rows that read them, which needs one site with one scale at "
                "both ends; set layout=autoencoder, or choose another arch"
            )


class Pursuit(SparseAutoencoder):
    """An autoencoder without an encoder of its own: latents are taken by their product with the residual."""

    settings: PursuitSettings
    code_attributes = ("encode", "pursue")
    # Entries of the Gram matrix of the rows up to which it may be kept for a batch.
    gram_entries: int = GRAM_ENTRIES

    @abstractmethod
    def pursue(
        self, u: Float[Tensor, "batch d_in"], waits: bool
    ) -> tuple[Int[Tensor, "batch k"], Float[Tensor, "batch k"]]:
        """Return the latents that each sample takes, and their codes; a latent has the sum of its codes.

        Args:
            u: the vectors to explain.
            waits: whether to check after each step if any sample continues, which waits for the device.
        """

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        with torch.autocast(x.device.type, enabled=False):
            latents, values = self.pursue(x - self.b_dec, waits=sparse)
        if not sparse:
            codes = values.new_zeros(len(x), self.d_sae).scatter_add(1, latents, values)
            return Encoding(Codes(codes), None)
        on = values.detach() != 0
        rows = on.nonzero()[:, 0]
        pattern = Pattern.of_places(rows, latents[on], (len(x), self.d_sae))
        # index_select's backward adds in a fixed order.
        places = on.flatten().nonzero().squeeze(1)
        return Encoding(Codes(values.flatten().index_select(0, places), pattern), None)

    @torch.no_grad()
    def change_unit(self, scale: Factor, target_scale: Factor) -> None:
        """See `Autoencoder.change_unit`; rows stay, and the threshold of the residual has the new unit."""
        assert not isinstance(scale, Tensor), "there is one part"
        self.b_dec.div_(scale)
        self.settings = replace(self.settings, residual_threshold=self.settings.residual_threshold / scale)


@dataclass(frozen=True, kw_only=True)
class MatchingPursuitSettings(PursuitSettings):
    """Settings of matching pursuit: each latent takes the whole product of its row with the residual.

    Attributes:
        k: the most steps per sample. A latent may be taken more than once.
        stop_on_duplicate_support: a sample takes no more latents after a step that took none that is new.
    """

    stop_on_duplicate_support: bool = True

    saelens_names: ClassVar[tuple[str, ...]] = ("matching_pursuit",)

    def build(self, ends: Ends | int, generator: torch.Generator) -> "MatchingPursuit":
        return MatchingPursuit(ends, self, generator)

    def saelens_shapes(self, ends: Ends | int) -> dict[str, tuple[int, ...]]:
        return _shapes_of_pursuit(super().saelens_shapes(ends))

    @classmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        # Null stands for the width of the input.
        steps = "d_in" if config.get("max_iterations") is None else "max_iterations"
        return cls(
            d_sae=d_sae,
            k=count_in(config, steps),
            residual_threshold=number_in(config, "residual_threshold", 0.01),
            stop_on_duplicate_support=flag_in(config, "stop_on_duplicate_support", True),
            apply_b_dec_to_input=flag_in(config, "apply_b_dec_to_input", True),
        )


class MatchingPursuit(Pursuit):
    """An autoencoder that explains x - b_dec step by step (Costa et al. 2025, arXiv 2506.03093).

    r = x - b_dec; repeat: j = argmax_i W_dec_i . r, v = relu(W_dec_j . r), code_j += v, r -= v W_dec_j.

    The gradient goes through the codes of all steps; the choice of latents has none.
    """

    latents_compete = True

    def pursue(self, u: Tensor, waits: bool) -> tuple[Tensor, Tensor]:
        latents, values, first = self._match(u.detach(), waits)
        values: Tensor = _Steps.apply(u, self.W_dec, latents, values)  # pyright: ignore[reportAssignmentType]
        # A latent that is taken again has one code, at its first step.
        return latents, torch.zeros_like(values).scatter_add(1, first, values)

    @torch.no_grad()
    def _match(self, u: Tensor, waits: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the latent and the code of each step, and the first step that takes the same latent."""
        W = self.W_dec
        gram = W @ W.T if self._keeps_gram(len(u)) else None
        found = [self._match_some(some, W, gram, waits) for some in u.split(self._rows_at_once(u))]
        latents, values, first = (torch.cat(each) for each in zip(*found, strict=True))
        return latents, values, first

    def _match_some(self, u: Tensor, W: Tensor, gram: Tensor | None, waits: bool) -> tuple[Tensor, Tensor, Tensor]:
        settings, residual, scores = cast(MatchingPursuitSettings, self.settings), u.clone(), u @ W.T
        k = settings.k_of(self)
        steps = torch.arange(k, device=u.device).expand(len(u), -1)
        latents, values, first = torch.zeros_like(steps), u.new_zeros(steps.shape), steps.clone()
        done = torch.zeros(len(u), dtype=torch.bool, device=u.device)
        for step in range(k):
            taken = scores.argmax(1)
            rows = W.index_select(0, taken)
            code = torch.linalg.vecdot(residual, rows).relu().masked_fill(done, 0)
            residual.addcmul_(code.unsqueeze(1), rows, value=-1)
            again = latents[:, :step] == taken.unsqueeze(1)
            known = again.any(1) if step > 0 else torch.zeros_like(done)
            if step > 0:
                first[:, step] = torch.where(known, again.byte().argmax(1), step)
            latents[:, step], values[:, step] = taken, code
            # Without a positive product nothing changes any more.
            done |= code == 0
            if settings.stop_on_duplicate_support:
                done |= known
            if settings.residual_threshold > 0:
                done |= residual.norm(dim=1) < settings.residual_threshold
            if step + 1 == k or (waits and done.all()):
                break
            if gram is None:
                torch.mm(residual, W.T, out=scores)
            else:
                scores.addcmul_(gram.index_select(0, taken), code.unsqueeze(1), value=-1)
        return latents, values, first

    def _keeps_gram(self, batch: int) -> bool:
        """Return whether the Gram matrix of the rows takes less than the products that it saves, and has room."""
        return self.d_sae < (self.settings.k - 1) * batch and self.d_sae**2 <= self.gram_entries

    def _rows_at_once(self, u: Tensor) -> int:
        """Return the samples whose scores stay in a CPU's cache from step to step."""
        return max(1, len(u)) if u.is_cuda else max(_LEAST_ROWS, _CACHED_ENTRIES // self.d_sae)

    def to_saelens(self) -> SAELensForm:
        settings = cast(MatchingPursuitSettings, self.settings)
        config = {
            "residual_threshold": settings.residual_threshold,
            "max_iterations": settings.k,
            "stop_on_duplicate_support": settings.stop_on_duplicate_support,
        }
        return SAELensForm("matching_pursuit", {"W_dec": self.W_dec, "b_dec": self.b_dec}, config)


class _Steps(torch.autograd.Function):
    """The codes of matching pursuit's steps as a function of the first residual u and the rows W.

    With r_t the residual before step t, v_t = W_j . r_t and r_(t+1) = r_t - v_t W_j. Let q be the gradient in the
    residual after a step: the gradient in the step's code is a = grad_t - q . W_j, the one in its row is
    a r_t - v_t q, and the one in r_t is q + a W_j.
    """

    @staticmethod
    def forward(ctx, u, W, latents, values):
        ctx.save_for_backward(u, W, latents, values)
        return values.clone()

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        u, W, latents, values = ctx.saved_tensors
        (grad,) = grads
        pattern = Pattern.of_indices(latents, len(W))
        residual = u - pattern.decode(values.flatten(), W)
        q, of_rows = torch.zeros_like(u), u.new_empty(*latents.shape, u.shape[1])
        at_once = max(1, len(u)) if u.is_cuda else max(_LEAST_ROWS, _CACHED_ENTRIES // u.shape[1])
        whole = (latents, values, grad, residual, q, of_rows)
        for parts in zip(*(each.split(at_once) for each in whole), strict=True):
            _back(W, *parts)
        order, transposed = pattern.transposed
        flat = of_rows.view(-1, u.shape[1])
        return q, sum_rows(flat, order, transposed.offsets, flat.new_ones(len(flat))), None, None


def _back(
    W: Tensor, latents: Tensor, values: Tensor, grad: Tensor, residual: Tensor, q: Tensor, of_rows: Tensor
) -> None:
    """Go back through the steps of some samples: fill `of_rows` with the gradients in the rows, `q` with those in u.

    Args:
        residual: after the last step.
        q: zeros.
    """
    on = (values != 0).to(values.dtype)
    for step in reversed(range(latents.shape[1])):
        rows, code = W.index_select(0, latents[:, step]), values[:, step, None]
        residual.addcmul_(code, rows)
        a = ((grad[:, step] - torch.linalg.vecdot(q, rows)) * on[:, step]).unsqueeze(1)
        torch.mul(residual, a, out=of_rows[:, step])
        of_rows[:, step].addcmul_(code, q, value=-1)
        q.addcmul_(a, rows)


@dataclass(frozen=True, kw_only=True)
class OMPSettings(PursuitSettings):
    """Settings of orthogonal matching pursuit: after each step the codes of all latents taken so far are found again.

    Attributes:
        k: the most latents per sample.
    """

    saelens_names: ClassVar[tuple[str, ...]] = ("omp",)
    differentiable_codes: ClassVar[bool] = False

    def build(self, ends: Ends | int, generator: torch.Generator) -> "OMP":
        return OMP(ends, self, generator)

    def saelens_shapes(self, ends: Ends | int) -> dict[str, tuple[int, ...]]:
        return _shapes_of_pursuit(super().saelens_shapes(ends))

    @classmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        threshold = number_in(config, "residual_threshold", 0.01)
        return cls(d_sae=d_sae, k=count_in(config, "k"), residual_threshold=threshold)


class OMP(Pursuit):
    """An autoencoder with the non-negative codes of least squared error on the latents that pursuit takes.

    Latents are taken by their product with the residual, none twice. Codes have no gradient: only the dictionary
    learns.
    """

    latents_compete = True

    # Entries of the rows taken by the samples that are worked on together.
    entries_at_once: int = 2**24

    @torch.no_grad()
    def pursue(self, u: Tensor, waits: bool) -> tuple[Tensor, Tensor]:
        at_once = max(1, self.entries_at_once // (self.settings.k * self.d_in))
        found = [self._pursue(some, waits) for some in u.split(at_once)]
        latents, values = zip(*found, strict=True)
        return torch.cat(latents), torch.cat(values)

    def _pursue(self, u: Tensor, waits: bool) -> tuple[Tensor, Tensor]:
        settings, k, given = self.settings, self.settings.k_of(self), u.dtype
        # Equations are not solved in shorter types.
        u, W = (each.to(torch.promote_types(given, torch.float32)) for each in (u, self.W_dec))
        latents = torch.zeros(len(u), k, dtype=torch.long, device=u.device)
        values, rows = u.new_zeros(len(u), k), u.new_zeros(len(u), k, self.d_in)
        gram = torch.eye(k, dtype=u.dtype, device=u.device).repeat(len(u), 1, 1)
        products, residual = u.new_zeros(len(u), k), u
        done = torch.zeros(len(u), dtype=torch.bool, device=u.device)
        # A product of this size may be the rounding of none: a second copy of a row that is taken already has it.
        rounding = 64 * torch.finfo(u.dtype).eps * u.norm(dim=1)
        for step in range(k):
            scores = (residual @ W.T).scatter_(1, latents[:, :step], -torch.inf)
            best, taken = scores.max(1)
            done |= best <= rounding
            latents[:, step] = taken.masked_fill(done, 0)
            rows[:, step] = W.index_select(0, taken).masked_fill(done.unsqueeze(1), 0)
            of_new = rows[:, : step + 1] @ rows[:, step].unsqueeze(2)
            gram[:, : step + 1, step] = gram[:, step, : step + 1] = of_new.squeeze(2)
            gram[:, step, step] += done
            products[:, step] = torch.linalg.vecdot(rows[:, step], u)
            part = slice(step + 1)
            values[:, part] = non_negative_least_squares(gram[:, part, part], products[:, part], waits)
            residual = u - (values[:, None, part] @ rows[:, part]).squeeze(1)
            if settings.residual_threshold > 0:
                done |= residual.norm(dim=1) < settings.residual_threshold
            if waits and done.all():
                break
        return latents, values.to(given)

    def to_saelens(self) -> SAELensForm:
        config = {"residual_threshold": self.settings.residual_threshold, "k": self.settings.k}
        return SAELensForm("omp", {"W_dec": self.W_dec, "b_dec": self.b_dec}, config, known=False)


def non_negative_least_squares(
    gram: Float[Tensor, "batch k k"], products: Float[Tensor, "batch k"], waits: bool = True, exchanges: int = EXCHANGES
) -> Float[Tensor, "batch k"]:
    """Return the f >= 0 that minimise f' gram f / 2 - products' f, by exchanges of those at 0 and the others.

    Block principal pivoting (Portugal, Judice and Vicente 1994): all that have the wrong sign change sides at once.
    """
    free, f = torch.ones_like(products, dtype=torch.bool), products
    rounding = 64 * torch.finfo(products.dtype).eps * products.abs().amax(1, keepdim=True)
    for _ in range(exchanges):
        system = (gram * (free.unsqueeze(1) & free.unsqueeze(2))).add_(torch.diag_embed((~free).to(gram.dtype)))
        f = torch.linalg.solve_ex(system, products * free).result
        rising = products - (gram @ f.unsqueeze(2)).squeeze(2) > rounding
        wrong = torch.where(free, f < 0, rising)
        if waits and not wrong.any():
            break
        free ^= wrong
    return f.clamp_min(0)


def _shapes_of_pursuit(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if name in ("W_dec", "b_dec")}
