import numpy as np
import pytest
import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.standard import StandardSettings
from fsae.evaluation.downstream.text_activations import TextActivations
from fsae.evaluation.downstream.text_codes import Pooling, pooled, token_codes
from tests.architectures import build, each_architecture
from tests.evaluation.downstream.texts import D_IN

# Three texts; the second one has no token.
STARTS = torch.tensor([0, 4, 4, 10])


def some_texts() -> TextActivations:
    vectors = torch.randn(10, D_IN, generator=torch.Generator().manual_seed(1))
    return TextActivations(vectors, torch.arange(10), torch.tensor([*range(4), *range(6)]), STARTS)


@each_architecture
def test_codes_are_those_of_the_autoencoder(arch: str):
    autoencoder = build(arch).eval()
    vectors = torch.randn(10, autoencoder.d_in, generator=torch.Generator().manual_seed(1))
    texts = TextActivations(vectors, torch.arange(10), torch.arange(10), torch.tensor([0, 10]))
    with torch.no_grad():
        expected = autoencoder.encode(texts.vectors).codes.dense().float().numpy()
    np.testing.assert_allclose(token_codes(autoencoder, texts).toarray(), expected, atol=1e-6)


def relu_identity() -> Autoencoder:
    autoencoder = StandardSettings(d_sae=D_IN).build(D_IN, torch.Generator()).eval()
    with torch.no_grad():
        autoencoder.W_enc.copy_(torch.eye(D_IN))
        autoencoder.get_parameter("b_enc").zero_()
        autoencoder.b_dec.zero_()
    return autoencoder


@pytest.mark.parametrize("pooling", Pooling)
def test_pooling_is_over_the_tokens_of_a_text(pooling: Pooling):
    texts, autoencoder = some_texts(), relu_identity()
    codes = texts.vectors.clamp(min=0).numpy()
    found = pooled(token_codes(autoencoder, texts), texts, pooling).toarray()[:, :D_IN]
    of_text = codes[:4].mean(0), codes[4:].mean(0)
    if pooling is Pooling.max:
        of_text = codes[:4].max(0), codes[4:].max(0)
    np.testing.assert_allclose(found, np.stack([of_text[0], np.zeros(D_IN), of_text[1]]), atol=1e-6)
