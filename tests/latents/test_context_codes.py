"""Codes in contexts: those of the whole row, at the excerpt's tokens."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from fsae.language_models.sites import Site, SiteName
from fsae.latents.context_codes import context_codes
from fsae.latents.excerpts import Excerpt
from tests.architectures import build

SITE, OTHER = (Site(name=SiteName.resid_post, layer=layer) for layer in (0, 1))
D_IN, D_SAE = 8, 24


class Reader:
    """A model whose vectors depend on all earlier tokens of the row."""

    def __init__(self) -> None:
        self.rows = 0

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        self.rows += len(tokens)
        vectors = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(0))[tokens]
        return {site: (1 + site.layer) * vectors.cumsum(1) for site in sites}


@pytest.mark.parametrize(("rows_at_once", "sites"), [(1, [SITE]), (2, [SITE]), (16, [SITE]), (2, [SITE, OTHER])])
def test_codes_are_those_of_the_whole_row(rows_at_once: int, sites: list[Site]):
    autoencoder = build("topk", D_IN * len(sites), D_SAE, dtype=torch.float32).eval()
    tokens = np.random.default_rng(0).integers(0, 50, (5, 20)).astype(np.uint16)
    reader = Reader()
    codes_of = context_codes(cast(Any, lambda site: reader), sites, autoencoder, tokens, rows_at_once)
    pairs = [
        (latent, Excerpt("top", context, begin, begin, tuple(tokens[context, begin : begin + 6]), np.zeros(6)))
        for context, begin in [(4, 0), (1, 14), (4, 9), (0, 2)]
        for latent in range(D_SAE)
    ]
    found = codes_of(pairs)
    assert reader.rows == 3
    read = Reader().activations(torch.from_numpy(tokens.astype(np.int64)), sites)
    vectors = torch.cat([read[site] for site in sites], dim=-1)
    with torch.no_grad():
        whole = autoencoder.encode(vectors.flatten(0, 1)).codes.dense().view(5, 20, D_SAE).abs()
    for (latent, excerpt), own in zip(pairs, found, strict=True):
        expected = whole[excerpt.context, excerpt.begin : excerpt.begin + 6, latent]
        np.testing.assert_allclose(own, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert sum(own.any() for own in found) > 10
