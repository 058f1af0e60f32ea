"""Aligned encoders: each encoder column's product with its decoder row stays 1."""

import pytest
import torch

from fsae.autoencoders.settings import DecoderNorm, EncoderInit
from fsae.autoencoders.standard import StandardSettings
from fsae.training.frozen import Frozen
from fsae.training.population import PopulationSettings
from tests.architectures import build, each_architecture, settings_of, with_weights
from tests.training.runs import adam, member, pam, terms, training_run


def products(autoencoder) -> torch.Tensor:
    return (autoencoder.W_enc.T * autoencoder.W_dec).sum(1).detach()


def test_by_hand():
    # d = (0, 2) and w = (3, 1): (3, 1) + (1 - 2) (0, 2) / 4 = (3, .5).
    autoencoder = with_weights("standard", {"W_enc": [[3.0], [1.0]], "W_dec": [[0.0, 2.0]]})
    autoencoder.align_encoder()
    assert autoencoder.W_enc.tolist() == [[3], [0.5]]
    assert products(autoencoder).tolist() == [1]


def test_it_is_the_nearest_aligned_encoder():
    autoencoder = build("standard")
    before = autoencoder.W_enc.detach().clone()
    autoencoder.align_encoder()
    # The change is along the row, so it is orthogonal to all changes that keep the product.
    change, rows = (autoencoder.W_enc - before).T, autoencoder.W_dec
    along = (change * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True) * rows
    torch.testing.assert_close(change, along)


@each_architecture
@pytest.mark.parametrize("norm", list(DecoderNorm))
def test_an_encoder_is_aligned_from_the_start_to_the_export(arch: str, norm: DecoderNorm, tmp_path):
    changes = {"decoder_norm": norm, "align_encoder": True, "encoder_init": EncoderInit.random}
    trained = member(arch, adam(), terms(arch), **changes)
    fresh = settings_of(arch, d_sae=24, **changes).build(6, torch.Generator().manual_seed(1))
    torch.testing.assert_close(products(fresh), torch.ones(24))
    training_run(arch, tmp_path / "run", trained=trained).train()
    torch.testing.assert_close(products(trained.autoencoder), torch.ones(24))
    trained.autoencoder.change_unit(0.3, 0.3)
    torch.testing.assert_close(products(trained.autoencoder), torch.ones(24))


def test_settings_that_cannot_hold():
    with pytest.raises(ValueError, match="align_encoder moves the encoder alone"):
        StandardSettings(align_encoder=True, encoder_init=EncoderInit.tied)
    free = settings_of("topk", decoder_norm=DecoderNorm.free, align_encoder=True)
    with pytest.raises(ValueError, match=r"frozen is encoder, and arch\.align_encoder"):
        adam(frozen=Frozen.encoder, resample_every=None).check(free, {}, PopulationSettings())
    with pytest.raises(ValueError, match=r"arch\.align_encoder would not hold"):
        pam(resample_every=None).check(free, {}, PopulationSettings())
