"""Encoders that are their decoder's transpose: one parameter, with both gradients, whatever is done to weights."""

from pathlib import Path

import pytest
import torch

from fsae.autoencoders.batch_topk import BatchTopK
from fsae.autoencoders.settings import DecoderNorm, EncoderInit
from fsae.couplings.mutual import Directions, Mutual, MutualCoupling
from fsae.export.folding import fold
from fsae.export.provenance import Provenance
from fsae.export.saelens import load_saelens, save_saelens
from fsae.losses.fisher import Fisher
from fsae.losses.term import Moment
from fsae.training.dead_latents import DeadLatents
from fsae.training.interruption import Interrupted
from fsae.training.resample import reinitialise, resample
from tests.architectures import (
    ARCHITECTURES,
    build,
    each_with,
    gradients,
    relative_error,
    samples,
    settings_of,
    twin,
)
from tests.training.runs import adam, differences, logged, member, saved, training_run

NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))


def pair(arch: str, **changes):
    """A tied autoencoder, and one with the same weights, each its own."""
    tied = build(arch, encoder_init=EncoderInit.tied, **changes)
    untied = twin(tied)
    untied.untie()
    return tied, untied


@each_with("encoder_init")
def test_the_encoder_is_the_decoder_s_transpose_and_no_parameter(arch: str):
    tied = settings_of(arch, d_sae=14, encoder_init=EncoderInit.tied).build(5, torch.Generator().manual_seed(0))
    untied = settings_of(arch, d_sae=14).build(5, torch.Generator().manual_seed(0))
    names = {name for name, _ in tied.named_parameters()}
    assert names | {"W_enc"} == {name for name, _ in untied.named_parameters()}
    assert tied.W_enc.data_ptr() == tied.W_dec.data_ptr()
    assert tied.W_enc.shape == (5, 14)
    assert tied.W_enc.stride() == (1, 5)
    # They begin alike.
    assert torch.equal(tied.W_enc, untied.W_enc)
    tied.normalise_decoder()
    assert torch.equal(tied.bfloat16().W_enc.T, tied.W_dec)


@each_with("encoder_init")
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("decoder_norm", list(DecoderNorm))
def test_its_gradient_is_that_of_both(arch: str, sparse: bool, decoder_norm: DecoderNorm):
    tied, untied = pair(arch, decoder_norm=decoder_norm)
    x = samples(9)
    found, wanted = {}, {}
    for autoencoder, into in ((tied, found), (untied, wanted)):
        record = autoencoder(x, sparse)
        loss = record.error.square().sum() + Fisher().measure(record, NO_DEAD).value
        into |= gradients(loss, autoencoder) | {"codes": record.codes.dense().detach()}
    encoder = wanted.pop("W_enc")
    assert encoder.any()
    wanted["W_dec"] = wanted["W_dec"] + encoder.T
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert relative_error(found[name], wanted[name]) < 1e-10, name


@each_with("encoder_init")
def test_biases_are_set_by_the_first_vectors(arch: str):
    rectified = {} if ARCHITECTURES[arch].competes else {"init_density": 0.2}
    tied, untied = (
        settings_of(arch, d_sae=14, encoder_init=each, **rectified).build(5, torch.Generator().manual_seed(0))
        for each in (EncoderInit.tied, EncoderInit.transpose)
    )
    for autoencoder in (tied, untied):
        autoencoder.initialise(lambda: samples(300, dtype=torch.float32), scale=1.0)
    for name, parameter in tied.named_parameters():
        assert torch.equal(parameter, untied.get_parameter(name)), name


@each_with("encoder_init")
def test_folding_unties_weights_and_keeps_the_reconstruction(arch: str):
    tied = build(arch, encoder_init=EncoderInit.tied, decoder_norm=DecoderNorm.free).eval()
    if isinstance(tied, BatchTopK):
        tied.threshold.fill_(0.5)
    folded, x = fold(tied, 0.37), samples(50)
    assert not folded.settings.tied
    assert tied.settings.tied
    assert folded.get_parameter("W_enc").stride() == (1, 5)
    assert relative_error(folded(x).reconstruction, tied(x * 0.37).reconstruction / 0.37) < 1e-12


@each_with("encoder_init")
@pytest.mark.parametrize("folded", [True, False])
def test_a_tied_autoencoder_is_exported_as_an_ordinary_one(arch: str, folded: bool, tmp_path: Path):
    tied = build(arch, encoder_init=EncoderInit.tied, dtype=torch.float32).eval()
    if isinstance(tied, BatchTopK):
        tied.threshold.fill_(0.5)
    autoencoder = fold(tied, 1.0) if folded else tied
    save_saelens(autoencoder, tmp_path / "sae", Provenance())
    x = samples(50, dtype=torch.float32)
    with torch.no_grad():
        assert relative_error(load_saelens(tmp_path / "sae")(x).reconstruction, tied(x).reconstruction) < 1e-6


@each_with("encoder_init")
def test_resampling_sets_both_sides_of_tied_weights(arch: str):
    tied = build(arch, d_sae=14, encoder_init=EncoderInit.tied, dtype=torch.float32)
    optimiser = torch.optim.Adam(tied.parameters(), lr=1e-3)
    x = samples(20, dtype=torch.float32)
    (tied(x).reconstruction.square().sum() + sum(each.sum() for each in tied.parameters())).backward()
    optimiser.step()
    dead = DeadLatents(14, after=100)
    dead.samples_since_fired[[2, 5]] = 100
    others = [latent for latent in range(14) if latent not in (2, 5)]
    before = tied.W_dec.detach().clone()
    assert len(resample(tied, optimiser, dead, tied(x), torch.Generator().manual_seed(0))) == 2
    inputs = torch.nn.functional.normalize(tied.encoder_input(x), dim=1)
    rows = torch.nn.functional.normalize(tied.W_dec[[2, 5]], dim=1)
    torch.testing.assert_close((rows @ inputs.T).max(1).values, torch.ones(2))
    assert torch.equal(tied.W_dec[others], before[others])
    drawn = tied.W_dec.detach().clone()
    which = torch.zeros(14, dtype=torch.bool)
    which[7] = True
    reinitialise(tied, optimiser, dead, which, x, torch.Generator())
    assert not torch.equal(tied.W_dec[7], drawn[7])
    assert torch.equal(tied.W_dec[~which], drawn[~which])
    assert (optimiser.state[tied.W_dec]["exp_avg"][[2, 5, 7]] == 0).all()
    assert torch.equal(tied.W_enc.T, tied.W_dec)


def test_the_mutual_term_pulls_on_the_one_matrix():
    members = [build("topk", encoder_init=EncoderInit.tied, seed=seed) for seed in range(2)]
    pulls = []
    for directions in Directions:
        MutualCoupling(Mutual(weight=1.0, directions=directions), seed=0).backward(members, [], 0, 1.0)
        pulls.append([each.W_dec.grad for each in members])
        for each in members:
            each.W_dec.grad = None
    for one, other in zip(*pulls, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)


@each_with("encoder_init")
@pytest.mark.parametrize("decoder_norm", list(DecoderNorm))
def test_a_stopped_and_resumed_training_is_the_uninterrupted_one_bit_for_bit(arch, decoder_norm, tmp_path: Path):
    def train(folder: Path, stop_at: int | None = None) -> None:
        trained = member(arch, adam(), encoder_init=EncoderInit.tied, decoder_norm=decoder_norm)
        training_run(arch, folder, stop_at=stop_at, trained=trained).train()

    train(tmp_path / "whole")
    for step in (3, 14, 22):
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", step)
    train(tmp_path / "stopped")
    reference = saved(tmp_path / "whole")
    assert "W_enc" not in reference["members"][0]["autoencoder"]
    assert not differences(saved(tmp_path / "stopped"), reference)
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")
