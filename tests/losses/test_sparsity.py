"""Sparsity terms by hand, what they pull on, and what they cannot reach."""

import math

import pytest
import torch

from fsae.autoencoders.record import AffineMap, ForwardRecord
from fsae.autoencoders.settings import DecoderNorm
from fsae.losses.sparsity import L1, AnnealedLp, DenseLatents, StepL0, TanhL0, TargetForm, TargetL0
from fsae.losses.term import LossTerm, Moment, TermValue
from fsae.sparse.codes import Codes
from tests.architectures import ARCHITECTURES, build, each_architecture, gradients, samples, with_weights
from tests.training.runs import adam, differences, member, saved, terms, training_run

NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))
each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])

# Codes of the standard architecture: [1 2] and [0 .5]. Decoder norms 5 and 2.
X = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
WEIGHTS = {"W_enc": [[1.0, 0.0], [0.0, 1.0]], "W_dec": [[3.0, 4.0], [0.0, 2.0]]}


def measured(term, arch: str, sparse: bool, weights: dict | None = None, **changes) -> TermValue:
    return term.measure(with_weights(arch, weights or WEIGHTS, **changes)(X, sparse=sparse), NO_DEAD)


def number(found: TermValue) -> float:
    return float(found.value.detach())


@each_path
def test_l1_by_hand(sparse: bool):
    # (1 + 2 + .5) / 2;  with decoder norms (5 + 4 + 1) / 2.
    assert number(measured(L1(), "standard", sparse)) == pytest.approx(1.75)
    assert number(measured(L1(), "standard", sparse, decoder_norm=DecoderNorm.free)) == pytest.approx(5)


@each_path
def test_l1_of_signed_codes_is_of_their_magnitude(sparse: bool):
    # All of [1 2] and [-1 .5]: (1 + 2 + 1 + .5) / 2.
    assert number(measured(L1(), "abs_topk", sparse, k=2)) == pytest.approx(2.25)


@each_path
def test_l1_of_gated_is_of_the_rectified_gate(sparse: bool):
    weights = WEIGHTS | {"b_gate": [1.5, 0.0], "b_mag": [7.0, 7.0]}
    # Gates [2.5 2] and [.5 .5], whatever the magnitudes are: 5.5 / 2; with norms (12.5 + 4 + 2.5 + 1) / 2.
    assert number(measured(L1(), "gated", sparse, weights)) == pytest.approx(2.75)
    assert number(measured(L1(), "gated", sparse, weights, decoder_norm=DecoderNorm.free)) == pytest.approx(10)


@each_path
def test_tanh_by_hand(sparse: bool):
    # (tanh 2 + tanh 4 + tanh 1) / 2 at scale 2;  with norms (tanh 10 + tanh 8 + tanh 2) / 2.
    wanted = (math.tanh(2) + math.tanh(4) + math.tanh(1)) / 2
    assert number(measured(TanhL0(scale=2.0), "standard", sparse)) == pytest.approx(wanted)
    wanted = (math.tanh(10) + math.tanh(8) + math.tanh(2)) / 2
    assert number(measured(TanhL0(scale=2.0), "standard", sparse, decoder_norm=DecoderNorm.free)) == pytest.approx(
        wanted
    )


def annealed(codes: list[float], step: int, term: AnnealedLp, memory: dict) -> float:
    """The term of one sample with these codes, in a training of four steps."""
    weights = {"W_enc": torch.eye(len(codes)).tolist(), "W_dec": torch.eye(len(codes)).tolist()}
    record = with_weights("standard", weights)(torch.tensor([codes], dtype=torch.float64))
    moment = Moment(NO_DEAD.dead_latents, step=step, steps=4, memory=memory)
    return float(term.measure(record, moment).value.detach())


def test_annealed_norms_by_hand():
    # p = .5 from the start, because there is no earlier value: 2 + 1, and its square.
    for root, wanted in ((False, 3), (True, 9)):
        term = AnnealedLp(end=0.5, begin=0.0, stages=2, root=root)
        assert annealed([4.0, 1.0, 0.0], 2, term, {}) == pytest.approx(wanted)
        assert annealed([4.0, 1.0, 0.0], 0, term, {}) == pytest.approx(5)


def test_an_annealed_norm_keeps_its_value_if_p_falls():
    term, memory = AnnealedLp(end=0.5, begin=0.0, stages=2), {}
    assert [annealed([4.0, 1.0, 0.0], step, term, memory) for step in (0, 1)] == pytest.approx([5, 5])
    # The factor is 5 / 3 from the half of training on.
    assert annealed([4.0, 1.0, 0.0], 2, term, memory) == pytest.approx(5)
    assert float(memory["factor"]) == pytest.approx(5 / 3)
    assert annealed([9.0, 0.0, 0.0], 3, term, memory) == pytest.approx(5 / 3 * 3)


def test_the_factor_is_a_ratio_of_means_over_the_last_batches():
    term, memory = AnnealedLp(end=0.5, begin=0.5, stages=2, recent=2), {}
    # p is 1 in steps 0 to 2: the first half, and half of the rest. The last two sum to 9 + 4, their roots to 3 + 2.
    for step, code in enumerate((100.0, 9.0, 4.0)):
        assert annealed([code], step, term, memory) == code
    assert annealed([1.0], 3, term, memory) == pytest.approx(13 / 5)


def test_an_annealed_norm_keeps_its_value_over_stages_in_which_it_was_not_measured():
    term, memory = AnnealedLp(end=0.25, begin=0.0, stages=4), {}
    # p is 1, and at the next measurement .5 or .25; what lies between was not measured.
    for step in (0, 2, 3):
        assert annealed([4.0, 1.0, 0.0], step, term, memory) == pytest.approx(5)
    assert float(memory["factor"]) == pytest.approx(5 / (4**0.25 + 1))


def test_every_value_of_p_is_reached():
    term = AnnealedLp(end=0.2, begin=0.1, stages=10)
    exponents = [1 - 0.8 * i / 9 for i in range(10)]
    record = build("standard")(samples(3))
    found, memory = [], {}
    for step in range(1000):
        moment = Moment(NO_DEAD.dead_latents, step=step, steps=1000, memory=memory)
        found.append(float(term.measure(record, moment).beside["sparsity_p"]))
    assert list(dict.fromkeys(found)) == pytest.approx(exponents)
    # Nothing falls before a tenth, and each value has a tenth of the rest; shares are rounded.
    assert found.count(1.0) in (190, 191)
    assert found.count(found[-1]) in (89, 90)


@pytest.mark.parametrize("recent", [1, 3])
def test_training_with_an_annealed_norm_resumes_bit_for_bit(tmp_path, recent: int):
    sparsity = AnnealedLp(weight=0.1, begin=0.2, stages=5, recent=recent)
    loss: dict[str, LossTerm] = {**terms("standard"), "sparsity": sparsity}

    def run(folder: str, stop_at: int | None = None):
        return training_run("standard", tmp_path / folder, stop_at=stop_at, trained=member("standard", adam(), loss))

    run("whole").train()
    with pytest.raises(BaseException, match="SIGTERM"):
        run("stopped", stop_at=11).train()
    run("stopped").train()
    assert differences(saved(tmp_path / "whole"), saved(tmp_path / "stopped")) == []
    (state,) = saved(tmp_path / "whole")["members"]
    assert state["objective"]["sparsity"]["stage"] == 4


@each_path
def test_dense_latents_by_hand(sparse: bool):
    # Codes [1 2] and [0 .5]: densities .5 and 1, means .5 and 1.25. With the limit .25 the excesses are 1 and 3.
    term = DenseLatents(limit=0.25)
    assert number(measured(term, "standard", sparse)) == pytest.approx(0.5 + 3 * 1.25)
    # Decoder norms 5 and 2.
    found = measured(term, "standard", sparse, decoder_norm=DecoderNorm.free)
    assert number(found) == pytest.approx(5 * 0.5 + 2 * 3 * 1.25)
    # The density may be at the limit.
    assert number(measured(DenseLatents(limit=0.5), "standard", sparse)) == pytest.approx(1.25)


@each_path
@each_architecture
def test_tanh_of_a_large_scale_counts(arch: str, sparse: bool):
    autoencoder = build(arch)
    record = autoencoder(samples(20), sparse=sparse)
    codes = record.codes if record.gate is None else record.gate
    count = float((codes.dense() != 0).sum(1).double().mean())
    assert number(TanhL0(scale=1e6).measure(record, NO_DEAD)) == pytest.approx(count, rel=1e-3)


JUMP = WEIGHTS | {"log_threshold": [math.log(0.9), math.log(0.4)]}


@each_path
def test_step_and_target_by_hand(sparse: bool):
    # Thresholds [.9 .4] against [1 2] and [-1 .5]: three codes on in two samples.
    assert number(measured(StepL0(), "jumprelu", sparse, JUMP)) == 1.5
    found = measured(TargetL0(target=4.0), "jumprelu", sparse, JUMP)
    # (1.5 / 4 - 1)^2 = .625^2
    assert number(found) == pytest.approx(0.390625)
    assert float(found.beside["sparsity_l0"]) == 1.5


def counting(*counts: int) -> ForwardRecord:
    """A record in which the samples have these numbers of active latents."""
    active = (torch.arange(20) < torch.tensor(counts)[:, None]).double()
    zeros = active.new_zeros(len(counts), 2)
    return ForwardRecord(
        inputs=zeros,
        pre_activations=AffineMap(zeros, zeros.new_zeros(2, 20), zeros.new_zeros(20)),
        codes=Codes(active),
        reconstruction=zeros,
        W_dec=zeros.new_zeros(20, 2),
        b_dec=zeros.new_zeros(2),
        active=Codes(active),
    )


@pytest.mark.parametrize(
    ("counts", "per_sample", "of_batch"),
    [([12], 0.8, 0.04), ([8, 12], 0.8, 0)],  # 2/10 (12 - 10)^2 and (12/10 - 1)^2; the mean of 8 and 12 is on target
)
def test_target_of_samples_and_of_the_batch_by_hand(counts: list[int], per_sample: float, of_batch: float):
    record = counting(*counts)
    found = TargetL0(target=10, form=TargetForm.sample).measure(record, NO_DEAD)
    assert number(found) == pytest.approx(per_sample)
    assert float(found.beside["sparsity_l0"]) == 10 + 2 * (len(counts) == 1)
    assert number(TargetL0(target=10, form=TargetForm.batch).measure(record, NO_DEAD)) == pytest.approx(of_batch)


@each_path
def test_target_per_sample_moves_thresholds_by_the_samples_own_distance(sparse: bool):
    # l0 is 2 and 1. Within the kernel of 0.4: 1 of .9 in the first sample, .5 of .4 in the second, which is on target
    # and so does not pull. d = 2 (2/1) (l0 - 1) * -threshold / bandwidth / batch.
    autoencoder = with_weights("jumprelu", JUMP)
    term = TargetL0(target=1.0, form=TargetForm.sample)
    found = gradients(term.measure(autoencoder(X, sparse=sparse), NO_DEAD).value, autoencoder)["log_threshold"]
    torch.testing.assert_close(found, torch.tensor([-4 * 0.9 / 0.4 / 2, 0], dtype=torch.float64))


@each_path
@pytest.mark.parametrize(("target", "direction"), [(1.0, 1), (4.0, -1), (1.5, 0)])
def test_target_moves_thresholds_toward_it(target: float, direction: int, sparse: bool):
    # Within the kernel of 0.4: 1 of .9 and .5 of .4. Too many active: descent must raise thresholds, so the gradient
    # is negative; too few: positive. d = 2 (l0/t - 1) / t * -threshold / bandwidth / batch.
    autoencoder = with_weights("jumprelu", JUMP)
    value = TargetL0(target=target).measure(autoencoder(X, sparse=sparse), NO_DEAD).value
    found = gradients(value, autoencoder)["log_threshold"]
    factor = 2 * (1.5 / target - 1) / target
    wanted = -factor * torch.tensor([0.9, 0.4], dtype=torch.float64) / 0.4 / 2
    torch.testing.assert_close(found, wanted)
    assert (found.sign() == -direction).all()


@each_architecture
@pytest.mark.parametrize("term", [L1(), TanhL0()], ids=repr)
def test_descent_makes_codes_smaller(term, arch: str):
    autoencoder = build(arch).eval()
    before = term.measure(autoencoder(samples(20)), NO_DEAD).value
    found = gradients(before, autoencoder)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter -= 1e-6 * found[name]
    after = term.measure(autoencoder(samples(20)), NO_DEAD).value
    steepness = sum(float(grad.square().sum()) for grad in found.values())
    if thresholds := ARCHITECTURES[arch].thresholds:
        # A step in what is on moves the value by jumps, which the true gradient in the codes leaves out: the
        # thresholds' part is an estimate, so only the direction of the rest is asked for.
        steepness -= sum(float(found[name].square().sum()) for name in thresholds)
        assert float(after.detach()) < float(before.detach())
    else:
        assert float((before - after).detach()) == pytest.approx(1e-6 * steepness, rel=1e-3)


@each_path
def test_l1_on_no_active_code_is_zero_with_finite_gradients(sparse: bool):
    weights = WEIGHTS | {"b_enc": [-9.0, -9.0]}
    for norm in DecoderNorm:
        autoencoder = with_weights("standard", weights, decoder_norm=norm)
        for term in (L1(), TanhL0()):
            value = term.measure(autoencoder(X, sparse=sparse), NO_DEAD).value
            assert float(value.detach()) == 0
            assert all(torch.isfinite(grad).all() for grad in gradients(value, autoencoder).values())


def test_target_that_cannot_hold():
    with pytest.raises(ValueError, match=r"loss\.target is 0"):
        TargetL0(target=0.0)
