"""Decoders of which rows stay near convex combinations of their first ones."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fsae.autoencoders.layout import Ends, Layout, blocks_across_layers
from fsae.autoencoders.settings import DecoderNorm
from fsae.export.folding import fold
from fsae.export.saelens import Provenance, load_saelens, save_saelens
from fsae.training.archetypes import Archetypes
from fsae.training.frozen import Frozen
from fsae.training.gradient_learner import GradientLearner
from fsae.training.interruption import Interrupted
from fsae.training.population import PopulationSettings
from fsae.training.resample import Reinitialisation, Scope
from fsae.training.room import check_moments
from tests.architectures import ARCHITECTURES, relative_error, samples, settings_of
from tests.streams import D_IN, activation_source
from tests.training.runs import BATCH, D_SAE, STEPS, adam, differences, member, pam, saved, train_pack, training_run

DISTANCE = 0.3


def archetypal(arch: str = "topk", distance: float = DISTANCE, seed: int = 1, **changes: Any) -> GradientLearner:
    settings = adam(**changes)
    return member(arch, settings, seed=seed, decoder_norm=DecoderNorm.free, archetype_distance=distance)


def batch(step: int) -> Tensor:
    return torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(step))


def archetypes_of(learner: GradientLearner) -> Archetypes:
    assert learner._archetypes is not None
    return learner._archetypes


def check_constraint(learner: GradientLearner, distance: float = DISTANCE) -> None:
    parts, rows = archetypes_of(learner), learner.autoencoder.W_dec
    mixed = parts.mixture @ parts.points
    assert parts.mixture.min() >= 0
    torch.testing.assert_close(parts.mixture.sum(1), torch.ones(D_SAE))
    assert (rows / parts.log_scale.exp() - mixed).norm(dim=1).max() <= distance + 1e-5
    torch.testing.assert_close(rows, parts.log_scale.exp() * (mixed + parts.offset))


def test_rows_by_hand():
    # C = 1. (3, -1) is rectified and divided by its sum, (0, 2) is shortened to 1: (1, 0) + (0, 1), times e^m.
    rows = nn.Parameter(torch.eye(2, dtype=torch.float64))
    archetypes = Archetypes(rows, distance=1.0)
    assert torch.equal(archetypes.mixture, torch.eye(2))
    for scale, wanted in ((0.0, [1.0, 1.0]), (math.log(2), [2.0, 2.0])):
        with torch.no_grad():
            archetypes.mixture[0] = torch.tensor([3.0, -1.0])
            archetypes.offset[0] = torch.tensor([0.0, 2.0])
            archetypes.log_scale.fill_(scale)
        archetypes.constrain(rows)
        assert archetypes.mixture[0].tolist() == pytest.approx([1, 0])
        assert archetypes.offset[0].tolist() == pytest.approx([0, 1])
        assert rows[0].tolist() == pytest.approx(wanted)


def test_parts_get_the_gradient_of_what_they_make():
    archetypes = Archetypes(samples(6, 4), distance=10.0)
    with torch.no_grad():
        archetypes.mixture.copy_(torch.softmax(samples(6, 6, seed=2), 1))
        archetypes.offset.copy_(samples(6, 4, seed=3))
        archetypes.log_scale.fill_(0.4)
    made = archetypes.log_scale.exp() * (archetypes.mixture @ archetypes.points + archetypes.offset)
    wanted = torch.autograd.grad((made * samples(6, 4, seed=4)).sum(), [*archetypes.parameters()])
    rows = nn.Parameter(made.detach())
    rows.grad = samples(6, 4, seed=4)
    archetypes.take_gradient(rows)
    assert rows.grad is None
    for part, grad in zip(archetypes.parameters(), wanted, strict=True):
        assert part.grad is not None
        torch.testing.assert_close(part.grad, grad)


@pytest.mark.parametrize("distance", [0.0, DISTANCE])
def test_training_lowers_the_error_within_the_constraint(distance: float):
    trained = archetypal(distance=distance, resample_every=None, clip_norm=None, lr=1e-3)
    x, errors = batch(0), []
    first = trained.autoencoder.W_dec.detach().clone()
    assert torch.equal(archetypes_of(trained).points, first)
    for step in range(STEPS):
        errors.append(trained.step(x, step).error.square().sum().item())
        check_constraint(trained, distance)
    assert errors[-1] < 0.8 * errors[0]
    assert not torch.equal(trained.autoencoder.W_dec, first)
    assert trained.autoencoder.W_dec.grad is None


@pytest.mark.parametrize("arch", ["jumprelu", "topk", "lista", "top_afa"])
def test_training_resumes_bit_for_bit(arch: str, tmp_path: Path):
    training_run(arch, tmp_path / "whole", trained=archetypal(arch)).train()
    with pytest.raises(Interrupted):
        training_run(arch, tmp_path / "halves", stop_at=STEPS // 2, trained=archetypal(arch)).train()
    # The other half is trained by a process whose fresh rows are different: the archetypes are in the checkpoint.
    resumed = archetypal(arch, seed=2)
    training_run(arch, tmp_path / "halves", trained=resumed).train()
    assert not differences(saved(tmp_path / "halves"), saved(tmp_path / "whole"))
    assert resumed.resampled > 0
    check_constraint(resumed)


def test_a_pack_is_the_single_run_bit_for_bit(tmp_path: Path):
    source = activation_source()
    runs = [
        training_run("topk", tmp_path / "packed", source=source, trained=archetypal()),
        training_run("topk", tmp_path / "plain", source=source),
    ]
    assert all(ended.error is None for ended in train_pack(runs, source))
    training_run("topk", tmp_path / "alone", trained=archetypal()).train()
    assert not differences(saved(tmp_path / "alone"), saved(tmp_path / "packed"))


def test_new_rows_begin_at_the_nearest_archetype_by_hand():
    # Scaled by 1/2, (0.2, 3) is (0.1, 1.5) in units of C: the second archetype plus (0.1, 0.5), shortened to 0.3.
    rows = nn.Parameter(torch.eye(2, dtype=torch.float64))
    archetypes = Archetypes(rows, distance=DISTANCE)
    with torch.no_grad():
        archetypes.log_scale.fill_(math.log(2))
        rows[0] = torch.tensor([0.2, 3.0])
    archetypes.place(torch.tensor([0]), rows)
    assert archetypes.mixture.tolist() == [[0, 1], [0, 1]]
    share = DISTANCE / math.hypot(0.1, 0.5)
    assert archetypes.offset[0].tolist() == pytest.approx([0.1 * share, 0.5 * share])
    assert rows[0].tolist() == pytest.approx([0.2 * share, 2 + share])
    assert rows[1].tolist() == [0, 1]


@pytest.mark.parametrize("how", ["resample", "latents", "autoencoder"])
def test_resampled_latents_keep_to_the_constraint_and_forget_their_moments(how: str):
    trained = archetypal(resample_every=2 * BATCH if how == "resample" else None, dead_after=1, samples=100 * BATCH)
    trained.step(batch(0), 0)
    before = trained.autoencoder.W_dec.detach().clone()
    record = trained.step(batch(1), 1)
    if how != "resample":
        scope = Scope.latents if how == "latents" else Scope.autoencoder
        when = Reinitialisation(scope=scope, target_rate=1e-3)
        assert trained.reinitialise(record, 1, when) > 0
    assert trained.resampled + trained.reinitialised > 0
    parts = archetypes_of(trained)
    moments = trained.optimiser.state[parts.mixture]["exp_avg"]
    new = ~moments.any(1)
    assert new.any()
    assert not trained.optimiser.state[parts.offset]["exp_avg"][new].any()
    # Each of the new rows is near one archetype.
    assert torch.equal(parts.mixture[new].amax(1), torch.ones(int(new.sum())))
    assert not torch.equal(trained.autoencoder.W_dec[new], before[new])
    check_constraint(trained)
    if how == "autoencoder":
        assert torch.equal(parts.points, trained.autoencoder.W_dec)
        assert float(parts.log_scale.detach()) == 0
        assert not trained.optimiser.state[parts.log_scale]["exp_avg"].any()


def test_blocks_of_latents_are_refused():
    two = Layout((("a", 2), ("b", 3)))
    ends = Ends(input=two, target=two, blocks=blocks_across_layers(2))
    settings = settings_of("topk", d_sae=14, decoder_norm=DecoderNorm.free, archetype_distance=DISTANCE)
    with pytest.raises(ValueError, match="mixes rows of all latents"):
        settings.check_ends(ends)


def test_export_is_that_of_the_plain_architecture(tmp_path: Path):
    trained = archetypal()
    for step in range(5):
        trained.step(batch(step), step)
    folded = fold(trained.autoencoder, 0.5)
    save_saelens(folded, tmp_path / "sae", Provenance())
    assert json.loads((tmp_path / "sae" / "cfg.json").read_text())["architecture"] == "topk"
    x = samples(30, D_IN, dtype=torch.float32)
    with torch.no_grad():
        wanted, got = trained.autoencoder.eval()(0.5 * x), load_saelens(tmp_path / "sae")(x)
    assert relative_error(got.reconstruction, 2 * wanted.reconstruction) < 1e-5


def test_trainers_that_replace_or_keep_the_decoder_are_refused():
    arch = settings_of("topk", decoder_norm=DecoderNorm.free, archetype_distance=1.0)
    loss, population = ARCHITECTURES["topk"].loss, PopulationSettings()
    adam(frozen=Frozen.encoder, resample_every=None).check(arch, loss, population)
    for frozen in (Frozen.decoder, Frozen.soft_decoder, Frozen.all):
        with pytest.raises(ValueError, match=rf"frozen is {frozen.name}, .*set arch\.archetype_distance=null"):
            adam(frozen=frozen, resample_every=None).check(arch, loss, population)
    with pytest.raises(ValueError, match=r"trainer=pam solves .*set arch\.archetype_distance=null"):
        pam().check(arch, loss, population)


def test_memory_of_the_mixture_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    # 1,000 latents of width 10: 16 bytes for each of 2 * 10,000 weights, and with archetypes of 1,010,000 more.
    plain, mixed = (
        settings_of("topk", d_sae=1000, decoder_norm=DecoderNorm.free, archetype_distance=each) for each in (None, 1.0)
    )
    monkeypatch.setattr("fsae.memory.free_bytes", lambda device: 16 * 1_029_999)
    check_moments([(plain, Ends.of(10))], torch.device("cpu"))
    with pytest.raises(ValueError, match=r"lower arch\.d_sae"):
        check_moments([(mixed, Ends.of(10))], torch.device("cpu"))
    monkeypatch.setattr("fsae.memory.free_bytes", lambda device: 16 * 1_030_000)
    check_moments([(mixed, Ends.of(10))], torch.device("cpu"))
