"""The objective's sum, schedule and log, and every term alike on dense and sparse codes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.settings import DecoderNorm
from fsae.losses.auxiliary import AuxK, GateReconstruction
from fsae.losses.code_norm import CodeNorm
from fsae.losses.decorrelation import Decorrelation
from fsae.losses.fisher import Fisher, FisherEstimator, FisherForm, RandomSign
from fsae.losses.matryoshka import LevelAuxK, Matryoshka, Reduction, SampledMatryoshka
from fsae.losses.objective import Losses, Objective, check_terms
from fsae.losses.reconstruction import SquaredError
from fsae.losses.sparsity import L1, AnnealedLp, DenseLatents, StepL0, TanhL0, TargetForm, TargetL0
from fsae.losses.term import LossTerm, Moment
from fsae.losses.weights import Orthogonality, WeightNorm
from fsae.sparse.codes import Codes
from tests.architectures import (
    ARCHITECTURES,
    build,
    each_architecture,
    each_with_gradients_of_codes,
    gradients,
    relative_error,
    samples,
    settings_of,
    twin,
)

NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))


def some_dead() -> Moment:
    """Return a moment of which every one draws the same numbers."""
    return Moment(torch.tensor([1, 4, 8, 12]), step=5, steps=8, generator=torch.Generator().manual_seed(0))


def terms_of(arch: str) -> dict[str, LossTerm]:
    """Every term that an architecture's record can be measured with."""
    terms: dict[str, LossTerm] = {"reconstruction": SquaredError(), "l1": L1(), "tanh": TanhL0(), "aux_k": AuxK(k=2)}
    for form in FisherForm:
        for estimator in FisherEstimator:
            terms[f"fisher {form.name} {estimator.name}"] = Fisher(form=form, estimator=estimator)
    widths = [1, 5, 0.7]
    terms |= {
        "matryoshka": Matryoshka(widths=widths),
        "matryoshka detached": Matryoshka(widths=widths, detach=True, level_weights=[1.0, 0.5, 0.0, 2.0]),
        "matryoshka with b_dec": Matryoshka(widths=widths, reduction=Reduction.mean_with_b_dec),
        "sampled matryoshka": SampledMatryoshka(levels=4),
        "level aux_k": LevelAuxK(widths=widths, k=2),
        "annealed l_p": AnnealedLp(begin=0.0, stages=4),
        "annealed l_p with root": AnnealedLp(begin=0.0, stages=4, root=True),
        "dense latents": DenseLatents(limit=0.05),
        "decorrelation": Decorrelation(),
        "random sign": RandomSign(),
        "orthogonal": Orthogonality(chunk=5),
        "weight norm": WeightNorm(),
        "code norm": CodeNorm(),
    }
    special = {
        "gate_reconstruction": GateReconstruction(),
        "step": StepL0(),
        "target": TargetL0(target=2.0),
        "target per sample": TargetL0(target=2.0, form=TargetForm.sample),
    }
    provided = settings_of(arch).provides
    return {name: term for name, term in (terms | special).items() if term.fields_read <= provided}


CASES = [(arch, name) for arch in ARCHITECTURES for name in terms_of(arch)]
each_term_of_each_architecture = pytest.mark.parametrize(("arch", "name"), CASES, ids=[f"{a}-{n}" for a, n in CASES])


def compare(autoencoder: SparseAutoencoder, x: Tensor, term: LossTerm, tolerance: float, larger: float = 1.0) -> Tensor:
    """Check that value and all gradients agree on both paths, and return the value.

    A value may be the difference of sums that are `larger` times as large, which are then the ones to agree.
    """
    dense, sparse = autoencoder, twin(autoencoder)
    wanted = term.measure(dense(x), some_dead()).value
    got = term.measure(sparse(x, sparse=True), some_dead()).value
    assert relative_error(got, wanted) < tolerance * larger
    of_dense, of_sparse = gradients(wanted, dense), gradients(got, sparse)
    for name, grad in of_dense.items():
        assert torch.isfinite(grad).all(), name
        assert relative_error(of_sparse[name], grad) < tolerance, name
    return wanted


@each_term_of_each_architecture
@pytest.mark.parametrize("norm", list(DecoderNorm))
def test_sparse_is_dense(arch: str, name: str, norm: DecoderNorm):
    term = terms_of(arch)[name]
    if "decoder_norm" in ARCHITECTURES[arch].fixed and norm is DecoderNorm.free:
        return
    value = compare(build(arch, decoder_norm=norm), samples(9), term, 1e-10)
    assert value.requires_grad or ARCHITECTURES[arch].given_codes
    assert float(value.detach()) != 0


@each_term_of_each_architecture
def test_sparse_is_dense_in_float32(arch: str, name: str):
    # A value that is the difference of sums has the rounding errors of the sums.
    tolerance = {"random sign": 2e-4, "decorrelation": 3e-5}.get(name, 1e-5)
    x, terms = samples(40, 16, dtype=torch.float32), terms_of(arch)
    autoencoder = build(arch, 16, 64, dtype=torch.float32)
    # An unbiased estimate is the batch's value minus what few samples add to it: up to 98 % of it for pursuit.
    both = [
        terms[each].measure(autoencoder(x), some_dead()).value for each in (name.replace("unbiased", "batch"), name)
    ]
    larger = (both[0].abs() / both[1].abs().clamp_min(1e-3)).clamp_min(1.0).item()
    compare(autoencoder, x, terms[name], tolerance, larger)


@each_term_of_each_architecture
def test_sparse_is_dense_if_no_latent_is_active(arch: str, name: str):
    autoencoder = build(arch)
    x = samples(4)
    with torch.no_grad():
        for bias, parameter in autoencoder.named_parameters():
            if bias in ("b_enc", "b_gate", "b_mag"):
                parameter.zero_()
        x[:] = autoencoder.b_dec  # encoder inputs of exactly 0
    compare(autoencoder, x, terms_of(arch)[name], 1e-10)


@pytest.mark.parametrize("name", ["step", "target per sample", "fisher post batch"])
def test_sparse_is_dense_if_estimates_reach_the_input(name: str):
    for term in (terms_of("jumprelu")[name], SquaredError()):
        compare(build("jumprelu", ste_to_input=True), samples(9), term, 1e-10)


@each_architecture
def test_sparse_is_dense_for_one_sample(arch: str):
    for name, term in terms_of(arch).items():
        if getattr(term, "estimator", None) is FisherEstimator.unbiased:
            with pytest.raises(ValueError, match="at least two samples"):
                term.measure(build(arch)(samples(1)), some_dead())
        else:
            assert torch.isfinite(compare(build(arch), samples(1), term, 1e-10)), name


def evaluate(
    terms: dict[str, LossTerm], progress: float = 1.0, measure_all: bool = False
) -> tuple[Losses, SparseAutoencoder]:
    autoencoder = build("standard")
    moment = replace(NO_DEAD, step=round(64 * progress), steps=64)
    return Objective(terms)(autoencoder(samples(9)), moment, measure_all), autoencoder


def test_sum_of_weighted_terms():
    terms: dict[str, LossTerm] = {
        "mse": SquaredError(weight=2.0),
        "sparsity": L1(weight=0.5),
        "fisher": Fisher(weight=3),
    }
    losses, autoencoder = evaluate(terms)
    alone = {name: term.measure(autoencoder(samples(9)), NO_DEAD).value for name, term in terms.items()}
    total = 2 * alone["mse"] + 0.5 * alone["sparsity"] + 3 * alone["fisher"]
    torch.testing.assert_close(losses.total, total)
    wanted = gradients(total, autoencoder)
    for name, grad in gradients(losses.total, autoencoder).items():
        torch.testing.assert_close(grad, wanted[name])
    assert losses.parts.keys() == {
        "mse", "mse_weighted", "sparsity", "sparsity_weighted", "fisher", "fisher_weighted", "fisher_ratio", "loss"
    }  # fmt: skip
    torch.testing.assert_close(losses.parts["sparsity_weighted"], 0.5 * alone["sparsity"].detach())
    torch.testing.assert_close(losses.parts["loss"], total.detach())
    assert not any(part.requires_grad for part in losses.parts.values())


def test_weight_zero_measures_without_training():
    terms: dict[str, LossTerm] = {"mse": SquaredError(), "fisher": Fisher(weight=0.0)}
    quiet, autoencoder = evaluate(terms)
    assert quiet.parts.keys() == {"mse", "mse_weighted", "loss"}
    logged, same = evaluate(terms, measure_all=True)
    assert float(logged.parts["fisher"]) > 0
    assert logged.parts["fisher_weighted"] == 0
    assert float(logged.parts["fisher_ratio"]) > 0
    assert torch.equal(quiet.total, logged.total)
    without = gradients(quiet.total, autoencoder)
    for name, grad in gradients(logged.total, same).items():
        assert torch.equal(grad, without[name])


def test_warm_up_is_linear_in_progress():
    term = L1(weight=8.0, warm_up=0.25)
    assert [term.weight_at(progress) for progress in (0.0, 0.0625, 0.125, 0.25, 1.0)] == [0, 2, 4, 8, 8]
    assert L1(weight=8.0).weight_at(0.0) == 8
    terms: dict[str, LossTerm] = {"mse": SquaredError(), "sparsity": term}
    parts = evaluate(terms, progress=0.125)[0].parts
    torch.testing.assert_close(parts["sparsity_weighted"], 4 * parts["sparsity"])
    assert "sparsity" not in evaluate(terms, progress=0.0)[0].parts
    assert evaluate(terms, progress=0.0, measure_all=True)[0].parts["sparsity"] > 0


def test_decay_is_linear_in_progress():
    term = L1(weight=8.0, decay=0.25)
    assert [term.weight_at(progress) for progress in (0.0, 0.75, 0.8125, 0.875, 1.0)] == [8, 8, 6, 4, 0]
    both = L1(weight=8.0, warm_up=0.5, decay=0.5)
    assert [both.weight_at(progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0, 4, 8, 4, 0]
    with pytest.raises(ValueError, match=r"loss\.warm_up \+ loss\.decay is 1\.1"):
        L1(warm_up=0.5, decay=0.6)


@pytest.mark.parametrize("warm_up", [-0.1, 1.1])
def test_warm_up_that_cannot_hold(warm_up: float):
    with pytest.raises(ValueError, match=f"warm_up is {warm_up}"):
        SquaredError(warm_up=warm_up)


def test_objective_without_gradients():
    with torch.no_grad():
        losses, _ = evaluate({"mse": SquaredError()})
    assert not losses.total.requires_grad
    assert losses.total > 0


@each_architecture
def test_losses_are_in_float32_whatever_the_autocast(arch: str):
    # In bfloat16 the off-diagonal sum, a difference of close numbers, would be off by some percent.
    autoencoder = build(arch, 16, 64, dtype=torch.float32)
    x = samples(40, 16, dtype=torch.float32)
    terms = terms_of(arch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        record = autoencoder(x)
        inside = Objective(terms)(record, some_dead(), True)
    outside = Objective(terms)(record, some_dead(), True)
    assert inside.total.dtype == torch.float32
    for name, part in outside.parts.items():
        assert torch.equal(inside.parts[name], part), name


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("form", list(FisherForm))
@each_with_gradients_of_codes
def test_fisher_of_a_bfloat16_model_is_summed_in_float32(arch: str, form: FisherForm, sparse: bool):
    autoencoder = build(arch, 16, 64, dtype=torch.bfloat16)
    if not Fisher(form=form).fields_read <= autoencoder.settings.provides:
        return
    x = samples(40, 16, dtype=torch.bfloat16)
    got = Fisher(form=form).measure(autoencoder(x, sparse=sparse), NO_DEAD).value
    assert got.dtype == torch.float32
    got.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in autoencoder.parameters())
    if form in (FisherForm.post, FisherForm.correlation):
        # The sums of the same codes: those of float64 would be others, because rounding changes which are selected.
        record = autoencoder(x, sparse=sparse)
        codes = Codes(record.codes.values.double(), record.codes.pattern)
        exact = Fisher(form=form).measure(replace(record, codes=codes), NO_DEAD).value
        assert exact.dtype == torch.float64
        # A correlation is unbiased by a difference of sums; see above.
        assert got.item() == pytest.approx(exact.item(), rel=1e-5 if form is FisherForm.post else 1e-4)


@pytest.mark.parametrize(
    ("term", "arch", "field"),
    [(StepL0(), "topk", "active"), (TargetL0(), "gated", "active"), (GateReconstruction(), "jumprelu", "gate")],
)
def test_terms_that_an_architecture_cannot_be_measured_with(term: LossTerm, arch: str, field: str):
    kind = type(settings_of(arch)).__name__.removesuffix("Settings")
    message = rf"loss\.sparsity \({type(term).__name__}\) needs a forward record with {field}, which arch {kind}"
    with pytest.raises(ValueError, match=message):
        check_terms({"mse": SquaredError(), "sparsity": term}, settings_of(arch))


@each_architecture
def test_terms_that_it_can(arch: str):
    settings, terms = settings_of(arch), terms_of(arch)
    if not settings.differentiable_codes:
        terms = {name: replace(term, weight=0.0) if term.needs_code_gradient else term for name, term in terms.items()}
    check_terms(terms, settings)
