import pytest
import torch

from fsae.autoencoders.settings import DecoderNorm
from fsae.training.measures import batch_measures
from tests.architectures import build, each_architecture, samples, with_weights

# Identity both ways: codes are the positive inputs.
WEIGHTS = {"W_enc": [[1.0, 0.0], [0.0, 1.0]], "W_dec": [[1.0, 0.0], [0.0, 2.0]]}


def test_hand_computed():
    autoencoder = with_weights("standard", WEIGHTS, decoder_norm=DecoderNorm.free)
    x = torch.tensor([[3.0, 0.0], [4.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    # Codes (3 0) (4 1) (0 0); reconstructions (3 0) (4 2) (0 0); errors 0, 1, 1. The scale was 2.
    measures = {name: value.item() for name, value in batch_measures(autoencoder(x), scale=2.0).items()}
    assert measures["l0"] == pytest.approx(3 / 3)
    assert measures["mse"] == pytest.approx((0 + 1 + 1) / 3 / 2**2)
    assert measures["l2_ratio"] == pytest.approx((1 + (20 / 17) ** 0.5 + 0) / 3)
    # Means 7/3 and 0: 25 - 3 (7/3)^2 in the first column, 2 in the second.
    assert measures["fvu"] == pytest.approx(2 / (25 - 49 / 3 + 2))


def test_l1_weighs_codes_by_decoder_norms_only_if_norms_are_free():
    x = torch.tensor([[4.0, 1.0]], dtype=torch.float64)
    for norm, wanted in ((DecoderNorm.free, 4 + 1 * 2), (DecoderNorm.unit, 4 + 1)):
        autoencoder = with_weights("standard", WEIGHTS, decoder_norm=norm)
        assert batch_measures(autoencoder(x), scale=2.0)["l1"].item() == pytest.approx(wanted / 2)


@each_architecture
def test_sparse_and_dense_codes_measure_the_same(arch: str):
    autoencoder, x = build(arch), samples(40)
    state = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    dense = batch_measures(autoencoder(x, False), 1.7)
    autoencoder.load_state_dict(state)
    sparse = batch_measures(autoencoder(x, True), 1.7)
    assert dense.keys() == sparse.keys()
    for name in dense:
        assert sparse[name].item() == pytest.approx(dense[name].item(), rel=1e-9), name
