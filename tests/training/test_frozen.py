"""Controls of which training leaves a part at its random start."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fsae.autoencoders.settings import DecoderNorm, EncoderInit
from fsae.couplings.mutual import Directions, Mutual
from fsae.training.frozen import CONE, Frozen, keep_in_cone
from fsae.training.interruption import Interrupted
from fsae.training.population import PopulationSettings
from fsae.training.resample import Reinitialisation, Scope
from fsae.training.settings import AdamSettings
from tests.architectures import ARCHITECTURES, each_architecture, settings_of
from tests.streams import activation_source
from tests.training.runs import BATCH, STEPS, adam, differences, member, pam, saved, train_pack, training_run

CONTROLS = [frozen for frozen in Frozen if frozen is not Frozen.none]


def control(frozen: Frozen, **changes: Any) -> AdamSettings:
    # A learning rate at which rows leave the cone at once.
    return adam(frozen=frozen, resample_every=None, lr=0.1, **changes)


def test_a_row_outside_the_cone_is_turned_to_its_edge_and_keeps_its_norm():
    start = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # The cosines are 0.6, 0.8 and more, -0.6, and 0.6 again.
    rows = torch.tensor([[3.0, 4.0], [9.0, 1.0], [-3.0, 4.0], [-0.8, 0.6]])
    keep_in_cone(rows, start)
    torch.testing.assert_close(rows, torch.tensor([[4.0, 3.0], [9.0, 1.0], [4.0, 3.0], [-0.6, 0.8]]))


@each_architecture
@pytest.mark.parametrize("frozen", CONTROLS)
def test_a_control_keeps_what_is_frozen_trains_the_rest_and_resumes_bit_for_bit(
    arch: str, frozen: Frozen, tmp_path: Path
):
    settings = control(frozen)
    trained = member(arch, settings)
    before = {name: weight.clone() for name, weight in trained.autoencoder.state_dict().items()}
    training_run(arch, tmp_path / "whole", settings, trained=trained).train()
    after = trained.autoencoder.state_dict()
    moved = {name for name, weight in trained.autoencoder.named_parameters() if not torch.equal(weight, before[name])}
    fixed = {
        Frozen.decoder: {"W_dec"},
        Frozen.soft_decoder: set(),
        Frozen.encoder: {"W_enc"},
        Frozen.all: {*before},
    }[frozen]
    assert moved == {name for name, _ in trained.autoencoder.named_parameters()} - fixed
    cosines = torch.nn.functional.cosine_similarity(after["W_dec"], before["W_dec"])
    if frozen is Frozen.soft_decoder:
        assert cosines.min() == pytest.approx(CONE, abs=1e-5)
        assert after["W_dec"].norm(dim=1).tolist() == pytest.approx([1.0] * len(cosines), abs=1e-5)
    # The other half is trained by a process whose fresh weights are different: the axes are in the checkpoint.
    with pytest.raises(Interrupted):
        training_run(arch, tmp_path / "halves", settings, stop_at=STEPS // 2).train()
    training_run(arch, tmp_path / "halves", settings, trained=member(arch, settings, seed=2)).train()
    assert not differences(saved(tmp_path / "halves"), saved(tmp_path / "whole"))


def test_a_soft_decoder_of_free_norm_changes_its_norms_within_the_cone():
    trained = member("standard", control(Frozen.soft_decoder), decoder_norm=DecoderNorm.free)
    start = trained.autoencoder.W_dec.detach().clone()
    for step in range(5):
        trained.step(torch.randn(BATCH, start.shape[1], generator=torch.Generator().manual_seed(step)), step)
    cosines = torch.nn.functional.cosine_similarity(trained.autoencoder.W_dec, start)
    assert cosines.min() > CONE - 1e-5
    assert (trained.autoencoder.W_dec.norm(dim=1) - 1).abs().max() > 0.1


def test_pam_solves_for_the_decoder_of_a_frozen_encoder():
    settings = pam(frozen=Frozen.encoder, resample_every=None)
    trained = member("topk", settings, decoder_norm=DecoderNorm.free)
    W_enc, W_dec = (weight.detach().clone() for weight in (trained.autoencoder.W_enc, trained.autoencoder.W_dec))
    for step in range(2):
        trained.step(torch.randn(BATCH, W_dec.shape[1], generator=torch.Generator().manual_seed(step)), step)
    assert torch.equal(trained.autoencoder.W_enc, W_enc)
    assert not torch.equal(trained.autoencoder.W_dec, W_dec)


def test_controls_of_a_pack_are_the_single_runs_bit_for_bit(tmp_path: Path):
    source = activation_source()
    runs = [training_run("gated", tmp_path / f"packed {each.name}", control(each), source=source) for each in Frozen]
    assert all(ended.error is None for ended in train_pack(runs, source))
    for each in Frozen:
        training_run("gated", tmp_path / each.name, control(each)).train()
        assert not differences(saved(tmp_path / each.name), saved(tmp_path / f"packed {each.name}"))


@pytest.mark.parametrize(
    ("changes", "arch", "population", "message"),
    [
        ({}, {"encoder_init": EncoderInit.tied}, {}, r"arch\.encoder_init=tied makes .* or trainer.frozen=all"),
        ({"resample_every": 100}, {}, {}, "resampling would replace weights; set trainer.resample_every=null"),
        ({}, {}, {"reinitialise": Reinitialisation(scope=Scope.latents)}, "set population.reinitialise.scope=none"),
        ({}, {}, {"size": 2, "mutual": Mutual(weight=1.0)}, "the mutual term pulls on what is frozen"),
    ],
)
def test_a_setting_that_would_change_what_is_frozen_is_refused(
    changes: dict[str, Any], arch: dict[str, Any], population: dict[str, Any], message: str
):
    settings = control(Frozen.decoder) if not changes else adam(frozen=Frozen.decoder, **changes)
    with pytest.raises(ValueError, match=rf"trainer\.frozen is decoder, and .*{message}"):
        settings.check(settings_of("topk", **arch), ARCHITECTURES["topk"].loss, PopulationSettings(**population))


def test_what_is_not_frozen_may_be_pulled_and_tied_weights_may_be_frozen_together():
    pulled = PopulationSettings(size=2, mutual=Mutual(weight=1.0, directions=Directions.encoder))
    control(Frozen.decoder).check(settings_of("topk"), ARCHITECTURES["topk"].loss, pulled)
    tied = settings_of("topk", encoder_init=EncoderInit.tied)
    control(Frozen.all).check(tied, ARCHITECTURES["topk"].loss, PopulationSettings())


def test_pam_refuses_a_frozen_decoder():
    with pytest.raises(ValueError, match=r"trainer\.frozen is soft_decoder, but trainer=pam solves for the decoder"):
        pam(frozen=Frozen.soft_decoder, resample_every=None).check(
            settings_of("topk", decoder_norm=DecoderNorm.free), ARCHITECTURES["topk"].loss, PopulationSettings()
        )
