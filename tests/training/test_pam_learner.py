"""Rounds of encoder steps and decoder solutions: who moves when, what is solved for, and that it all survives."""

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.batch_topk import BatchTopK
from fsae.autoencoders.layout import Scaling
from fsae.autoencoders.settings import DecoderNorm
from fsae.couplings.mutual import Directions, Mutual, MutualCoupling
from fsae.losses.fisher import Fisher
from fsae.losses.reconstruction import SquaredError
from fsae.training.interruption import Interrupted
from fsae.training.least_squares import LeastSquares, Solution
from fsae.training.loop import Training
from fsae.training.pam_learner import PamLearner
from fsae.training.pam_settings import PamSettings
from fsae.training.resample import Reinitialisation, Scope
from fsae.training.settings import AdamSettings, Precision
from tests.architectures import each_with
from tests.streams import D_IN
from tests.training.runs import BATCH, D_SAE, STEPS, adam, differences, logged, member, pam, saved, training_run

# As its settings' docstring has them.
MODES: dict[str, dict[str, Any]] = {
    "batch by batch": {"updates_per_batch": 3},
    "in full": {"encoder_batches": 3, "decoder_batches": 4},
    "streaming": {"encoder_batches": 4, "memory": 0.9},
    "both": {"encoder_batches": 2, "decoder_batches": 2, "memory": 1.0},
    "streaming, cut short": {"encoder_batches": 4, "memory": 0.9, "samples": STEPS * BATCH},
}
# Every architecture in one mode, and two architectures in every mode.
PAIRS = [
    *((arch, "both") for arch in each_with("decoder_norm", "W_dec").args[1]),
    *((arch, mode) for arch in ("topk", "jumprelu") for mode in MODES),
]
each_pair = pytest.mark.parametrize(("arch", "mode"), dict.fromkeys(PAIRS))


def pam_member(arch: str, settings: PamSettings, **changes: Any) -> PamLearner:
    made = member(arch, settings, decoder_norm=DecoderNorm.free, **changes)
    assert isinstance(made, PamLearner)
    return made


def batches(count: int, seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, D_IN, generator=generator) + 0.5 for _ in range(count)]


def moved(trained: PamLearner, x: Tensor, step: int) -> set[str]:
    """The parameters that a step changes."""
    before = {name: tensor.clone() for name, tensor in trained.autoencoder.named_parameters()}
    trained.step(x, step)
    return {name for name, tensor in trained.autoencoder.named_parameters() if not torch.equal(tensor, before[name])}


def test_encoder_and_decoder_move_in_turns():
    # apply_b_dec_to_input=False: biases do not answer to b_dec.
    decoder, encoder = {"W_dec", "b_dec"}, {"W_enc", "b_enc"}
    wanted = {
        "batch by batch": [encoder | decoder] * 9,
        # A last round that is cut short ends like any other.
        "streaming": ([encoder] * 3 + [encoder | decoder]) * 2 + [encoder] * 2 + [encoder | decoder],
        "in full": ([encoder] * 3 + [set()] * 3 + [decoder]) * 2,
    }
    for mode, sets in wanted.items():
        settings = pam(samples=len(sets) * BATCH, resample_every=None, **MODES[mode])
        trained = pam_member("standard", settings, apply_b_dec_to_input=False)
        assert [moved(trained, x, step) for step, x in enumerate(batches(len(sets)))] == sets, mode


@pytest.mark.parametrize(
    ("changes", "nearest"),
    [
        # Rounds of 7 batches of 16.
        ({"samples": 13 * BATCH, "encoder_batches": 3, "decoder_batches": 4}, "112 or 224"),
        ({"samples": 13 * BATCH, "encoder_batches": 3, "decoder_batches": 4, "memory": 0.9}, "112 or 224"),
        ({"samples": 6 * BATCH, "encoder_batches": 3, "decoder_batches": 4}, "112"),
        # The last batches alone would decide.
        ({"samples": 13 * BATCH, "encoder_batches": 7}, "112 or 224"),
    ],
)
def test_a_last_round_that_would_leave_an_older_decoder_is_refused(changes: dict[str, Any], nearest: str):
    message = rf"trainer\.samples \(\d+\) end in the middle of a round of 112 .* are 7, of 16 each.* make it {nearest}$"
    with pytest.raises(ValueError, match=message):
        pam(**changes)


def test_the_last_solution_is_that_of_the_end():
    settings = pam(samples=9 * BATCH, resample_every=None, alpha=1e-3, **MODES["streaming"])
    trained = pam_member("topk", settings)
    *first, x = batches(9)
    for step, some in enumerate(first):
        trained.step(some, step)
    before = trained.autoencoder.W_dec.clone(), trained.autoencoder.b_dec.clone()
    gathered = copy.deepcopy(trained._gathered)
    gathered.add(trained.step(x, 8).codes, x)
    # Two rounds of four that count 0.9 more and less, and the last batch.
    assert gathered.samples == pytest.approx(BATCH * (4 * 0.9**2 + 4 * 0.9 + 1))
    W_dec, b_dec, *_ = gathered.solve(*before, alpha=1e-3, beta=settings.beta, mu=settings.mu, nu=settings.nu)
    torch.testing.assert_close(trained.autoencoder.W_dec, W_dec.float())
    torch.testing.assert_close(trained.autoencoder.b_dec, b_dec.float())


@each_with("decoder_norm", "W_dec")
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_batch_by_batch_the_decoder_is_the_best_for_the_codes_that_its_encoder_now_gives(arch, centred, sparse):
    settings = pam(alpha=0.0, beta=0.0, mu=1e-3, nu=0.0, resample_every=None, updates_per_batch=2)
    trained = pam_member(arch, settings, apply_b_dec_to_input=centred)
    trained.sparse = sparse
    x = batches(1)[0]
    W_t = trained.autoencoder.W_dec.clone()
    trained.step(x, 0)
    autoencoder = trained.autoencoder
    codes = autoencoder(x).codes.dense().detach()
    W, b = (each.detach().clone().requires_grad_() for each in (autoencoder.W_dec, autoencoder.b_dec))
    loss = (x - codes @ W - b).square().sum(1).mean() + 1e-3 * (W - W_t).square().sum()
    gradients = torch.autograd.grad(loss, (W, b))
    # In float32; before the solution they are some 1e-1.
    assert max(float(each.abs().max()) for each in gradients) < 1e-4


@each_with("decoder_norm", "W_dec")
def test_in_full_the_decoder_is_the_best_for_all_batches_of_the_second_pass(arch: str):
    settings = pam(alpha=1e-3, mu=0.0, nu=0.0, beta=0.0, resample_every=None, **MODES["in full"])
    trained = pam_member(arch, settings)
    rounds = batches(settings.round)
    for step, x in enumerate(rounds[:-1]):
        trained.step(x, step)
    # The same in one go, by the encoder as it is after its own three batches.
    statistics = LeastSquares()
    for x in rounds[3:]:
        statistics.add(copy.deepcopy(trained.autoencoder)(x).codes, x)
    solution = statistics.solve(trained.autoencoder.W_dec, trained.autoencoder.b_dec, alpha=1e-3)
    trained.step(rounds[-1], settings.round - 1)
    torch.testing.assert_close(trained.autoencoder.W_dec, solution.W_dec.float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(trained.autoencoder.b_dec, solution.b_dec.float(), rtol=1e-3, atol=1e-4)
    assert trained.read_interval()["condition"] == pytest.approx(solution.condition(), rel=1e-2)


@each_with("decoder_norm", "W_dec")
@pytest.mark.parametrize("sparse", [True, False])
def test_the_published_ridge_determines_more_latents_than_samples(arch: str, sparse: bool):
    # 16 samples for 24 latents, of which six never fire, without a cost to move: as splines/pam_mnist has it.
    settings = pam(
        **MODES["in full"] | {"decoder_batches": 1, "samples": 4 * BATCH},
        alpha=1.7e-11, beta=0.0, mu=0.0, nu=0.0, resample_every=None,
    )  # fmt: skip
    trained = pam_member(arch, settings)
    trained.sparse = sparse
    rounds = batches(settings.round)
    W_t = trained.autoencoder.W_dec.clone()
    for step, x in enumerate(rounds):
        trained.step(x, step)
    record = trained.autoencoder(rounds[-1])
    codes = record.codes.dense().double()
    A, wanted = torch.cat([codes, torch.ones(BATCH, 1)], dim=1), rounds[-1].double()
    best = wanted - A @ torch.linalg.lstsq(A, wanted, driver="gelsd").solution
    # In float32, what is left of numbers near 3.
    assert (record.error - best).abs().max() < 1e-4
    # A row of zeros could not be cured by the auxiliary term.
    silent = (codes == 0).all(0)
    assert silent.any()
    assert torch.equal(trained.autoencoder.W_dec[silent], W_t[silent])


def test_the_condition_number_is_found_once_an_interval():
    trained = pam_member("topk", pam(resample_every=None))
    conditions = [trained.step(x, step) and trained._sums["condition"].item() for step, x in enumerate(batches(3))]
    assert conditions[0] >= 1
    assert conditions == [conditions[0]] * 3
    assert trained.read_interval()["condition"] == conditions[0]
    trained.step(batches(4)[3], 3)
    assert trained.read_interval()["condition"] != conditions[0]


def test_batch_topk_s_threshold_sees_each_batch_once():
    seen = {}
    for settings in (adam(lr=1e-12, resample_every=None), pam(lr=1e-12, mu=1e9, nu=1e9, resample_every=None)):
        trained = member("batch_topk", settings, decoder_norm=DecoderNorm.free)
        for step, x in enumerate(batches(5)):
            trained.step(x, step)
        assert isinstance(trained.autoencoder, BatchTopK)
        seen[type(settings)] = trained.autoencoder.threshold
    torch.testing.assert_close(seen[PamSettings], seen[AdamSettings], rtol=1e-5, atol=0)


def test_streaming_gathers_codes_as_each_batch_s_last_update_found_them_and_remembers():
    settings = pam(alpha=1e-3, resample_every=None, encoder_batches=2, memory=0.5)
    trained = pam_member("topk", settings)
    statistics = LeastSquares()
    for step, x in enumerate(batches(6)):
        W_t, b_t = trained.autoencoder.W_dec.clone(), trained.autoencoder.b_dec.clone()
        statistics.add(trained.step(x, step).codes, x)
        if step % 2:
            W, b, *_ = statistics.solve(W_t, b_t, alpha=1e-3, beta=settings.beta, mu=settings.mu, nu=settings.nu)
            torch.testing.assert_close(trained.autoencoder.W_dec, W.float(), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(trained.autoencoder.b_dec, b.float(), rtol=1e-3, atol=1e-4)
            statistics.decay(0.5)


def test_codes_are_decoded_to_targets():
    trained = pam_member("topk", pam(mu=0.0, nu=0.0, alpha=1e-6))
    x = batches(1)[0]
    targets = x @ torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(3))
    record = trained.step(x, 0, targets)
    statistics = LeastSquares()
    statistics.add(trained.autoencoder(x).codes, targets)
    wanted = statistics.solve(record.W_dec, record.b_dec, alpha=1e-6, beta=1e-6)
    torch.testing.assert_close(trained.autoencoder.b_dec, wanted.b_dec.float(), rtol=1e-3, atol=1e-3)


@each_pair
def test_a_stopped_and_resumed_training_is_the_uninterrupted_one_bit_for_bit(arch: str, mode: str, tmp_path: Path):
    settings = pam(**MODES[mode])

    def train(folder: Path, stop_at: int | None = None) -> None:
        training_run(arch, folder, settings, stop_at=stop_at, trained=pam_member(arch, settings)).train()

    train(tmp_path / "whole")
    reference = saved(tmp_path / "whole")
    assert reference["members"][0]["resampled"] > 0
    folder = tmp_path / "stopped"
    # Within the encoder's batches and the decoder's, before and after solutions and draws.
    for step in (1, 2, 5, 6, 7, 11, 13, 14, 16, 22, settings.steps - 1):
        with pytest.raises(Interrupted):
            train(folder, step)
    train(folder)
    assert not differences(saved(folder), reference)
    assert logged(folder) == logged(tmp_path / "whole")
    conditions = [values["train/condition"] for _, values in logged(folder) if "train/condition" in values]
    assert len(conditions) >= 3
    assert all(condition >= 1 for condition in conditions)


@each_pair
def test_it_learns(arch: str, mode: str):
    # Batches of 16 determine 24 rows only where these are held.
    settings = pam(**{"samples": 56 * BATCH} | MODES[mode], mu=0.3, resample_every=None)
    trained = pam_member(arch, settings, loss={"reconstruction": SquaredError(), "fisher": Fisher(weight=1e-4)})
    x = torch.cat(batches(30))
    before = float(SquaredError().measure(trained.autoencoder(x), None).value.detach())  # pyright: ignore
    for step, batch in enumerate((batches(30) * 2)[: settings.steps]):
        trained.step(batch, step)
    after = float(SquaredError().measure(trained.autoencoder(x), None).value.detach())  # pyright: ignore
    assert after < 0.6 * before


@each_with("decoder_norm", "W_dec")
def test_sparse_products_train_to_the_same_weights_as_dense_ones(arch: str):
    trained = {}
    for sparse in (False, True):
        trained[sparse] = pam_member(arch, pam(mu=0.1, **MODES["streaming"]))
        # Later a latent wins by a hair here and loses there.
        for step, x in enumerate(batches(8)):
            trained[sparse].sparse = sparse
            trained[sparse].step(x, step)
    assert trained[True].resampled == trained[False].resampled > 0
    for name, weight in trained[False].autoencoder.named_parameters():
        error = (trained[True].autoencoder.get_parameter(name) - weight).abs().max()
        assert error < 2e-3 * weight.abs().max().clamp_min(0.01), name


def gradients_of_second_update(settings: PamSettings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the optimiser is given in a batch's second update, and how far the first has moved the encoder."""
    trained = pam_member("gated", settings)
    start = {name: tensor.detach().clone() for name, tensor in trained.autoencoder.named_parameters()}
    seen: list[dict[str, Tensor]] = []
    now: list[dict[str, Tensor]] = []

    def look(*_: object) -> None:
        named = [(name, each) for name, each in trained.autoencoder.named_parameters() if each.grad is not None]
        seen.append({name: each.grad.clone() for name, each in named if each.grad is not None})
        now.append({name: (each - start[name]).detach().clone() for name, each in named})

    trained.optimiser.register_step_pre_hook(look)
    trained.step(batches(1)[0], 0)
    return seen[1], now[1]


def test_moving_the_encoder_from_the_start_of_the_round_has_a_cost():
    free, costly = (
        gradients_of_second_update(pam(updates_per_batch=2, clip_norm=None, mu_enc=mu, nu_enc=nu))
        for mu, nu in ((0.0, 0.0), (3.0, 5.0))
    )
    assert free[0].keys() == {"W_enc", "b_gate", "b_mag", "r_mag"}
    for name, gradient in free[0].items():
        # d/dW of mu |W - W_t|^2 is 2 mu (W - W_t); the first update, from W_t itself, is the same with and without.
        added = 2 * (3.0 if name == "W_enc" else 5.0) * costly[1][name]
        assert added.abs().max() > 0.01
        torch.testing.assert_close(costly[0][name], gradient + added, rtol=1e-4, atol=1e-5)


def test_the_decoder_learns_of_no_other_term():
    trained = pam_member("standard", pam(), loss={"reconstruction": SquaredError(), "fisher": Fisher(weight=1.0)})
    trained.backward(batches(1)[0], 0)
    assert trained.autoencoder.W_dec.grad is None
    assert trained.autoencoder.b_dec.grad is None
    assert trained.autoencoder.W_enc.grad is not None


def test_coupling_adds_nothing_to_encoders_that_stay():
    settings = pam(resample_every=None, **MODES["in full"])
    members = [pam_member("topk", settings, seed=seed) for seed in (1, 2)]
    coupling, seen = MutualCoupling(Mutual(weight=0.1, directions=Directions.encoder), seed=0), []
    nothing = cast(Any, None)
    run = Training(members, coupling, Reinitialisation(), nothing, Scaling.of(1.0), settings, nothing, nothing)
    for step, x in enumerate(batches(settings.round)):
        run.take(x, None)
        seen.append((step, coupling.state_dict()["count"]))
    assert seen == [(0, 1), (1, 2), (2, 3), (3, 3), (4, 3), (5, 3), (6, 3)]


def samples_of_solutions(trained: PamLearner, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How many samples each of its decoders to come is of."""
    seen: list[float] = []
    solve = trained._gathered.solve

    def watched(*args: Any, **kwargs: Any) -> Solution:
        seen.append(trained._gathered.samples)
        return solve(*args, **kwargs)

    monkeypatch.setattr(trained._gathered, "solve", watched)
    return seen


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_no_decoder_is_solved_from_only_the_samples_since_a_resampling(memory: float, monkeypatch: pytest.MonkeyPatch):
    # Due after steps 4, 9, 14 and 19, drawn after rounds of 3: after 5, 11, 14 and 20.
    trained = pam_member("topk", pam(samples=30 * BATCH, resample_every=5 * BATCH, encoder_batches=3, memory=memory))
    sizes = samples_of_solutions(trained, monkeypatch)
    drawn = []
    for step, x in enumerate(batches(30)):
        before = trained.resampled
        trained.step(x, step)
        if trained.resampled > before:
            drawn.append(step)
            assert trained.state_dict()["gathered"]["samples"] == 0
    assert drawn
    assert set(drawn) <= {5, 11, 14, 20}
    assert len(sizes) == 10
    assert min(sizes) == 3 * BATCH
    assert memory == 0 or max(sizes) > 3 * BATCH


def test_latents_are_reinitialised_between_rounds_only():
    settings = pam(samples=12 * BATCH, resample_every=None, encoder_batches=3, memory=1.0)
    trained = pam_member("topk", settings)
    when = Reinitialisation(scope=Scope.latents, every=2, threshold=0.1, until=1.0)
    started, began = [], []
    for step, x in enumerate(batches(12)):
        record = trained.step(x, step)
        started.append(trained.reinitialise(record, step, when) > 0)
        began.append(bool(trained.state_dict()["began"]))
    # After rounds of 3 batches, the second of which was due; not at the end, because no round follows.
    assert [step for step, count in enumerate(started) if count] == [2, 5, 8]
    assert began == [True, True, False] * 4


@each_with("decoder_norm", "W_dec")
def test_pam_trains_in_bfloat16_products(arch: str):
    settings = pam(precision=Precision.bf16, lr=1e-3, resample_every=None, mu=0.0, **MODES["in full"])
    trained = pam_member(arch, settings)
    x = batches(settings.steps)
    for step, some in enumerate(x):
        trained.step(some, step)
    trained.check_finite(settings.steps)
    assert trained.autoencoder.W_dec.dtype == torch.float32
    # It is evaluated in float32, for whose codes another decoder is best, though not a much better one.
    last = torch.cat(x[-settings.decoder_batches :])
    record = trained.autoencoder.eval()(last)
    best = LeastSquares()
    best.add(record.codes, last)
    W_dec, b_dec, *_ = best.solve(record.W_dec, record.b_dec, alpha=settings.alpha)
    least = (last - record.codes.dense() @ W_dec.float() - b_dec.float()).square().sum()
    assert record.error.square().sum() < 1.5 * least


def test_equations_without_a_single_solution_end_the_run_by_name():
    # Six latents never fire, and nothing holds them.
    trained = pam_member("standard", pam(alpha=0.0, mu=0.0))
    with pytest.raises(ValueError, match=rf"d_sae {D_SAE}, .* raise trainer\.alpha or trainer\.mu"):
        trained.step(batches(1)[0], 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_batches": 0}, r"trainer\.encoder_batches is 0; it must be at least 1"),
        ({"decoder_batches": -1}, r"trainer\.decoder_batches is -1"),
        ({"memory": 1.5}, r"trainer\.memory is 1\.5; it must be a share"),
        ({"alpha": -1.0}, r"trainer\.alpha is -1"),
        ({"nu_enc": float("nan")}, r"trainer\.nu_enc is nan"),
        ({"updates_per_batch": 0}, r"trainer\.updates_per_batch is 0"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        pam(**changes)
