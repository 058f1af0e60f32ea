"""The control dictionary: unit directions with the densities that were asked for."""

import numpy as np
import pytest
import torch

from fsae.latents.control import control_of


def vectors(count: int = 1000, d_in: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, d_in, generator=generator) * torch.arange(1, d_in + 1) + 20


DENSITIES = np.array([0.0, 0.01, 0.02, 0.05, 0.1, 0.3, 0.0])


def test_densities_are_spaced_quantiles_of_those_alive():
    x = vectors()
    control = control_of(DENSITIES, x, 6, 5, seed=0, at_once=2)
    on = (control.encode(x).codes.dense() != 0).float().mean(0)
    # Five quantiles of five densities, at 0.1, 0.3, ..., 0.9: positions 0.4, 1.2, 2, 2.8, 3.6 among them.
    np.testing.assert_allclose(on, [0.014, 0.026, 0.05, 0.09, 0.22], atol=6e-4)


def test_directions_are_random_unit_vectors_of_encoder_and_decoder():
    control = control_of(DENSITIES, vectors(), 6, 5, seed=0)
    torch.testing.assert_close(control.W_dec.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(control.W_dec, control.W_enc.T)
    assert not control.training
    same, other = (control_of(DENSITIES, vectors(), 6, 5, seed=seed) for seed in (0, 1))
    assert torch.equal(same.W_dec, control.W_dec)
    assert not torch.allclose(other.W_dec, control.W_dec)


def test_a_code_is_the_product_with_the_centred_vector():
    x = vectors()
    control = control_of(np.array([0.1]), x, 6, 3, seed=0)
    codes = control.encode(x).codes.dense()
    products = (x - x.mean(0)) @ control.W_enc
    torch.testing.assert_close(codes[codes != 0], products[codes != 0])
    assert products[codes != 0].min() > 0


def test_sparse_and_dense_codes_are_the_same():
    x = vectors()
    control = control_of(DENSITIES, x, 6, 5, seed=0)
    torch.testing.assert_close(control.encode(x, sparse=True).codes.dense(), control.encode(x).codes.dense())


def test_a_density_above_one_half_has_positive_codes():
    x = vectors()
    codes = control_of(np.array([0.8]), x, 6, 3, seed=0).encode(x).codes.dense()
    assert (codes >= 0).all()
    np.testing.assert_allclose((codes > 0).float().mean(0), 0.8, atol=1e-3)


@pytest.mark.parametrize(("density", "on"), [(1e-6, 1), (1.0, 9)])
def test_a_density_that_the_vectors_cannot_show_gives_the_nearest(density: float, on: int):
    x = vectors(count=10)
    codes = control_of(np.array([density]), x, 6, 2, seed=0).encode(x).codes.dense()
    assert (codes != 0).sum(0).tolist() == [on, on]


def test_a_dead_dictionary_has_no_control():
    with pytest.raises(ValueError, match="train for longer"):
        control_of(np.zeros(3), vectors(), 6, 2, seed=0)
