"""Matryoshka losses by hand, against their definition, and where their gradients go."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.losses.auxiliary import AuxK
from fsae.losses.matryoshka import LevelAuxK, Levels, Matryoshka, Reduction, SampledMatryoshka
from fsae.losses.reconstruction import SquaredError
from fsae.losses.term import LossTerm, Moment
from fsae.sparse.codes import Codes
from tests.architectures import build, each_architecture, gradients, samples, twin, with_weights
from tests.training.runs import adam, differences, member, saved, terms, training_run

NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))
each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])

# Codes [2 1 0] of [2 2]: reconstructions [2 0] from the first latent and [2 1] from all three; errors 4 and 1.
X = torch.tensor([[2.0, 2.0]], dtype=torch.float64)
WEIGHTS = {
    "W_enc": [[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]],
    "W_dec": [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]],
}


def number(term: LossTerm, autoencoder: SparseAutoencoder, x: Tensor, sparse: bool, moment: Moment = NO_DEAD) -> float:
    return float(term.measure(autoencoder(x, sparse), moment).value.detach())


@each_path
@pytest.mark.parametrize(
    ("term", "wanted"),
    [
        (Matryoshka(widths=[1]), 5),  # SAELens: 4 + 1
        (Matryoshka(widths=[0.3]), 5),  # round(.3 x 3) = 1 latent
        (Matryoshka(widths=[1], level_weights=[0.75, 1.0]), 4),  # 3 + 1
        (Matryoshka(widths=[1], reduction=Reduction.mean), 2.5),  # Nabeshima: (4 + 1) / 2
        (Matryoshka(widths=[1], reduction=Reduction.mean, level_weights=[0.5, 0.5]), 1.25),  # dictionary_learning
        # b_dec alone, which is 0, leaves 8. Bussmann's mean over two dimensions: (4 + 2 + .5) / 3 = 2.1667.
        (Matryoshka(widths=[1], reduction=Reduction.mean_with_b_dec), 2 * (4 + 2 + 0.5) / 3),
        (Matryoshka(widths=[]), 1),
        (Matryoshka(widths=[1, 2]), 6),  # the third latent is off: 4 + 1 + 1
        (Matryoshka(widths=[1], detach=True), 5),
        (SampledMatryoshka(levels=3), 2),  # both inner widths: (4 + 1 + 1) / 3
        (SampledMatryoshka(levels=1), 1),
    ],
    ids=str,
)
def test_by_hand(term: Levels, wanted: float, sparse: bool):
    assert number(term, with_weights("topk", WEIGHTS, k=2), X, sparse) == pytest.approx(wanted)


def test_each_level_is_logged():
    found = Matryoshka(widths=[1], level_weights=[0.5, 0.5]).measure(with_weights("topk", WEIGHTS, k=2)(X), NO_DEAD)
    assert {name: float(error) for name, error in found.beside.items()} == {"level_0": 4, "level_1": 1}


def definition(autoencoder: SparseAutoencoder, x: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """The error of each level from codes that are zero beyond its width."""
    codes = autoencoder(x).codes.dense()
    prefixes = [codes * (torch.arange(codes.shape[1]) < width) @ autoencoder.W_dec for width in widths]
    return [(x - prefix - autoencoder.b_dec).square().sum(1).mean() for prefix in prefixes]


@each_architecture
@each_path
def test_value_and_gradients_are_the_definition(arch: str, sparse: bool):
    autoencoder, measuring, x = build(arch), build(arch), samples(9)
    wanted = sum(definition(autoencoder, x, [1, 5, 9, 14]))
    assert isinstance(wanted, Tensor)
    value = Matryoshka(widths=[1, 5, 9]).measure(measuring(x, sparse), NO_DEAD).value
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    found = gradients(value, measuring)
    for name, grad in gradients(wanted, autoencoder).items():
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


@each_path
def test_detached_levels_train_the_latents_that_are_new_in_them(sparse: bool):
    x = samples(9)
    term = Matryoshka(widths=[5, 9], detach=True)
    autoencoder = build("batch_topk", apply_b_dec_to_input=False)
    found = gradients(term.measure(autoencoder(x, sparse), NO_DEAD).value, autoencoder)
    for level, (begin, end) in enumerate([(0, 5), (5, 9), (9, 14)]):
        alone = build("batch_topk", apply_b_dec_to_input=False)
        wanted = gradients(definition(alone, x, [5, 9, 14])[level], alone)
        torch.testing.assert_close(found["W_dec"][begin:end], wanted["W_dec"][begin:end])
        torch.testing.assert_close(found["W_enc"][:, begin:end], wanted["W_enc"][:, begin:end])
        if level == 0:
            torch.testing.assert_close(found["b_dec"], wanted["b_dec"])


@each_path
def test_one_level_is_the_squared_error_bit_for_bit(sparse: bool):
    autoencoder, other = build("batch_topk", dtype=torch.float32), build("batch_topk", dtype=torch.float32)
    x = samples(9, dtype=torch.float32)
    for term in (Matryoshka(widths=[]), Matryoshka(widths=[], detach=True, reduction=Reduction.mean)):
        autoencoder, other = twin(autoencoder), twin(other)
        value = term.measure(autoencoder(x, sparse), NO_DEAD).value
        wanted = SquaredError().measure(other(x, sparse), NO_DEAD).value
        assert torch.equal(value, wanted)
        found = gradients(value, autoencoder)
        for name, grad in gradients(wanted, other).items():
            assert torch.equal(found[name], grad), name


def test_all_levels_cost_one_decoder_product(monkeypatch: pytest.MonkeyPatch):
    record = build("topk", 5, 14, k=6)(samples(20), sparse=True)
    patterns = []
    decode = Codes.decode

    def counted(codes: Codes, W_dec: Tensor) -> Tensor:
        patterns.append(codes.pattern)
        return decode(codes, W_dec)

    monkeypatch.setattr(Codes, "decode", counted)
    Matryoshka(widths=[1, 3, 5, 9]).measure(record, NO_DEAD)
    (inner,) = patterns
    assert record.codes.pattern is not None
    assert inner.columns.numel() == (record.codes.pattern.columns < 9).sum()


def test_a_run_with_drawn_widths_resumes_bit_for_bit(tmp_path):
    loss: dict[str, LossTerm] = {**terms("batch_topk"), "reconstruction": SampledMatryoshka(levels=4)}

    def run(folder: str, stop_at: int | None = None):
        return training_run(
            "batch_topk", tmp_path / folder, stop_at=stop_at, trained=member("batch_topk", adam(), loss)
        )

    run("whole").train()
    with pytest.raises(BaseException, match="SIGTERM"):
        run("stopped", stop_at=11).train()
    run("stopped").train()
    assert differences(saved(tmp_path / "whole"), saved(tmp_path / "stopped")) == []


def test_drawn_widths_follow_the_power_law():
    term, moment = SampledMatryoshka(levels=2, power=0.5), Moment(torch.tensor([]), generator=torch.Generator())
    drawn = torch.tensor([term.inner_widths(16, moment)[0] for _ in range(4000)])
    # Of 1 to 15: P(at most m) = (m / 15)^.5.
    assert drawn.min() == 1
    assert drawn.max() == 15
    for m in (1, 4, 9):
        assert float((drawn <= m).double().mean()) == pytest.approx((m / 15) ** 0.5, abs=0.03)
    widths = SampledMatryoshka(levels=16).inner_widths(16, moment)
    assert widths == list(range(1, 16))


# --- AuxK per level. -------------------------------------------------------------------------------------------------


@each_path
def test_level_aux_k_by_hand(sparse: bool):
    # topk with k=1: pre-activations [3 1 2 -1], latent 0 alone is on, 3 [1 0] at every level: residuals [0 4].
    weights = {
        "W_enc": [[1.0, 0.0, 0.0, 0.0], [0.0, 0.25, 0.5, -0.25]],
        "W_dec": [[1.0, 0.0], [0.0, 1.0], [0.0, 1.5], [1.0, 0.0]],
    }
    x, autoencoder = torch.tensor([[3.0, 4.0]]).double(), with_weights("topk", weights, k=1)
    dead = Moment(dead_latents=torch.tensor([1, 2, 3]))
    # Level of latents 0 and 1: [0 4] - 1 [0 1], squared 9, one of one. Level of 2 and 3: [0 4] - 2 [0 1.5]: 1.
    assert number(LevelAuxK(widths=[2], k=1), autoencoder, x, sparse, dead) == pytest.approx(10)
    # With k=2, the first level has one dead latent of two wanted: 9 / 2. The second: [0 4] - [0 3] + [1 0]: 2.
    assert number(LevelAuxK(widths=[2], k=2), autoencoder, x, sparse, dead) == pytest.approx(4.5 + 2)
    # A level without dead latents counts nothing.
    assert number(LevelAuxK(widths=[1], k=1), autoencoder, x, sparse, dead) == pytest.approx(1)


@each_path
def test_level_aux_k_has_the_residual_of_its_own_level(sparse: bool):
    # The residual of the first latent alone is [0 2], that of all three [0 1]. Dead latent 0 has pre-activation 2 and
    # row [1 0]: |[0 2] - [2 0]|^2 = 8. Latent 2 has pre-activation 0.
    autoencoder = with_weights("topk", WEIGHTS, k=2)
    for dead, wanted in ((0, 8), (2, 1)):
        moment = Moment(dead_latents=torch.tensor([dead]))
        assert number(LevelAuxK(widths=[1], k=1), autoencoder, X, sparse, moment) == pytest.approx(wanted)


@each_path
def test_level_aux_k_of_one_level_is_aux_k(sparse: bool):
    record = build("batch_topk")(samples(7), sparse)
    moment = Moment(dead_latents=torch.tensor([1, 4, 8]))
    for k in (2, 5):
        wanted = AuxK(k=k).measure(record, moment).value
        torch.testing.assert_close(LevelAuxK(widths=[], k=k).measure(record, moment).value, wanted)


@each_path
def test_level_aux_k_reaches_dead_latents_only(sparse: bool):
    autoencoder, dead = build("topk", apply_b_dec_to_input=False), torch.tensor([1, 4, 8, 12])
    value = LevelAuxK(widths=[5, 9], k=2).measure(autoencoder(samples(7), sparse), Moment(dead)).value
    found = gradients(value, autoencoder)
    living = torch.ones(14, dtype=torch.bool)
    living[dead] = False
    assert not found["W_dec"][living].any()
    assert not found["W_enc"][:, living].any()
    assert found["W_dec"][dead].any(1).all()
    assert not found["b_dec"].any()


# --- Settings that cannot hold. --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([4, 2], "which are \\[4, 2\\] of 8 latents"),
        ([0.01], "which are \\[0\\] of 8"),
        ([8], "fewer than all"),
        ([2, 2.5], "has 2.5; it must be a share"),
    ],
)
def test_widths_that_cannot_hold(widths: list[float], message: str):
    for term in (Matryoshka(widths=widths), LevelAuxK(widths=widths)):
        with pytest.raises(ValueError, match=rf"loss\.some\.widths.*{message}"):
            term.check_width("some", 8)


def test_settings_that_cannot_hold():
    with pytest.raises(ValueError, match=r"loss\.reconstruction\.level_weights has 1 weights, but there are 3"):
        Matryoshka(widths=[1, 2], level_weights=[1.0])
    with pytest.raises(ValueError, match=r"one of loss\.widths is 0"):
        Matryoshka(widths=[0])
    with pytest.raises(ValueError, match="levels is 9, more than the 8 latents"):
        SampledMatryoshka(levels=9).check_width("reconstruction", 8)
