import copy
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fsae.autoencoders.settings import DecoderNorm
from fsae.losses.fisher import Fisher, FisherForm
from fsae.losses.objective import Objective
from fsae.losses.reconstruction import SquaredError
from fsae.training.gradient_learner import CROSSOVER, DENSE_ABOVE, SPARSE_BELOW, GradientLearner
from fsae.training.settings import Precision
from tests.architectures import ARCHITECTURES, each_architecture, each_with, settings_of
from tests.streams import D_IN
from tests.training.runs import BATCH, D_SAE, SCALE, STEPS, adam, differences, member, terms

# If latents compete, k decides how many are on, if there is one.
PLANTED = {arch: {"k": 8} if row.settings.has_k else {} for arch, row in ARCHITECTURES.items() if row.competes}

# Enough for AuxK to have something to say.
DEAD = torch.arange(4)


def batches(count: int, seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, D_IN, generator=generator) for _ in range(count)]


@each_with("encoder_norm")
def test_sparse_products_train_to_the_same_weights_as_dense_ones(arch: str):
    trained: dict[bool, GradientLearner] = {}
    for sparse in (False, True):
        trained[sparse] = member(arch, adam())
        for step, x in enumerate(batches(STEPS)):
            trained[sparse].sparse = sparse
            trained[sparse].step(x, step)
            if adam().logs_after(step):
                trained[sparse].read_interval()
    for name, weight in trained[False].autoencoder.named_parameters():
        error = (trained[True].autoencoder.get_parameter(name) - weight).abs().max()
        assert error < 1e-4 * weight.abs().max().clamp_min(0.01), name
    assert trained[True].resampled == trained[False].resampled > 0


@each_architecture
@pytest.mark.parametrize("sparse", [True, False])
def test_a_learner_learns_to_map_inputs_to_targets(arch: str, sparse: bool):
    x, targets = batches(2)
    trained = member(arch, adam())
    trained.sparse = sparse
    trained.dead.indices = DEAD
    record = trained.backward(x, 0, targets)
    error = (record.reconstruction - targets).square().sum(1)
    assert not torch.allclose(error, (record.reconstruction - x).square().sum(1))
    trained.update(0)
    trained.finish(record, 0)
    means = trained.read_interval()
    assert means["reconstruction"] == pytest.approx(error.mean().item(), rel=1e-5)
    assert means["mse"] == pytest.approx(error.mean().item() / SCALE**2, rel=1e-5)
    unexplained = error.sum() / (targets - targets.mean(0)).square().sum()
    assert means["fvu"] == pytest.approx(unexplained.item(), rel=1e-5)
    if "auxiliary" in means:
        plain = member(arch, adam())
        plain.dead.indices = DEAD
        plain.step(x, 0)
        assert means["auxiliary"] != pytest.approx(plain.read_interval()["auxiliary"], rel=1e-3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile makes C++ on a CPU")
def test_compiled_dense_products_train_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    trained = [member("standard", adam(compile=compiled)) for compiled in (False, True)]
    for each in trained:
        each.sparse = False
        for step, x in enumerate(batches(6)):
            each.step(x, step)
        # Sparse batches go through the same weights.
        each.sparse = True
        each.step(batches(7)[6], 6)
    assert any(tmp_path.rglob("*.so"))
    for name, weight in trained[0].autoencoder.named_parameters():
        torch.testing.assert_close(trained[1].autoencoder.get_parameter(name), weight, rtol=1e-4, atol=1e-5, msg=name)


def with_active(count: int, d_sae: int = 200) -> GradientLearner:
    """A standard autoencoder in which exactly `count` of 200 latents are always on."""
    settings = adam(lr=1e-30, clip_norm=None, resample_every=None)
    autoencoder = settings_of("standard", d_sae=d_sae).build(D_IN, torch.Generator().manual_seed(0))
    made = GradientLearner(autoencoder, Objective({"reconstruction": SquaredError()}), settings, 1.0, seed=0)
    activate(made, count)
    return made


def activate(made: GradientLearner, count: int) -> None:
    bias = made.autoencoder.get_parameter("b_enc")
    bias.data.fill_(-100.0)
    bias.data[:count] = 100.0


def test_products_are_chosen_by_the_measured_density_and_do_not_go_to_and_fro():
    assert (CROSSOVER[Precision.fp32], SPARSE_BELOW, DENSE_ABOVE) == (0.2, 0.6, 0.9)
    trained = with_active(200)
    assert not trained.sparse
    # Shares of 15, 10, 15, 20 and 15 per cent.
    for count, wanted in ((30, False), (20, True), (30, True), (40, False), (30, False)):
        activate(trained, count)
        trained.step(batches(1)[0], 0)
        assert trained.read_interval()["l0"] == count
        assert trained.sparse is wanted, count


@pytest.mark.parametrize(("k", "sparse"), [(20, True), (30, False)])
def test_a_fixed_k_chooses_sparse_products_from_the_first_step(k: int, sparse: bool):
    assert member("topk", adam(), k=k).sparse is False
    autoencoder = settings_of("topk", d_sae=200, k=k).build(D_IN, torch.Generator())
    assert GradientLearner(autoencoder, Objective({}), adam(), 1.0, seed=0).sparse is sparse


@pytest.mark.parametrize("sparse", [True, False])
def test_the_choice_survives_a_checkpoint(sparse: bool):
    one, other = with_active(8), with_active(8)
    one.sparse, other.sparse = sparse, not sparse
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert other.sparse is sparse


@each_architecture
def test_a_state_taken_over_is_the_same_state(arch: str):
    one = member(arch, adam())
    for step, x in enumerate(batches(13)):
        one.step(x, step)
        if adam().logs_after(step):
            one.read_interval()
    state = copy.deepcopy(one.state_dict())
    other = member(arch, adam())
    assert differences(state, other.state_dict())
    other.load_state_dict(copy.deepcopy(state))
    assert not differences(state, other.state_dict())
    # And does not share anything with where it came from.
    other.step(batches(1)[0], 13)
    assert not differences(state, copy.deepcopy(one.state_dict()))


@each_with("decoder_norm")
def test_unit_decoders_stay_at_norm_1_and_free_ones_do_not(arch: str):
    for norm in DecoderNorm:
        trained = member(arch, adam(), decoder_norm=norm)
        for step, x in enumerate(batches(10)):
            trained.step(x, step)
            if norm is DecoderNorm.unit:
                assert torch.allclose(trained.autoencoder.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-6)
        if norm is DecoderNorm.free:
            assert (trained.autoencoder.W_dec.norm(dim=1) - 1).abs().max() > 1e-3


def gradients_seen(trained: GradientLearner, x: Tensor, step: int) -> dict[str, Tensor]:
    """What the optimiser is given in one step."""
    seen: dict[str, Tensor] = {}

    def look(*_: object) -> None:
        for name, parameter in trained.autoencoder.named_parameters():
            assert parameter.grad is not None
            seen[name] = parameter.grad.clone()

    handle = trained.optimiser.register_step_pre_hook(look)
    trained.step(x, step)
    handle.remove()
    return seen


@each_architecture
def test_the_whole_gradient_is_clipped(arch: str):
    x = 30 * batches(1)[0]
    whole = gradients_seen(member(arch, adam(clip_norm=None)), x, 0)
    clipped = gradients_seen(member(arch, adam(clip_norm=0.5)), x, 0)
    norm = torch.cat([gradient.flatten() for gradient in whole.values()]).norm()
    assert norm > 0.5
    for name in whole:
        assert torch.allclose(clipped[name], whole[name] * 0.5 / norm, rtol=1e-4, atol=1e-7), name
    # What is short enough already stays as it is.
    assert not differences(whole, gradients_seen(member(arch, adam(clip_norm=2.0 * float(norm))), x, 0))


@each_architecture
def test_a_unit_decoder_gets_no_gradient_along_its_rows(arch: str):
    trained = member(arch, adam(clip_norm=None))
    rows = trained.autoencoder.W_dec.detach().clone()
    gradient = gradients_seen(trained, batches(1)[0], 3)["W_dec"]
    assert gradient.abs().max() > 0.01
    assert torch.allclose((gradient * rows).sum(1), torch.zeros(D_SAE), atol=1e-4)


def test_each_step_has_the_schedule_s_learning_rate():
    trained = member("standard", adam())
    for step, x in enumerate(batches(STEPS)):
        trained.step(x, step)
        assert trained.optimiser.param_groups[0]["lr"] == adam().lr_at(step)


@each_architecture
def test_several_updates_on_a_batch_that_is_counted_once(arch: str):
    one, other = member(arch, adam(updates_per_batch=3)), member(arch, adam())
    x = batches(1)[0]
    one.step(x, 0)
    records = []
    for _ in range(3):
        records.append(other.backward(x, 0))
        other.update(0)
    other.finish(records[-1], 0)
    assert not differences(one.state_dict(), other.state_dict())
    assert one.dead.samples_since_fired.max() == BATCH
    assert differences(one.state_dict()["autoencoder"], stepped_once(arch, x))


def stepped_once(arch: str, x: Tensor) -> dict[str, Tensor]:
    trained = member(arch, adam())
    trained.step(x, 0)
    return trained.state_dict()["autoencoder"]


@each_with("encoder_init", "encoder_norm")
def test_resampling_brings_latents_back(arch: str):
    """A quarter of the latents begins dead (most do, where k is chosen by magnitude)."""
    dead_shares = []
    for every in (None, 7 * BATCH):
        settings = adam(samples=60 * BATCH, resample_every=every, dead_after=5 * BATCH)
        trained = member(arch, settings, {"reconstruction": SquaredError()})
        for step, x in enumerate(batches(60)):
            trained.step(x, step)
        dead_shares.append(trained.read_interval()["dead_share"])
    assert dead_shares[1] < dead_shares[0]


def test_latents_are_resampled_as_often_as_asked_and_not_in_the_last_fifth():
    # Dead after one batch without firing, so that some latent always is.
    trained = member("topk", adam(samples=50 * BATCH, resample_every=int(2.5 * BATCH), dead_after=1))
    at = []
    for step, x in enumerate(batches(50)):
        before = trained.resampled
        trained.step(x, step)
        if trained.resampled > before:
            at.append(step + 1)
    # Multiples of 2.5 steps, reached at the next whole step, up to step 40.
    assert at == [-(-5 * i // 2) for i in range(1, 17)]
    assert trained.read_interval()["resampled"] == trained.resampled > 16


def test_the_mean_of_a_term_that_is_measured_rarely_is_over_its_own_steps():
    loss = {"reconstruction": SquaredError(), "fisher": Fisher(weight=0.0)}
    trained = member("standard", adam(), loss)
    for step, x in enumerate(batches(5)):
        trained.step(x, step)
    means = trained.read_interval()
    again = member("standard", adam(log_every=1), loss)
    single = []
    for step, x in enumerate(batches(5)):
        again.step(x, step)
        single.append(again.read_interval()["fisher"])
    assert means["fisher"] == single[4] != single[3]


@cache
def planted(count: int, width: int = 64, features: int = 128, seed: int = 3) -> list[Tensor]:
    """Batches of 256 samples in 64 dimensions, each a sum of about four of 128 unit directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(features, width, generator=generator), dim=1)
    made = []
    for _ in range(count):
        on = torch.rand(256, features, generator=generator) < 4 / features
        made.append(4 * (on * (0.5 + torch.rand(256, features, generator=generator))) @ directions)
    return made


@each_architecture
def test_products_in_bfloat16_train_to_the_same_quality(arch: str):
    held_out = torch.cat(planted(4, seed=3))
    quality = {}
    for precision in Precision:
        settings = adam(
            precision=precision, samples=200 * 256, batch_size=256, lr=3e-3, resample_every=None, dead_after=10**9
        )
        generator = torch.Generator().manual_seed(0)
        autoencoder = settings_of(arch, d_sae=512, **PLANTED.get(arch, {"init_density": 0.02})).build(64, generator)
        autoencoder.initialise(lambda: held_out, scale=1.0)
        made = GradientLearner(autoencoder, Objective(terms(arch)), settings, 1.0, seed=0)
        made.sparse = True
        for step, x in enumerate(planted(200)):
            made.step(x, step)
        with torch.no_grad():
            record = autoencoder.eval()(held_out, sparse=True)
        error = (record.reconstruction - held_out).square().sum() / (held_out - held_out.mean(0)).square().sum()
        quality[precision] = (float(error), float((record.codes.values != 0).sum()) / len(held_out))
    (fvu, l0), (fvu_bf16, l0_bf16) = quality[Precision.fp32], quality[Precision.bf16]
    assert fvu < 0.5
    # It may be better by chance, as lista's is here by 5 %: early in training, rounding selects other latents. Over
    # seeds, mlp_encoder's fvu varies by 15 %, and in bfloat16 it is 1.4 % larger on average.
    assert fvu_bf16 < fvu * (1.04 if arch == "mlp_encoder" else 1.02)
    assert l0_bf16 == pytest.approx(l0, rel=0.03)


def test_weight_decay_moves_weights_without_gradients():
    trained = member(
        "standard", adam(weight_decay=0.1, clip_norm=None, warm_up=0.0), loss={"reconstruction": SquaredError()}
    )
    autoencoder = trained.autoencoder
    idle = slice(0, D_SAE // 4)
    before = autoencoder.W_enc[:, idle].detach().clone()
    trained.step(torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0)), 0)
    # Adam's first step is lr against the gradient's sign, here that of the weight.
    torch.testing.assert_close(
        autoencoder.W_enc[:, idle], before - trained.settings.lr * before.sign(), atol=1e-4, rtol=0
    )


@each_architecture
def test_codes_of_sparse_batches_are_exact_in_bfloat16(arch: str):
    """Only which of near ties are kept may differ."""
    autoencoder = settings_of(arch, d_sae=512, **PLANTED.get(arch, {"init_density": 0.02})).build(
        64, torch.Generator().manual_seed(0)
    )
    first, x = planted(2)
    autoencoder.initialise(lambda: first, scale=1.0)
    exact = autoencoder(x, sparse=True).codes.dense()
    with torch.autocast("cpu", torch.bfloat16):
        codes = autoencoder(x, sparse=True).codes.dense()
    both = (exact != 0) & (codes != 0)
    torch.testing.assert_close(codes[both], exact[both], rtol=1e-5, atol=1e-5)
    differ = int(((exact != 0) != (codes != 0)).sum())
    # If the number of codes is not fixed, exactly the right codes are found.
    assert differ <= (0.05 * int((exact != 0).sum()) if autoencoder.settings.fixed_k else 0)


@pytest.mark.parametrize("form", list(FisherForm))
@pytest.mark.parametrize(
    ("arch", "sparse"),
    [
        *((arch, False) for arch in ARCHITECTURES),
        *((arch, True) for arch in ARCHITECTURES if settings_of(arch).fixed_k),
    ],
)
def test_a_step_does_not_ask_the_device_for_a_number(arch: str, sparse: bool, form: FisherForm):
    # On a GPU, only a fixed number of codes is known without a synchronisation. Fake tensors have no numbers: reading
    # one, or letting the shape of a result depend on one, is an error. Of this width, the Gram matrix of the sparse
    # codes is computed in slices of 32 samples.
    width, batch = 2**14, 80
    if not Fisher(form=form).fields_read <= settings_of(arch).provides:
        return
    with FakeTensorMode():
        loss = terms(arch) | {"fisher": Fisher(weight=1e-3, form=form)}
        trained = member(arch, adam(resample_every=None), loss, d_sae=width)
        trained.sparse = sparse
        for step in range(2):
            trained.dead.indices = torch.tensor([1, 4, 7])
            trained.step(torch.randn(batch, D_IN), step)
        with pytest.raises(DataDependentOutputException):
            trained.read_interval()
