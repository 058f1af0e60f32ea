"""The norm of codes by hand, and a batch of which no latent is active."""

import pytest
import torch

from fsae.autoencoders.layout import Ends, Layout
from fsae.autoencoders.settings import DecoderNorm
from fsae.losses.code_norm import CodeNorm
from fsae.losses.term import Moment
from tests.architectures import gradients, settings_of, with_weights

NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))
each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])

WEIGHTS = {"W_enc": [[1.0, 0.0], [0.0, 1.0]], "W_dec": [[3.0, 0.0], [0.0, 0.5]], "b_dec": [1.0, 2.0]}


@each_path
@pytest.mark.parametrize(("norm", "squared"), [(DecoderNorm.unit, 9), (DecoderNorm.free, 81)], ids=["unit", "free"])
def test_by_hand(sparse: bool, norm: DecoderNorm, squared: int):
    # x - b_dec = (3, -8) has the norm sqrt(73) and the codes (3, 0), of the norm 3, and with rows of norms 3 and 0.5 of
    # the norm 9.
    record = with_weights("standard", WEIGHTS, decoder_norm=norm)(torch.tensor([[4.0, -6.0]]).double(), sparse)
    wanted = (73**0.5 - squared**0.5) ** 2
    assert float(CodeNorm().measure(record, NO_DEAD).value.detach()) == pytest.approx(wanted)


def test_norm_of_a_row_of_several_parts_is_that_of_the_whole_row():
    # Its weight in a sparsity term is the sum of its parts' norms, 1.4. x = (1, 0) has the norm 1, as the code 1 times
    # the row (0.6, 0.8) has.
    layers = Layout((("a", 1), ("b", 1)))
    settings = settings_of("standard", d_sae=1, decoder_norm=DecoderNorm.free)
    crosscoder = settings.build(Ends(input=layers, target=layers), torch.Generator().manual_seed(0)).double()
    for name, values in {"W_enc": [[1.0], [0.0]], "W_dec": [[0.6, 0.8]], "b_enc": [0.0], "b_dec": [0.0, 0.0]}.items():
        crosscoder.get_parameter(name).data = torch.tensor(values).double()
    record = crosscoder(torch.tensor([[1.0, 0.0]]).double())
    assert record.code_weights is not None
    assert float(record.code_weights.detach()) == pytest.approx(1.4)
    assert float(CodeNorm().measure(record, NO_DEAD).value.detach()) == pytest.approx(0)


@each_path
def test_a_sample_without_active_latents_has_a_norm_of_zero_and_no_gradient(sparse: bool):
    autoencoder = with_weights("standard", WEIGHTS)
    record = autoencoder(torch.tensor([[-3.0, -4.0]]).double(), sparse)
    value = CodeNorm().measure(record, NO_DEAD).value
    assert float(value.detach()) == pytest.approx(52, abs=1e-4)
    assert not any(grad.any() for grad in gradients(value, autoencoder).values())
