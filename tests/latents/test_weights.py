"""What the weights say of a latent, compared with definitions and with a language model's own logits."""

import numpy as np
import pytest
import torch

from fsae.autoencoders.layout import Layout
from fsae.language_models.unembedding import Unembedding
from fsae.latents.weights import (
    INPUT_LOGITS,
    LOGITS,
    logit_columns,
    neighbours,
    part_columns,
    relative_norms,
    weight_columns,
)


def unembedding(d_model: int = 6, d_vocab: int = 50, **settings) -> Unembedding:
    generator = torch.Generator().manual_seed(0)
    W_U = torch.randn(d_model, d_vocab, generator=generator)
    weight = torch.rand(d_model, generator=generator) + 0.5
    return Unembedding(**{"W_U": W_U, "norm_weight": weight, "centred": False} | settings)


def test_neighbours_are_the_rows_with_the_largest_cosines():
    # Rows at 0, 60, 90 and 150 degrees: cos 60 = 1/2, cos 30 = 0.866. Lengths do not matter.
    half, root = 0.5, 3**0.5 / 2
    rows = torch.tensor([[2.0, 0.0], [3 * half, 3 * root], [0.0, 0.5], [-root, half]])
    indices, cosines = neighbours(rows, count=2)
    assert [found.tolist() for found in indices if found is not None] == [[1, 2], [2, 0], [1, 3], [2, 1]]
    values = np.stack([found for found in cosines if found is not None])
    np.testing.assert_allclose(values, [[half, 0], [root, half], [root, half], [half, 0]], atol=1e-6)


@pytest.mark.parametrize("entries", [1, 100, 1000, 10**6])
def test_neighbours_do_not_depend_on_the_blocks(entries: int):
    rows = torch.randn(37, 8, generator=torch.Generator().manual_seed(1))
    indices, cosines = neighbours(rows, count=5, entries=entries)
    unit = (rows / rows.norm(dim=1, keepdim=True)).double()
    every = unit @ unit.T
    every.fill_diagonal_(-2)
    for row, (found, values) in enumerate(zip(indices, cosines, strict=True)):
        assert found is not None
        assert values is not None
        assert found.tolist() == every[row].argsort(descending=True)[:5].tolist()
        np.testing.assert_allclose(values, every[row, found.tolist()], atol=1e-6)


def test_a_row_of_zeros_has_no_neighbours_and_is_none():
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [-1.0, 0.1]])
    indices, cosines = neighbours(rows)
    assert indices[1] is None
    assert cosines[1] is None
    assert [found.tolist() for found in indices if found is not None] == [[3, 2], [3, 0], [2, 0]]


def test_a_single_latent_has_no_neighbours():
    indices, _ = neighbours(torch.ones(1, 3))
    assert [len(found) for found in indices if found is not None] == [0]


def test_norms_and_the_cosine_of_encoder_and_decoder():
    W_dec = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    W_enc = torch.tensor([[1.0, 1.0], [0.0, 0.0]])  # both columns along the first axis
    columns = weight_columns(W_enc, W_dec)
    np.testing.assert_allclose(columns["decoder_norm"], [5, 2])
    np.testing.assert_allclose(columns["encoder_decoder_cosine"], [0.6, 0])


def test_relative_norms_by_hand():
    # (1 + (4 - 3) / 4) / 2 = 0.625; the second latent has one part alone, and the third one none.
    found = relative_norms(torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]]))
    assert found.tolist() == [[0.375, 0.625], [0.0, 1.0], [0.5, 0.5]]
    # Of three parts, each is compared with the longest other one: (1 + (1 - 0.5) / 1) / 2 = 0.75.
    assert relative_norms(torch.tensor([[0.5, 1.0, 0.1]])).tolist() == [[0.25, 0.75, pytest.approx(0.05)]]


def test_norms_of_parts_are_in_units_of_their_spreads():
    # Norms (5, 2) are (2.5, 2) in units of 2 and 1: (1 + 0.5 / 2.5) / 2 = 0.6.
    layout = Layout((("a", 2), ("b", 1)))
    found = part_columns(torch.tensor([[3.0, 4.0, 2.0], [0.0, 0.0, 7.0]]), layout, [2.0, 1.0])
    np.testing.assert_allclose(np.stack(found["relative_norms"]), [[0.6, 0.4], [0, 1]], atol=1e-6)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("entries", [1, 120, 10**6])
def test_logit_effects_follow_the_definition(centred: bool, entries: int):
    path = unembedding(centred=centred, scale=0.5)
    generator = torch.Generator().manual_seed(2)
    W_dec, matrix = (torch.randn(shape, generator=generator) for shape in ((7, 4), (4, 6)))
    columns, tokens = logit_columns(W_dec, path, matrix, entries=entries)
    for latent, row in enumerate(W_dec.double()):
        direction = row / row.norm() @ matrix.double()
        raw = 0.5 * direction @ path.W_U.double()
        if centred:
            direction = direction - direction.mean()
        effects = 0.5 * (direction * path.norm_weight) @ path.W_U.double()
        for name, wanted in (("logit", effects), ("raw_logit", raw)):
            order = wanted.argsort(descending=True)
            assert columns[f"{name}_top"][latent].tolist() == order[:LOGITS].tolist()
            assert columns[f"{name}_bottom"][latent].tolist() == order.flip(0)[:LOGITS].tolist()
            np.testing.assert_allclose(columns[f"{name}_top_values"][latent], wanted[order[:LOGITS]], atol=1e-5)
            np.testing.assert_allclose(
                columns[f"{name}_bottom_values"][latent], wanted[order.flip(0)[:LOGITS]], atol=1e-5
            )
        assert tokens[latent].tolist() == effects.argsort(descending=True)[:INPUT_LOGITS].tolist()
        standard = (effects - effects.mean()) / effects.std(correction=0)
        np.testing.assert_allclose(columns["logit_std"][latent], effects.std(correction=0), rtol=1e-4)
        np.testing.assert_allclose(columns["logit_skew"][latent], standard.pow(3).mean(), atol=1e-4)
        np.testing.assert_allclose(columns["logit_kurtosis"][latent], standard.pow(4).mean(), rtol=1e-4)


def test_a_latent_that_writes_one_token_has_a_high_kurtosis():
    # One effect of 1 among 100 of 0: kurtosis is about 1 / p = 100, skew its root.
    path = Unembedding(torch.eye(4, 100), torch.ones(4), centred=False)
    columns, _ = logit_columns(torch.tensor([[0.0, 7.0, 0.0, 0.0]]), path, torch.eye(4))
    assert columns["logit_top"][0][0] == 1
    assert columns["logit_top_values"][0][0] == 1
    assert columns["logit_kurtosis"][0] == pytest.approx(100, rel=0.03)
    assert columns["logit_skew"][0] == pytest.approx(10, rel=0.03)


def test_a_latent_without_a_direction_has_nulls():
    columns, tokens = logit_columns(torch.tensor([[0.0] * 6, [1.0] * 6]), unembedding(), torch.eye(6))
    assert columns["logit_top"][0] is None
    assert np.isnan(columns["logit_kurtosis"][0])
    assert set(tokens[0]) == {-1}
    assert columns["logit_top"][1] is not None
    assert not np.isnan(columns["logit_std"][1])


def test_a_small_vocabulary_gives_fewer_tokens():
    columns, tokens = logit_columns(torch.ones(1, 6), unembedding(d_vocab=3), torch.eye(6))
    assert len(columns["logit_top"][0]) == 3
    assert tokens.shape == (1, 3)
