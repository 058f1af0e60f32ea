"""The squared error by hand and its gradient."""

import torch

from fsae.losses.reconstruction import SquaredError
from fsae.losses.term import Moment
from tests.architectures import build, each_with, gradients, samples, with_weights

NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))


def test_by_hand():
    autoencoder = with_weights("standard", {"W_enc": [[1.0], [0.0]], "W_dec": [[1.0, 1.0]]}, apply_b_dec_to_input=False)
    # x_hat = [2 2] and [0 0]; errors [0 -3] and [-1 4]: summed over inputs 9 and 17, averaged over samples 13.
    record = autoencoder(torch.tensor([[2.0, -1.0], [-1.0, 4.0]]).double())
    assert float(SquaredError().measure(record, NO_DEAD).value.detach()) == 13


@each_with("apply_b_dec_to_input", "W_dec")
def test_decoder_gradients_in_closed_form(arch: str):
    autoencoder = build(arch, apply_b_dec_to_input=False)
    x = samples(7)
    record = autoencoder(x, sparse=True)
    found = gradients(SquaredError().measure(record, NO_DEAD).value, autoencoder)
    # 2/B sum_b (x_hat - x), and 2/B sum_b f_b' (x_hat - x).
    error = (record.reconstruction - x).detach()
    torch.testing.assert_close(found["b_dec"], 2 * error.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["W_dec"], 2 / 7 * record.codes.dense().detach().T @ error, rtol=1e-12, atol=1e-12)


def test_zero_for_a_perfect_reconstruction():
    weights = {"W_enc": [[1.0, 0.0], [0.0, 1.0]], "W_dec": [[1.0, 0.0], [0.0, 1.0]]}
    record = with_weights("standard", weights)(samples(5, 2).abs())
    assert float(SquaredError().measure(record, NO_DEAD).value.detach()) == 0
