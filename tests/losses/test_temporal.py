"""The contrast of a sample's codes with those of its partner."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.record import ForwardRecord, PartnerCodes
from fsae.losses.temporal import TemporalContrast
from fsae.losses.term import Moment
from fsae.sparse.codes import Codes
from tests.architectures import build, gradients, samples

NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))


def record_of(codes: Tensor, partners: Tensor, there: Tensor) -> ForwardRecord:
    d_sae = codes.shape[1]
    zeros = torch.zeros(len(codes), 2, dtype=codes.dtype)
    return ForwardRecord(
        inputs=zeros,
        pre_activations=None,
        codes=Codes(codes),
        reconstruction=zeros,
        W_dec=torch.zeros(d_sae, 2, dtype=codes.dtype),
        b_dec=zeros[0],
        partners=PartnerCodes(Codes(partners), there),
    )


def value(codes: Tensor, partners: Tensor, there: Tensor | None = None, width: float = 0.5) -> float:
    there = torch.ones(len(codes), dtype=torch.bool) if there is None else there
    return TemporalContrast(width=width).measure(record_of(codes, partners, there), NO_DEAD).value.item()


def test_contrast_by_hand():
    # z = z' = I_2 in the first two of four latents: -ln(e / (e + 1)) = .3133 in both directions.
    codes = torch.cat([torch.eye(2), 7 * samples(2, 2, dtype=torch.float32)], dim=1)
    partners = torch.cat([torch.eye(2), 9 * samples(2, 2, seed=2, dtype=torch.float32)], dim=1)
    assert value(codes, partners) == pytest.approx(0.3133, abs=5e-5)
    assert value(codes, partners, width=2) == pytest.approx(0.3133, abs=5e-5)


def test_samples_without_a_partner_count_neither_as_rows_nor_as_columns():
    codes, partners = samples(6, 4), samples(6, 4, seed=2)
    there = torch.tensor([True, False, True, True, False, True])
    assert value(codes, partners, there) == pytest.approx(value(codes[there], partners[there]))
    assert value(codes, partners, ~(there | True)) == 0


def test_contrast_is_the_mean_of_both_directions():
    codes, partners = samples(5, 4), samples(5, 4, seed=2)
    wanted = torch.arange(5)
    products = codes[:, :2] @ partners[:, :2].T
    both = [torch.nn.functional.cross_entropy(each, wanted) for each in (products, products.T)]
    assert value(codes, partners) == pytest.approx(torch.stack(both).mean().item())
    assert value(partners, codes) == pytest.approx(torch.stack(both).mean().item())


@pytest.mark.parametrize("arch", ["topk", "batch_topk", "standard"])
def test_sparse_contrast_is_the_dense_one(arch: str):
    autoencoder = build(arch)
    x, there = samples(9), torch.arange(9) != 4
    found = []
    for sparse in (False, True):
        codes = autoencoder.encode(samples(9, seed=2), sparse).codes
        record = replace(autoencoder(x, sparse), partners=PartnerCodes(codes, there))
        term = TemporalContrast(width=6).measure(record, NO_DEAD).value
        found.append((term, gradients(term, autoencoder)))
    (dense, dense_gradients), (sparse, sparse_gradients) = found
    torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=0)
    assert dense_gradients["W_enc"].any()
    for name, gradient in dense_gradients.items():
        torch.testing.assert_close(sparse_gradients[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("width", [0.01, 1.5, 15])
def test_width_that_names_no_latents_is_refused(width: float):
    with pytest.raises(ValueError, match=r"loss\.contrast\.width is .* of the 14 latents"):
        TemporalContrast(width=width).check_width("contrast", 14)


def test_equal_codes_are_distinguished_by_chance_alone():
    assert value(torch.ones(8, 4), torch.ones(8, 4)) == pytest.approx(math.log(8))
