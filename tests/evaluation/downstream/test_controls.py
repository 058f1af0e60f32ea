import numpy as np
import pytest
import torch

from fsae.evaluation.downstream.controls import bag_of_tokens, bag_of_words, densities_in, random_directions
from fsae.evaluation.downstream.text_activations import TextActivations
from fsae.evaluation.downstream.text_codes import token_codes
from tests.architectures import build
from tests.evaluation.downstream.texts import D_IN


def some_texts(tokens: int = 1000) -> TextActivations:
    vectors = torch.randn(tokens, D_IN, generator=torch.Generator().manual_seed(1))
    return TextActivations(vectors, torch.arange(tokens) % 3, torch.arange(tokens), torch.tensor([0, 2, tokens]))


def test_random_directions_are_on_as_often_as_latents():
    autoencoder, texts = build("standard", D_IN, 12, dtype=torch.float32).eval(), some_texts()
    codes = token_codes(autoencoder, texts)
    own = densities_in(codes)
    assert own.tolist() == (codes.toarray() != 0).mean(0).tolist()
    control = random_directions(autoencoder, own, texts.vectors, seed=3)
    assert control is not None
    assert control.d_sae == 12
    random = densities_in(token_codes(control, texts))
    # The control has quantiles of the densities of the latents that are alive.
    assert random.mean() == pytest.approx(own[own > 0].mean(), rel=0.1)
    other = random_directions(autoencoder, own, texts.vectors, seed=4)
    assert other is not None
    assert not torch.equal(control.W_enc, other.W_enc)


def test_random_directions_have_the_l0_of_a_dictionary_whose_latents_are_mostly_dead():
    autoencoder, texts = build("standard", D_IN, 12, dtype=torch.float32).eval(), some_texts()
    own = np.zeros(12)
    own[:3] = 0.1, 0.2, 0.3
    control = random_directions(autoencoder, own, texts.vectors, seed=3)
    assert control is not None
    assert densities_in(token_codes(control, texts)).sum() == pytest.approx(0.6, rel=0.02)


def test_a_dead_dictionary_has_no_control():
    autoencoder, texts = build("standard", D_IN, 12, dtype=torch.float32).eval(), some_texts()
    assert random_directions(autoencoder, np.zeros(12), texts.vectors, seed=3) is None


def test_bag_of_tokens_counts_each_text():
    texts = some_texts(5)
    assert bag_of_tokens(texts).tolist() == [[1, 1, 0], [1, 1, 1]]


def test_bag_of_words_has_marks_and_letters():
    assert bag_of_words(["A b!", "b b"]).tolist() == [[1, 1, 1], [0, 0, 2]]
