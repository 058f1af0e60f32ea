"""The Fisher penalty: the off-diagonal of a Fisher information matrix over the latents.

    F = (1/B) sum_b g_b g_b^T,    penalty = sum_{i != j} F_ij^2,

where g_b is a per-sample gradient over the latents. The penalty's `form` is the function that is differentiated. No
form builds the d_sae x d_sae matrix: with K = G G^T, the (B, B) inner products of the samples' gradients,

    sum_ij F_ij^2 = |K|^2 / B^2,    F_ii = (1/B) sum_b g_bi^2,

and K is cheap if the g_b are as sparse as the codes. If g is dense but low-rank (form `pre`), a second exact method
uses (d_in + 1)^2 matrices, and the cheaper method is chosen.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.record import AffineMap, ForwardRecord
from fsae.losses.term import LossTerm, Moment, TermValue
from fsae.ranges import WEIGHT
from fsae.sparse.codes import Codes
from fsae.sparse.gram import squared_gram_norm
from fsae.sparse.products import first_order

# A column counts as constant if it varies by at most this many roundings of its own size. They come from the sum in
# its mean, and from the computation of its values.
_ROUNDINGS = 16


class FisherForm(Enum):
    """The function whose gradient is g, and its argument.

    pre: sum h^2 in the pre-activations h, so g = 2h. FisherSAE's first version and its README.
    post: sum f^2 in the codes f, so g = 2f.
    correlation: as `post`, then g centred over the batch and each latent's column divided by its norm over the batch:
        F = correlation / B. FisherSAE's code as finally released.
    reconstruction: |x - x_hat|^2 / 2 in the pre-activations: the empirical Fisher matrix of a unit Gaussian decoder.
        The activation's derivative is 1 where a code is on and 0 elsewhere, in every architecture here, so
        g = 1[f != 0] (x_hat - x) W_dec^T. If rows of W_dec are free to have any norm, they are taken as unit
        vectors (f in units of its part of x_hat); otherwise short rows and long codes would evade the penalty.
    """

    pre = "pre"
    post = "post"
    correlation = "correlation"
    reconstruction = "reconstruction"


class FisherEstimator(Enum):
    """Estimators of the Fisher sums.

    `batch` is the definition applied to the batch, which is positive even for independent latents (about
    n^2 / (B - 1) for normalised columns). `unbiased` takes pairs of different samples only,

        1/(B(B-1)) sum_{b != c} [ (g_b . g_c)^2 - sum_i g_bi^2 g_ci^2 ],

    whose mean over batches is the population's value (for `correlation`, up to the normalisation by the batch)."""

    batch = "batch"
    unbiased = "unbiased"


class FisherScope(Enum):
    """The pairs of latents in the off-diagonal sum.

    all: every pair.
    block: the pairs within each block of latents, such as those of a layer of a cross-layer transcoder; every pair if
        the dictionary has no blocks.
    outside_groups: the pairs of latents of different groups, for `group_topk`: those of one group span a subspace
        together, and their codes should depend on each other.
    """

    all = "all"
    block = "block"
    outside_groups = "outside_groups"


class FisherSums(NamedTuple):
    """sum_{i != j} F_ij^2 and sum_i F_ii^2, both scalars under one estimator."""

    off_diagonal: Tensor
    diagonal: Tensor

    @property
    def ratio(self) -> Tensor:
        """Off-diagonal over diagonal: free of units, so comparable between runs. 0 if no latent is active."""
        return torch.where(self.diagonal != 0, self.off_diagonal / self.diagonal, 0.0)


@dataclass(frozen=True, kw_only=True)
class Fisher(LossTerm):
    """The off-diagonal sum of a batch, sum_{i != j} F_ij^2.

    It is logged as `fisher`, and its ratio to sum_i F_ii^2 as `fisher_ratio`.

    Attributes:
        form: the Fisher matrix.
        estimator: the batch's own value, or the population's without bias.
        scope: the pairs of latents that are summed.
    """

    form: FisherForm = FisherForm.correlation
    estimator: FisherEstimator = FisherEstimator.unbiased
    scope: FisherScope = FisherScope.all

    @property
    def fields_read(self) -> frozenset[str]:
        of_form = {"pre_activations"} if self.form is FisherForm.pre else set()
        return self.needs | of_form | ({"group_rank"} if self.scope is FisherScope.outside_groups else set())

    @property
    def needs_code_gradient(self) -> bool:
        return self.form is not FisherForm.reconstruction

    def sums(self, record: ForwardRecord) -> FisherSums:
        """Return the sums over the Fisher matrix of one batch; see `fisher_sums`."""
        return fisher_sums(record, self.form, self.estimator, self.scope)

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        sums = self.sums(record)
        return TermValue(sums.off_diagonal, {"fisher": sums.off_diagonal.detach(), "fisher_ratio": sums.ratio.detach()})


@dataclass(frozen=True, kw_only=True)
class RandomSign(Fisher):
    """The Fisher penalty with a random sign for each pair of latents: sum_{i != j} s_i s_j F_ij^2.

    The signs s_i = 1 or -1 are drawn for each batch, so that signs of pairs are zero on average and uncorrelated. The
    penalty has the terms of the Fisher penalty, each with a gradient of the same size, and no direction: half of the
    pairs are pulled together. It is the control for what a force of this form and size changes by itself. The sums are
    logged as by the Fisher penalty, and measured without signs.

    Attributes:
        form, estimator, scope: as in the Fisher penalty.
    """

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        signs = torch.randint(2, (len(record.W_dec),), generator=moment.generator)
        positive = signs.to(record.W_dec, non_blocking=True)
        sums = self.sums(record)
        # Pairs of one sign, twice, minus all pairs.
        of_one_sign = [self.sums(_of_latents(record, chosen)).off_diagonal for chosen in (positive, 1 - positive)]
        value = 2 * (of_one_sign[0] + of_one_sign[1]) - sums.off_diagonal
        return TermValue(value, {"fisher": sums.off_diagonal.detach(), "fisher_ratio": sums.ratio.detach()})


def _of_latents(record: ForwardRecord, chosen: Float[Tensor, " d_sae"]) -> ForwardRecord:
    """Return the record with zeros for the latents that are not chosen, in all that the Fisher sums read."""
    pre, codes = record.pre_activations, record.codes
    if pre is not None:
        scale = chosen if pre.scale is None else pre.scale * chosen
        pre = replace(pre, bias=pre.bias * chosen, scale=scale)
    return replace(
        record,
        codes=codes.with_values(codes.values * codes.columns(chosen)),
        pre_activations=pre,
    )


@dataclass(frozen=True, kw_only=True)
class NoPenalty(Fisher):
    """No penalty: the Fisher sums are measured, and nothing is added to the objective.

    Attributes:
        weight, warm_up, decay: always 0.
    """

    weight: float = field(default=0.0, metadata=WEIGHT)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight", "warm_up", "decay"):
            if (value := getattr(self, name)) != 0:
                raise ValueError(
                    f"loss.penalty.{name} is {value:g}, and has no effect with penalty=none; choose penalty=fisher, or "
                    f"leave loss.penalty.{name} out"
                )


def fisher_of(terms: Iterable[LossTerm]) -> Fisher:
    """Return the term that says in which form the Fisher sums are measured; the default form if there is none."""
    return next((term for term in terms if isinstance(term, Fisher)), NoPenalty())


def with_fisher_measured(terms: Mapping[str, LossTerm]) -> dict[str, LossTerm]:
    """Return the terms, and one that measures the Fisher sums if none of them does."""
    measuring = fisher_of(terms.values())
    if measuring in terms.values():
        return dict(terms)
    assert "fisher" not in terms, "the name of the measured term"
    return {**terms, "fisher": measuring}


def fisher_sums(
    record: ForwardRecord, form: FisherForm, estimator: FisherEstimator, scope: FisherScope = FisherScope.all
) -> FisherSums:
    """Return the two sums over the Fisher matrix of one batch, differentiable in all that the record depends on.

    Raises:
        ValueError: the unbiased estimator of a batch of one sample.
    """
    _check_size(record.codes, estimator)
    ends = record.block_ends if scope is FisherScope.block else None
    match form:
        case FisherForm.pre:
            assert record.pre_activations is not None
            each = [_affine_moments(pre) for pre in _maps_of(record.pre_activations, ends)]
        case FisherForm.post:
            each = [_moments(codes.map(lambda f: 2 * f)) for codes in _codes_of(record.codes, ends)]
        case FisherForm.correlation:
            each = [_normalised_moments(codes) for codes in _codes_of(record.codes, ends)]
        case FisherForm.reconstruction:
            each = [_moments(g) for g in _codes_of(_reconstruction_gradient(record), ends)]
    found = [moments.sums(estimator) for moments in each]
    sums = found[0] if len(found) == 1 else FisherSums(*(torch.stack(part).sum() for part in zip(*found, strict=True)))
    if scope is not FisherScope.outside_groups:
        return sums
    within = _group_moments(record, form).sums(estimator)
    return FisherSums(sums.off_diagonal - within.off_diagonal, sums.diagonal)


def _codes_of(codes: Codes, ends: tuple[int, ...] | None) -> list[Codes]:
    """Return the codes of each block, or all in one."""
    return [codes] if ends is None else [block for _, block in codes.blocks(ends)]


def _maps_of(pre: AffineMap, ends: Sequence[int] | None) -> list[AffineMap]:
    """Return the affine map to the latents of each block, or to all in one."""
    if ends is None:
        return [pre]
    sizes = [end - begin for begin, end in pairwise([0, *ends])]
    scales = [None] * len(sizes) if pre.scale is None else pre.scale.split(sizes)
    parts = zip(pre.directions.split(sizes, dim=1), pre.bias.split(sizes), scales, strict=True)
    return [replace(pre, directions=directions, bias=bias, scale=scale) for directions, bias, scale in parts]


def _check_size(codes: Codes, estimator: FisherEstimator) -> None:
    if estimator is FisherEstimator.unbiased and codes.shape[0] < 2:
        raise ValueError(
            "the unbiased estimator of pairs of samples needs at least two samples per batch; raise trainer.batch_size"
        )


class _Moments(NamedTuple):
    """Moments of per-sample gradients g (B, n) that the two estimators need.

    Attributes:
        gram: sum_bc (g_b . g_c)^2.
        column: sum_i (sum_b g_bi^2)^2.
        within: sum_b |g_b|^4 and sum_bi g_bi^4, the shares of single samples in these; computed on demand.
    """

    batch: int
    gram: Tensor
    column: Tensor
    within: Callable[[], tuple[Tensor, Tensor]]

    def sums(self, estimator: FisherEstimator) -> FisherSums:
        B = self.batch
        if estimator is FisherEstimator.batch:
            return FisherSums((self.gram - self.column) / B**2, self.column / B**2)
        pairs = B * (B - 1)
        of_gram, of_column = self.within()
        diagonal = (self.column - of_column) / pairs
        return FisherSums((self.gram - of_gram) / pairs - diagonal, diagonal)


def _group_moments(record: ForwardRecord, form: FisherForm) -> _Moments:
    """Return moments of the pairs of latents within groups: the sums of the groups' own."""
    assert record.group_rank is not None
    codes, mean = record.codes, None
    match form:
        case FisherForm.pre:
            assert record.pre_activations is not None
            codes = Codes(2 * record.pre_activations.dense())
        case FisherForm.post:
            codes = codes.map(lambda f: 2 * f)
        case FisherForm.correlation:
            codes, mean, _ = _normalised(codes)
        case FisherForm.reconstruction:
            codes = _reconstruction_gradient(record)
    codes, batch = codes.map(_wide), codes.shape[0]
    mean = codes.values.new_zeros(codes.shape[1]) if mean is None else mean
    gram = _group_grams(codes, mean, record.group_rank)

    def within() -> tuple[Tensor, Tensor]:
        # (g - mean)^2 is mean^2 at an entry without a code.
        squares = (codes.values - codes.columns(mean)).square() - codes.columns(mean.square())
        of_squares = _group_grams(codes.with_values(squares), -mean.square(), codes.shape[1] // len(gram))
        return of_squares.sum(), of_squares.diagonal(dim1=1, dim2=2).sum()

    return _Moments(batch, gram.square().sum(), gram.diagonal(dim1=1, dim2=2).square().sum(), within)


def _group_grams(codes: Codes, mean: Float[Tensor, " d_sae"], rank: int) -> Float[Tensor, "groups rank rank"]:
    """Return sum_b g_b g_b' of each group of latents, for g = codes - mean; a sparse pattern has whole groups."""
    groups = codes.shape[1] // rank
    if codes.pattern is None:
        each = codes.values.view(-1, groups, rank).transpose(0, 1)
        products = each.transpose(1, 2) @ each
    else:
        each = codes.values.view(-1, rank)
        which = codes.pattern.columns[::rank] // rank
        products = each.new_zeros(groups, rank, rank).index_add(0, which, each[:, :, None] * each[:, None, :])
    m, total = (vector.view(groups, rank) for vector in (mean, codes.column_sums()))
    mixed = m[:, :, None] * total[:, None, :]
    return products - mixed - mixed.transpose(1, 2) + codes.shape[0] * m[:, :, None] * m[:, None, :]


def _moments(g: Codes) -> _Moments:
    g = g.map(_wide)
    squares = g.map(torch.square)
    return _Moments(
        g.shape[0],
        squared_gram_norm(g),
        squares.column_sums().square().sum(),
        lambda: (squares.row_sums().square().sum(), squares.values.square().sum()),
    )


def _wide(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32, because the off-diagonal sum is a difference of two close sums."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _reconstruction_gradient(record: ForwardRecord) -> Codes:
    on = (record.codes.values != 0).to(record.reconstruction.dtype)
    # With the opposite sign, which products of two gradients do not show.
    sampled = record.codes.sample(record.error, record.W_dec)
    # Without weights the rows are unit vectors. Weights of rows of several parts may be sums of norms.
    if record.code_weights is not None:
        on = on / record.codes.columns(record.W_dec.norm(dim=1).clamp_min(1e-8))
    return sampled.with_values(sampled.values * on)


def _affine_moments(pre: AffineMap) -> _Moments:
    """Return moments of g = 2h, h = inputs @ weight + bias, without a (batch, d_sae) matrix if that is cheaper."""
    batch, d_in = pre.inputs.shape
    if batch <= d_in:
        return _moments(Codes(2 * _wide(pre.dense())))
    inputs, weight, bias = pre.inputs, pre.weight, pre.bias
    if pre.centre is not None:
        # The centre's gradient goes through the bias, as a vector: through the inputs it would need one per sample.
        inputs = inputs - pre.centre.detach()
        bias = bias - (pre.centre - pre.centre.detach()) @ weight
    inputs, weight, bias = _wide(inputs), _wide(weight), _wide(bias)
    X = torch.cat([inputs, inputs.new_ones(batch, 1)], dim=1)
    W = torch.cat([weight, bias.unsqueeze(0)])
    gram, column = _LowRankMoments.apply(X, W)  # pyright: ignore[reportGeneralTypeIssues]

    def within() -> tuple[Tensor, Tensor]:
        squares = (2 * _wide(pre.dense())).square()
        return squares.sum(1).square().sum(), squares.square().sum()

    return _Moments(batch, 16 * gram, 16 * column, within)


class _LowRankMoments(torch.autograd.Function):
    """The sums |HH'|^2 and sum_i (sum_b h_bi^2)^2 of H = XW, for X (batch, d) and W (d, n) with d the smallest.

    With C = X'X and M = WW' they are tr(CMCM) and sum_i (w_i' C w_i)^2. The gradients share CW and CM with them: four
    products over d x d x n in all, compared with six by autograd alone.
    """

    @staticmethod
    def forward(ctx, X, W):
        C, M = X.T @ X, W @ W.T
        CW, CM = C @ W, C @ M
        columns = (W * CW).sum(0)
        ctx.save_for_backward(X, W, M, CW, CM, columns)
        return (CM * CM.T).sum(), columns.square().sum()

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        X, W, M, CW, CM, columns = ctx.saved_tensors
        of_gram, of_column = grads
        needs_X, needs_W = ctx.needs_input_grad
        grad_X = grad_W = None
        if needs_X:
            of_C = of_gram * (M @ CM) + of_column * ((W * columns) @ W.T)
            grad_X = 4 * X @ of_C
        if needs_W:
            grad_W = torch.addcmul(4 * of_gram * (CM @ CW), CW, 4 * of_column * columns)
        return grad_X, grad_W


def _normalised_moments(codes: Codes) -> _Moments:
    scaled, mean, absent = _normalised(codes)
    return _moments(scaled) if scaled.pattern is None else _centred_moments(scaled, mean, absent)


def _normalised(codes: Codes) -> tuple[Codes, Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """Return S, m and the number of samples without an entry of each latent, with S - m = g.

    g = (2f - mean) / (|2f - mean| + 1e-8), with columns over the batch.

    With S = 2f / norm and m = mean / norm, S stays as sparse as the codes (`_centred_moments`).
    Columns without a zero are centred in place: they are not sparse, and if they hardly vary, the correction would be a
    difference of huge numbers. A column that varies by no more than rounding is constant: its g is 0, and no gradient
    passes through it.
    """
    batch = codes.shape[0]
    doubled = codes.map(lambda f: 2 * _wide(f))
    if codes.pattern is None:
        centred = (doubled.values - doubled.values.mean(0)) * _varies(doubled)
        none = centred.new_zeros(centred.shape[1])
        return Codes(centred / _column_norms(centred.square().sum(0))), none, none
    mean = doubled.column_sums() / batch
    # sum_b (f - mean)^2, from the stored entries and the zeros that are not stored.
    absent = batch - doubled.map(torch.ones_like).column_sums()
    varies = _varies(doubled)
    deviations = doubled.with_values((doubled.values - doubled.columns(mean)).square()).column_sums() * varies
    norms = _column_norms(deviations + absent * mean.square())
    centre = torch.where(absent == 0, mean, 0.0)
    deviation = (doubled.values - doubled.columns(centre)) * doubled.columns(varies)
    scaled = doubled.with_values(deviation / doubled.columns(norms))
    return scaled, (mean - centre) / norms, absent


def covariance_sums(codes: Codes, estimator: FisherEstimator) -> FisherSums:
    """Return the two sums over the covariance matrix of one batch's codes, differentiable in them.

    Raises:
        ValueError: the unbiased estimator of a batch of one sample.
    """
    _check_size(codes, estimator)
    codes = codes.map(_wide)
    batch = codes.shape[0]
    if codes.pattern is None:
        return _moments(Codes(codes.values - codes.values.mean(0))).sums(estimator)
    mean = codes.column_sums() / batch
    absent = batch - codes.map(torch.ones_like).column_sums()
    centre = torch.where(absent == 0, mean, 0.0)
    shifted = codes.with_values(codes.values - codes.columns(centre))
    return _centred_moments(shifted, mean - centre, absent).sums(estimator)


def _centred_moments(codes: Codes, m: Float[Tensor, " d_sae"], absent: Float[Tensor, " d_sae"]) -> _Moments:
    """Return moments of g = codes - m, from sparse codes S and the mean m of each column.

    The Gram matrix is SS' + a1' + 1a', a = m'm / 2 - Sm: centring costs a correction of rank two, and the squared norm
    is

        |SS'|^2 + 4 a'SS'1 + 2B a'a + 2 (a'1)^2.

    Args:
        absent: number of samples in which a latent has no entry.
    """
    batch = codes.shape[0]

    def over_entries(power: int) -> Tensor:
        """Return sum_b (s_bi - m_i)^power per column, over entries and absent zeros together."""
        there = codes.with_values((codes.values - codes.columns(m)) ** power).column_sums()
        return there + absent * (-m) ** power

    def times(vector: Float[Tensor, " d_sae"]) -> Float[Tensor, " batch"]:
        return codes.with_values(codes.values * codes.columns(vector)).row_sums()

    a = m.square().sum() / 2 - times(m)
    gram_sums = times(codes.column_sums())
    return _Moments(
        batch,
        squared_gram_norm(codes) + 4 * (a @ gram_sums) + 2 * batch * a.square().sum() + 2 * a.sum().square(),
        over_entries(2).square().sum(),
        lambda: ((codes.map(torch.square).row_sums() + 2 * a).square().sum(), over_entries(4).sum()),
    )


@torch.no_grad()
def _varies(codes: Codes) -> Float[Tensor, " d_sae"]:
    """Return 1 for a column that varies over the batch by more than rounding of its largest entry, else 0."""
    batch, width = codes.shape
    values = codes.values.detach()
    if codes.pattern is None:
        most, least = values.amax(0), values.amin(0)
    else:
        # A column with fewer entries than samples has a zero.
        entries = codes.map(torch.ones_like).column_sums()
        most, least = (
            torch.where(entries < batch, 0.0, end).to(values.dtype)
            for end in (values.new_full((width,), -torch.inf), values.new_full((width,), torch.inf))
        )
        columns = codes.pattern.columns.long().flatten()
        most.scatter_reduce_(0, columns, values.flatten(), "amax")
        least.scatter_reduce_(0, columns, values.flatten(), "amin")
    rounding = _ROUNDINGS * torch.finfo(values.dtype).eps * torch.maximum(most.abs(), least.abs())
    return (most - least > rounding).to(values.dtype)


def _column_norms(sums_of_squares: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """Return norms plus 1e-8; a constant column gets gradient 0, because the square root's own is infinite."""
    alive = sums_of_squares > 0
    return torch.where(alive, sums_of_squares, 1.0).sqrt() * alive + 1e-8
