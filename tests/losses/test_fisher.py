"""The penalty's closed forms against its definition: gradients by autograd, the full matrix, double loops."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import PartNorm
from fsae.autoencoders.record import AffineMap, ForwardRecord
from fsae.autoencoders.settings import DecoderNorm
from fsae.losses.fisher import (
    Fisher,
    FisherEstimator,
    FisherForm,
    NoPenalty,
    RandomSign,
    fisher_of,
    fisher_sums,
    with_fisher_measured,
)
from fsae.losses.reconstruction import SquaredError
from fsae.losses.term import Moment
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern
from tests.architectures import (
    ARCHITECTURES,
    build,
    each_with,
    each_with_gradients_of_codes,
    each_with_pre_activations,
    gradients,
    relative_error,
    samples,
    twin,
)
from tests.autoencoders.test_layout import CROSSCODER, moved

NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))
each_form = pytest.mark.parametrize("form", list(FisherForm), ids=lambda form: form.name)
# Without pre-activations there is no form of them.
FORMS_OF = [
    (arch, form)
    for arch, row in ARCHITECTURES.items()
    for form in FisherForm
    if Fisher(form=form).fields_read <= row.settings.provides
    # Codes of least squares leave a residual that is orthogonal to the rows of all latents that are on: it is zero.
    and not (row.given_codes and form is FisherForm.reconstruction)
]
each_form_of_each_architecture = pytest.mark.parametrize(
    ("arch", "form"), FORMS_OF, ids=[f"{arch}-{form.name}" for arch, form in FORMS_OF]
)
each_estimator = pytest.mark.parametrize("estimator", list(FisherEstimator), ids=lambda estimator: estimator.name)
each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])


# --- The definition, written from the parameters without anything of the package's forward pass. ---------------------


def pre_activations(autoencoder: SparseAutoencoder, x: Tensor, arch: str, given: bool = False) -> tuple[Tensor, Tensor]:
    """(batch, d_sae) pre-activations, and those of the gate (the same ones if there is none)."""
    row, p = ARCHITECTURES[arch], dict[str, Tensor](autoencoder.named_parameters())
    if row.codes is not None:
        # Without pre-activations the gradients are those in the codes.
        codes = row.codes(x, autoencoder)
        return codes, codes
    refined = row.refined(x, autoencoder)
    # A term of the pre-activations trains their map alone.
    x = refined.detach() if given else refined
    inputs = x - p["b_dec"] if autoencoder.settings.apply_b_dec_to_input else x
    h = row.pre_activations(inputs @ p["W_enc"], p)
    return h, h if row.gate is None else row.gate(inputs @ p["W_enc"], p)


def per_sample_gradients(autoencoder: SparseAutoencoder, x: Tensor, arch: str, form: FisherForm) -> Tensor:
    """(batch, d_sae) the g_b, differentiable in every parameter."""
    h, gate = pre_activations(autoencoder, x, arch, given=form is FisherForm.pre)
    row = ARCHITECTURES[arch]
    chosen = row.selected(h.detach(), gate.detach(), autoencoder, x)
    if form is FisherForm.pre:
        return torch.autograd.grad(h.square().sum(), h, create_graph=True)[0]
    if form is FisherForm.reconstruction:

        def loss(h_b: Tensor, chosen_b: Tensor, x_b: Tensor) -> Tensor:
            x_hat = row.activation(h_b, chosen_b, autoencoder) @ autoencoder.W_dec + autoencoder.b_dec
            return 0.5 * (x_b - x_hat).square().sum()

        return torch.func.vmap(torch.func.grad(loss))(h, chosen, x)
    f = row.activation(h, chosen, autoencoder)
    g = torch.autograd.grad(f.square().sum(), f, create_graph=True)[0]
    if form is FisherForm.post:
        return g
    g = g - g.mean(0)
    # A constant column's norm has no gradient; nor does the definition need one, since its g is 0.
    norms = torch.stack([column.norm() if column.any() else column.sum() * 0 for column in g.T])
    return g / (norms + 1e-8)


def definition(g: Tensor, estimator: FisherEstimator) -> tuple[Tensor, Tensor]:
    """Off-diagonal and diagonal sums from full matrices."""
    batch, width = g.shape
    outside = ~torch.eye(width, dtype=torch.bool)
    if estimator is FisherEstimator.batch:
        F = g.T @ g / batch
        return F[outside].square().sum(), F.diagonal().square().sum()
    each = [torch.outer(g_b, g_b) for g_b in g]
    total = torch.zeros(width, width, dtype=g.dtype)
    for b, F_b in enumerate(each):
        for c, F_c in enumerate(each):
            if b != c:
                total = total + F_b * F_c
    total = total / (batch * (batch - 1))
    return total[outside].sum(), total.diagonal().sum()


# --- Equality in float64. --------------------------------------------------------------------------------------------


# d_in 5 and d_sae 14: no more samples than inputs, between the two, and more samples than latents.
@pytest.mark.parametrize("batch", [5, 9, 17])
@each_form_of_each_architecture
@each_estimator
@each_path
def test_value_and_gradients_are_the_definition(
    arch: str, form: FisherForm, estimator: FisherEstimator, sparse: bool, batch: int
):
    autoencoder, x = build(arch), samples(batch)
    off_diagonal, diagonal = definition(per_sample_gradients(autoencoder, x, arch, form), estimator)
    measuring = twin(autoencoder)
    record = measuring(x, sparse=sparse)
    sums = fisher_sums(record, form, estimator)
    # The off-diagonal sum may be a small difference, so both are held against the sum over the whole matrix.
    whole = float((off_diagonal.abs() + diagonal.abs()).detach())
    torch.testing.assert_close(sums.off_diagonal, off_diagonal, rtol=1e-10, atol=1e-12 * whole)
    torch.testing.assert_close(sums.diagonal, diagonal, rtol=1e-10, atol=1e-12 * whole)
    found = Fisher(form=form, estimator=estimator).measure(record, NO_DEAD)
    assert torch.equal(found.value, sums.off_diagonal)
    ratio = (off_diagonal / diagonal).detach()
    torch.testing.assert_close(found.beside["fisher_ratio"], ratio, rtol=1e-10, atol=1e-12)
    got, wanted = gradients(found.value, measuring), gradients(off_diagonal, autoencoder)
    for name in wanted:
        assert relative_error(got[name], wanted[name]) < 1e-10, name


@pytest.mark.parametrize("batch", [5, 9])
@pytest.mark.parametrize("arch", ["topk", "gated", "jumprelu"])
@each_form
@each_estimator
@each_path
def test_random_signs_are_the_definition(
    arch: str, form: FisherForm, estimator: FisherEstimator, sparse: bool, batch: int
):
    autoencoder, measuring, x = build(arch), build(arch), samples(batch)
    signs = 2.0 * torch.randint(2, (14,), generator=torch.Generator().manual_seed(5)) - 1
    assert 3 < int((signs > 0).sum()) < 10
    g = per_sample_gradients(autoencoder, x, arch, form)
    # With each product of two latents' gradients multiplied by both signs, F_ij^2 is the sum over b and c of
    # (g_bi g_ci) (g_bj g_cj) with the sign s_i s_j.
    pairs = torch.einsum("bi,ci,bj,cj->bcij", g, g, g, g) * signs[:, None] * signs
    pairs = pairs * (1 - torch.eye(14, dtype=g.dtype))
    if estimator is FisherEstimator.batch:
        wanted = pairs.sum() / batch**2
    else:
        different = 1 - torch.eye(batch, dtype=g.dtype)
        wanted = (pairs * different[:, :, None, None]).sum() / (batch * (batch - 1))
    moment = replace(NO_DEAD, generator=torch.Generator().manual_seed(5))
    found = RandomSign(form=form, estimator=estimator).measure(measuring(x, sparse), moment)
    off_diagonal, diagonal = definition(g, estimator)
    whole = float((off_diagonal.abs() + diagonal.abs()).detach())
    torch.testing.assert_close(found.value, wanted, rtol=1e-10, atol=1e-12 * whole)
    torch.testing.assert_close(found.beside["fisher"], off_diagonal.detach(), rtol=1e-10, atol=1e-12 * whole)
    got = gradients(found.value, measuring)
    for name, grad in gradients(wanted, autoencoder).items():
        assert relative_error(got[name], grad) < 1e-9, name


def test_random_signs_are_drawn_for_each_batch_and_have_no_direction_on_average():
    record = build("topk")(samples(9))
    term, moment = RandomSign(estimator=FisherEstimator.batch), replace(NO_DEAD, generator=torch.Generator())
    values = torch.stack([term.measure(record, moment).value.detach() for _ in range(200)])
    size = Fisher(estimator=FisherEstimator.batch).measure(record, moment).value.detach()
    assert values.unique().numel() > 100
    assert float(values.abs().max()) <= float(size)
    # The mean's standard error is about a fourteenth of one value's spread.
    assert abs(float(values.mean())) < 4 * float(values.std()) / 200**0.5


@each_path
def test_rows_of_any_norm_are_no_way_out_of_the_penalty(sparse: bool):
    """Rows c times as long and codes 1 / c times as large give the same reconstruction."""
    autoencoder, x = build("standard", decoder_norm=DecoderNorm.free), samples(9)
    wanted = fisher_sums(autoencoder(x, sparse), FisherForm.reconstruction, FisherEstimator.batch)
    with torch.no_grad():
        c = torch.logspace(-2, 2, autoencoder.d_sae, dtype=torch.float64)
        autoencoder.W_dec.mul_(c[:, None])
        autoencoder.W_enc.div_(c)
        autoencoder.get_parameter("b_enc").div_(c)
    found = fisher_sums(autoencoder(x, sparse), FisherForm.reconstruction, FisherEstimator.batch)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    # As with rows that are unit vectors, and so by the definition.
    with torch.no_grad():
        autoencoder.W_dec.div_(c := autoencoder.W_dec.norm(dim=1, keepdim=True))
        autoencoder.W_enc.mul_(c.T)
        autoencoder.get_parameter("b_enc").mul_(c.squeeze(1))
    g = per_sample_gradients(autoencoder, x, "standard", FisherForm.reconstruction)
    torch.testing.assert_close(tuple(found), definition(g, FisherEstimator.batch), rtol=1e-10, atol=0)


@each_path
@each_estimator
@pytest.mark.parametrize("part_norm", list(PartNorm))
@pytest.mark.parametrize("norm", list(DecoderNorm))
def test_rows_of_several_parts_are_taken_as_unit_vectors(
    norm: DecoderNorm, part_norm: PartNorm, estimator: FisherEstimator, sparse: bool
):
    # Whatever norm of these rows weighs codes in a sparsity term.
    autoencoder = moved("standard", replace(CROSSCODER, part_norm=part_norm), decoder_norm=norm)
    if norm is DecoderNorm.unit:
        autoencoder.normalise_decoder()
    record = autoencoder(samples(9), sparse)
    rows = autoencoder.W_dec / autoencoder.W_dec.norm(dim=1, keepdim=True)
    g = (record.codes.dense() != 0) * ((record.reconstruction - record.wanted) @ rows.T)
    found = fisher_sums(record, FisherForm.reconstruction, estimator)
    torch.testing.assert_close(tuple(found), definition(g, estimator), rtol=1e-10, atol=0)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@each_with("apply_b_dec_to_input")
def test_every_parameter_that_should_gets_gradient(arch: str, apply_b_dec_to_input: bool):
    # Without it, agreement with the definition could be agreement about zero.
    for form in [form for of_arch, form in FORMS_OF if of_arch == arch]:
        autoencoder = build(arch, apply_b_dec_to_input=apply_b_dec_to_input)
        found = gradients(Fisher(form=form).measure(autoencoder(samples(9)), NO_DEAD).value, autoencoder)
        silent = {name for name, grad in found.items() if not grad.any()}
        wanted = set(ARCHITECTURES[arch].silent)
        if form is FisherForm.pre:
            wanted |= {"W_dec"} | ({"W_hidden", "b_hidden", "W_back"} & found.keys())
        elif form is not FisherForm.reconstruction and not ARCHITECTURES[arch].through_decoder:
            wanted |= {"W_dec"}
        if form is not FisherForm.reconstruction and not apply_b_dec_to_input:
            wanted |= {"b_dec"}
        if form is FisherForm.pre:
            wanted |= ARCHITECTURES[arch].thresholds
        assert silent == wanted, form


@each_form
@each_estimator
@each_path
def test_by_hand(form: FisherForm, estimator: FisherEstimator, sparse: bool):
    # Two latents, codes [1 0], [1 2], [0 3]; as pre-activations the absent ones are -1.
    codes = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)
    h = torch.tensor([[1.0, -1.0], [1.0, 2.0], [-1.0, 3.0]], dtype=torch.float64)
    record = ForwardRecord(
        inputs=torch.tensor([[2.0], [2.0], [2.0]], dtype=torch.float64),
        pre_activations=AffineMap(h, torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)),
        codes=sparse_of(codes) if sparse else Codes(codes),
        reconstruction=torch.tensor([[3.0], [1.0], [5.0]], dtype=torch.float64),
        W_dec=torch.tensor([[1.0], [2.0]], dtype=torch.float64),
        b_dec=torch.zeros(1, dtype=torch.float64),
    )
    # Products g_b1 g_b2 of the two columns, sample by sample:
    match form:
        case FisherForm.pre:  # 2h: [2 -2], [2 4], [-2 6]
            products = [-4.0, 8.0, -12.0]
        case FisherForm.post:  # 2f: [2 0], [2 4], [0 6]
            products = [0.0, 8.0, 0.0]
        case FisherForm.correlation:
            # Columns less their means (2/3, 5/3): (1 1 -2)/3 with norm sqrt(6)/3; (-5 1 4)/3 with norm sqrt(42)/3.
            # The factor 2 cancels. Products over sqrt(252): -5, 1, -8; correlation -12 / sqrt(252) = -0.756.
            products = [value / 252**0.5 for value in (-5.0, 1.0, -8.0)]
        case FisherForm.reconstruction:  # residuals 1, -1, 3; times [1 2] where on: [1 0], [-1 -2], [0 6]
            products = [0.0, 2.0, 0.0]
    if estimator is FisherEstimator.batch:
        # F_12 = sum / 3, and it occurs twice.
        wanted = 2 * (sum(products) / 3) ** 2
    else:
        # Twice the mean over the six ordered pairs of different samples.
        wanted = 2 * (sum(products) ** 2 - sum(value**2 for value in products)) / 6
    got = Fisher(form=form, estimator=estimator).measure(record, NO_DEAD).value
    # Only the 1e-8 that is added to the norms differs.
    assert float(got) == pytest.approx(wanted, rel=1e-7, abs=1e-12)


def sparse_of(matrix: Tensor) -> Codes:
    pattern = Pattern.of_mask(matrix != 0)
    return Codes(matrix[pattern.rows, pattern.columns], pattern)


def record_of(codes: Codes) -> ForwardRecord:
    """A record for the forms that look at codes alone."""
    empty = codes.values.new_zeros(codes.shape[0], 1)
    W = codes.values.new_zeros(codes.shape[1], 1)
    return ForwardRecord(empty, AffineMap(empty, W.T, W[:, 0]), codes, empty, W, W[0])


@pytest.mark.parametrize("batch", [5, 40])
def test_both_ways_of_pre_agree(batch: int):
    # The same pre-activations as an affine map of a narrow input, whose moments are taken through (d_in + 1)^2
    # matrices at 40 samples, and of a wide one (zeros appended), where they go through the batch's Gram matrix.
    def value(pad: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        inputs, weight, bias = samples(batch, 6), samples(6, 20, seed=2), samples(1, 20, seed=3)[0]
        leaves = (inputs.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
        wide = AffineMap(
            torch.nn.functional.pad(inputs, (0, pad)), torch.nn.functional.pad(weight, (0, 0, 0, pad)), bias
        )
        record = record_of(Codes(inputs.new_zeros(batch, 20)))
        record = ForwardRecord(**{**vars(record), "pre_activations": wide})
        sums = [fisher_sums(record, FisherForm.pre, estimator) for estimator in FisherEstimator]
        total = sums[0].off_diagonal + 3 * sums[1].off_diagonal + 5 * sums[1].diagonal
        return total, torch.autograd.grad(total, leaves)

    (narrow, narrow_gradients), (wide, wide_gradients) = value(0), value(60)
    torch.testing.assert_close(narrow, wide, rtol=1e-12, atol=0)
    torch.testing.assert_close(narrow_gradients, wide_gradients, rtol=1e-11, atol=1e-9)


# --- What the forms mean. --------------------------------------------------------------------------------------------


@each_path
def test_correlation_is_the_squared_correlation_of_codes(sparse: bool):
    codes = (samples(30, 11) - 0.5).clamp_min(0)
    got = fisher_sums(
        record_of(sparse_of(codes) if sparse else Codes(codes)), FisherForm.correlation, FisherEstimator.batch
    )
    correlation = torch.corrcoef(codes.T)
    wanted = (correlation.square().sum() - 11) / 30**2
    torch.testing.assert_close(got.off_diagonal, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(got.diagonal, torch.tensor(11 / 30**2, dtype=torch.float64), rtol=1e-6, atol=0)


@each_path
def test_correlation_does_not_depend_on_each_latents_scale_and_offset(sparse: bool):
    codes = samples(30, 11).clamp_min(0)
    scales = torch.linspace(0.01, 100, 11, dtype=torch.float64)

    def value(matrix: Tensor) -> float:
        record = record_of(sparse_of(matrix) if sparse else Codes(matrix))
        return float(fisher_sums(record, FisherForm.correlation, FisherEstimator.batch).off_diagonal)

    assert value(codes * scales) == pytest.approx(value(codes), rel=1e-5)
    assert value(codes + 7) == pytest.approx(value(codes), rel=1e-6)


@pytest.mark.parametrize("form", [FisherForm.pre, FisherForm.post], ids=lambda form: form.name)
@each_estimator
def test_ratio_is_free_of_scale(form: FisherForm, estimator: FisherEstimator):
    autoencoder = build("standard", apply_b_dec_to_input=False)
    sums = fisher_sums(autoencoder(samples(20)), form, estimator)
    with torch.no_grad():
        autoencoder.W_enc.mul_(7)
        autoencoder.get_parameter("b_enc").mul_(7)
    scaled = fisher_sums(autoencoder(samples(20)), form, estimator)
    # g is of first order in the codes, F of second, its square of fourth: 7^4 = 2401.
    torch.testing.assert_close(scaled.off_diagonal, 2401 * sums.off_diagonal)
    torch.testing.assert_close(scaled.ratio, sums.ratio)


def test_ratio_is_zero_if_no_latent_is_active():
    for codes in (Codes(torch.zeros(5, 7)), sparse_of(torch.zeros(5, 7))):
        for estimator in FisherEstimator:
            for form in (FisherForm.post, FisherForm.correlation, FisherForm.reconstruction):
                sums = fisher_sums(record_of(codes), form, estimator)
                assert float(sums.off_diagonal) == float(sums.ratio) == 0


def test_latents_that_are_never_on_together_cost_nothing_but_correlate():
    # One latent a sample: no product of two codes is ever non-zero. Their correlation is negative all the same.
    codes = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    for form in (FisherForm.post, FisherForm.correlation):
        value = fisher_sums(record_of(Codes(codes)), form, FisherEstimator.batch).off_diagonal
        if form is FisherForm.post:
            assert float(value) == 0
        else:
            # Each pair's correlation is -1/(B-1) = -.2: 30 pairs * .04 / 36.
            assert float(value) == pytest.approx(30 * 0.04 / 36, rel=1e-6)


def test_floor_of_the_batch_estimate():
    # Normalised columns of a batch of B lie in B - 1 dimensions, so sum_ij corr_ij^2 >= n^2 / (B - 1), which is also
    # the expectation for independent latents. At the published setting, n = 12288, B = 100, theta = 1e-2:
    # 1e-2 / 100^2 * (12288^2 / 99 - 12288) = 1.513. Nothing that keeps every latent varying can go below.
    codes = Codes(samples(100, 12288, dtype=torch.float32))
    floor = 1e-2 / 100**2 * (12288**2 / 99 - 12288)
    assert floor == pytest.approx(1.513, abs=5e-4)
    independent = 1e-2 * float(
        fisher_sums(record_of(codes), FisherForm.correlation, FisherEstimator.batch).off_diagonal
    )
    assert floor * (1 - 1e-4) < independent < floor * 1.02
    # Silencing half of the latents is what still lowers it: to (n/2)^2 / 99, a quarter.
    codes.values[:, ::2] = 0
    halved = 1e-2 * float(fisher_sums(record_of(codes), FisherForm.correlation, FisherEstimator.batch).off_diagonal)
    assert halved == pytest.approx(independent / 4, rel=0.02)


def test_floor_is_met_by_no_estimate_of_different_samples():
    codes = Codes(samples(100, 3000))
    batch, unbiased = (
        float(fisher_sums(record_of(codes), FisherForm.correlation, estimator).off_diagonal)
        for estimator in FisherEstimator
    )
    # The population's value is 0 here. What is left of the floor is the normalisation by the batch itself, 1/B of it.
    assert abs(unbiased) < 0.03 * batch


@pytest.mark.parametrize(
    "form", [FisherForm.pre, FisherForm.post, FisherForm.reconstruction], ids=lambda form: form.name
)
def test_unbiased_is_the_populations_value_in_the_mean(form: FisherForm):
    # A population of 400 samples and 600 batches of 4 drawn from it with replacement, independently.
    autoencoder, population = build("topk", 6, 20, seed=3), samples(400, 6, seed=4)
    with torch.no_grad():
        truth = fisher_sums(autoencoder(population), form, FisherEstimator.batch)
        generator = torch.Generator().manual_seed(5)
        found: dict[FisherEstimator, list[tuple[float, float]]] = {estimator: [] for estimator in FisherEstimator}
        for _ in range(600):
            record = autoencoder(population[torch.randint(400, (4,), generator=generator)])
            for estimator, values in found.items():
                sums = fisher_sums(record, form, estimator)
                values.append((float(sums.off_diagonal), float(sums.diagonal)))
    for part, true in enumerate((float(truth.off_diagonal), float(truth.diagonal))):
        for estimator, values in found.items():
            drawn = torch.tensor([pair[part] for pair in values], dtype=torch.float64)
            deviation = (float(drawn.mean()) - true) / (float(drawn.std()) / len(drawn) ** 0.5)
            if estimator is FisherEstimator.unbiased:
                assert abs(deviation) < 3.5
            else:
                assert deviation > 7


# --- Columns without variance, and batches without activity. ---------------------------------------------------------


@each_path
@each_estimator
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dead_and_constant_columns_give_finite_gradients(sparse: bool, estimator: FisherEstimator, dtype: torch.dtype):
    matrix = samples(8, 6).clamp_min(0)
    matrix[:, 1] = 0  # dead
    matrix[:, 2] = 0.75  # constant and on
    matrix[:, 3] = 0
    matrix[4, 3] = 2  # on once
    without = matrix[:, [0, 3, 4, 5]]

    def measured(values: Tensor) -> tuple[Tensor, Tensor]:
        codes = sparse_of(values.to(dtype)) if sparse else Codes(values.to(dtype))
        leaf = codes.values.detach().requires_grad_()
        sums = fisher_sums(record_of(codes.with_values(leaf)), FisherForm.correlation, estimator)
        (grad,) = torch.autograd.grad(sums.off_diagonal, leaf)
        return sums.off_diagonal.detach(), codes.with_values(grad).dense()

    value, grad = measured(matrix)
    wanted, wanted_grad = measured(without)
    assert torch.isfinite(grad).all()
    # Columns without variance correlate with nothing: as if they were not there.
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad[:, [0, 3, 4, 5]], wanted_grad, rtol=1e-4, atol=1e-7)
    assert not grad[:, 1].any()


@each_path
def test_latents_on_everywhere_and_hardly_varying_are_centred_exactly(sparse: bool):
    # A mean a thousand times the deviation: the rank-one correction alone would lose six digits of float32's seven.
    codes = samples(50, 8)
    shifted = (codes * 1e-3 + 1).to(torch.float32)
    record = record_of(sparse_of(shifted) if sparse else Codes(shifted))
    got = fisher_sums(record, FisherForm.correlation, FisherEstimator.batch).off_diagonal
    wanted = (torch.corrcoef(shifted.double().T).square().sum() - 8) / 50**2
    # float32 holds a deviation of 1e-3 from 1 to a relative 1e-4.
    assert float(got) == pytest.approx(float(wanted), rel=1e-3)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("estimator", list(FisherEstimator))
@pytest.mark.parametrize("wobble", [0.0, 2.0**-23])
def test_a_column_that_varies_by_rounding_alone_does_not_count(sparse: bool, estimator: FisherEstimator, wobble: float):
    # In float32 the mean of 1,000 times 0.1 is not 0.1, and that difference over itself is 1.
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(1000, 6, generator=generator).sub(0.5).relu()
    matrix[:, 1], matrix[:, 4] = 0.1, 1.7
    matrix[::2, 4] *= 1 + wobble
    others = [0, 2, 3, 5]

    def measured(values: Tensor) -> tuple[Tensor, Tensor]:
        values = values.clone().requires_grad_()
        codes = sparse_of(values) if sparse else Codes(values)
        sums = fisher_sums(record_of(codes), FisherForm.correlation, estimator)
        sums.off_diagonal.backward()
        assert values.grad is not None
        return torch.stack(list(sums)).detach(), values.grad

    got, gradient = measured(matrix)
    # Without the two, in double precision.
    wanted, of_others = measured(matrix[:, others].double())
    assert relative_error(got.double(), wanted) < 1e-5
    assert not gradient[:, [1, 4]].any()
    assert relative_error(gradient[:, others].double(), of_others) < 1e-5


@each_form
def test_unbiased_needs_two_samples(form: FisherForm):
    with pytest.raises(ValueError, match="at least two samples"):
        Fisher(form=form, estimator=FisherEstimator.unbiased).measure(build("standard")(samples(1)), NO_DEAD)


# --- What is never built. --------------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """The number of entries of every tensor that any operator returns."""

    def __init__(self):
        super().__init__()
        self.sizes: list[tuple[int, str]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                held = tensor.values() if tensor.layout is torch.sparse_csr else tensor
                self.sizes.append((held.numel(), str(func)))
        return result

    def at_least(self, entries: int) -> list[str]:
        return [name for size, name in self.sizes if size >= entries]


def recorded(work: Callable[[], None]) -> Allocations:
    allocations = Allocations()
    with allocations:
        work()
    return allocations


def test_allocations_are_seen():
    seen = recorded(lambda: (samples(3, 50).T @ samples(3, 50)).sum().requires_grad_().backward())
    assert seen.at_least(2500)
    assert not seen.at_least(2501)


WIDE, BATCH = 5_000, 24


@each_with_gradients_of_codes
@each_path
def test_fisher_builds_no_matrix_of_width_squared(arch: str, sparse: bool):
    autoencoder = build(arch, 8, WIDE, dtype=torch.float32)
    for form in [form for of_arch, form in FORMS_OF if of_arch == arch]:
        for estimator in FisherEstimator:

            def work(form: FisherForm = form, estimator: FisherEstimator = estimator) -> None:
                record = autoencoder(samples(BATCH, 8, dtype=torch.float32), sparse=sparse)
                fisher_sums(record, form, estimator).off_diagonal.backward()

            # The largest are batch x d_sae, a 200th of d_sae squared.
            assert not recorded(work).at_least(BATCH * WIDE + 1), (form, estimator)


@each_with_pre_activations
@pytest.mark.parametrize(
    "form", [FisherForm.post, FisherForm.correlation, FisherForm.reconstruction], ids=lambda form: form.name
)
@each_estimator
def test_sparse_codes_are_never_spread_over_the_width(arch: str, form: FisherForm, estimator: FisherEstimator):
    # With few latents on, everything after the encoder's product stays below a tenth of batch x d_sae. The Gram matrix
    # is computed in slices of 32 of the 400 samples, and d_in is small, so that the weights are below it.
    batch, width = 400, 16_384
    autoencoder = build(arch, 2, width, dtype=torch.float32)
    with torch.no_grad():
        for name in {ARCHITECTURES[arch].bias, *ARCHITECTURES[arch].silent}:
            autoencoder.get_parameter(name).sub_(4)
    record = autoencoder(samples(batch, 2, dtype=torch.float32), sparse=True)
    assert 0 < record.codes.values.numel() < batch * width // 50

    def work() -> None:
        penalty = fisher_sums(record, form, estimator).off_diagonal
        (penalty + SquaredError().measure(record, NO_DEAD).value).backward()

    assert not recorded(work).at_least(batch * width // 10)


def test_no_penalty_measures_the_sums_in_the_chosen_form():
    none = NoPenalty(form=FisherForm.pre, estimator=FisherEstimator.batch)
    assert with_fisher_measured({"penalty": none}) == {"penalty": none}
    assert fisher_of([none]) is none
    assert with_fisher_measured({}) == {"fisher": NoPenalty()}
    with pytest.raises(ValueError, match=r"loss\.penalty\.weight is 2, and has no effect with penalty=none"):
        NoPenalty(weight=2.0)
    with pytest.raises(ValueError, match=r"loss\.penalty\.warm_up is 0\.5, and has no effect with penalty=none"):
        NoPenalty(warm_up=0.5)
