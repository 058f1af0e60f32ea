"""The norm of codes by hand, and a batch of which no latent is active."""

import pytest
import torch

from fsae.autoencoders.settings import DecoderNorm
from fsae.losses.code_norm import CodeNorm
from fsae.losses.term import Moment
from tests.architectures import gradients, with_weights

NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))
each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])

WEIGHTS = {"W_enc": [[1.0, 0.0], [0.0, 1.0]], "W_dec": [[3.0, 0.0], [0.0, 0.5]], "b_dec": [1.0, 2.0]}


@each_path
@pytest.mark.parametrize(("norm", "squared"), [(DecoderNorm.unit, 73), (DecoderNorm.free, 97)], ids=["unit", "free"])
def test_by_hand(sparse: bool, norm: DecoderNorm, squared: int):
    # x = (4, 10) has the norm sqrt(116), although codes are those of x - b_dec: (3, 8), of the norm sqrt(73), and with
    # rows of norms 3 and 0.5 (9, 4), of the norm sqrt(97).
    record = with_weights("standard", WEIGHTS, decoder_norm=norm)(torch.tensor([[4.0, 10.0]]).double(), sparse)
    wanted = (116**0.5 - squared**0.5) ** 2
    assert float(CodeNorm().measure(record, NO_DEAD).value.detach()) == pytest.approx(wanted)


@each_path
def test_a_sample_without_active_latents_has_a_norm_of_zero_and_no_gradient(sparse: bool):
    autoencoder = with_weights("standard", WEIGHTS)
    record = autoencoder(torch.tensor([[-3.0, -4.0]]).double(), sparse)
    value = CodeNorm().measure(record, NO_DEAD).value
    assert float(value.detach()) == pytest.approx(25, abs=1e-4)
    assert not any(grad.any() for grad in gradients(value, autoencoder).values())
