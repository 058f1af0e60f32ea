"""The parts that latents are of: by hand, and planted."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.layout import Ends, Layout
from fsae.autoencoders.settings import DecoderNorm
from fsae.evaluation.crosscoder import LatentScaling, PartsOfLatents, measure_parts, ratios
from fsae.evaluation.vectors import evaluate_vectors
from fsae.losses.fisher import Fisher
from fsae.sources.source import Batch
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern
from tests.architectures import settings_of


def _sparse(codes: Tensor) -> Codes:
    return Codes(codes[codes != 0], Pattern.of_mask(codes != 0))


@pytest.mark.parametrize("codes_of", [Codes, _sparse], ids=["dense", "sparse"])
def test_latent_scaling_by_hand(codes_of: Callable[[Tensor], Codes]):
    # f = (1, 2) and d = (1, 0), so beta is (1 * 2 + 2 * 2) / (5 * 1) = 1.2 for one model and (0.5 + 2 * 0.5) / 5 = 0.3
    # for the other one. The second latent is never on.
    codes = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    base, chat = torch.tensor([[0.5, 0.0], [0.5, 1.0]]), torch.tensor([[2.0, 0.0], [2.0, 1.0]])
    scaling = LatentScaling(torch.eye(2), 2)
    for row in (slice(0, 1), slice(1, 2)):
        scaling.add(codes_of(codes[row]), [base[row], chat[row]])
    assert scaling.betas[0].tolist() == pytest.approx([0.3, 1.2])
    assert scaling.betas[1].isnan().all()
    assert ratios(scaling.betas, torch.tensor([1, 1]))[0].item() == pytest.approx(0.25)


def test_no_ratio_describes_a_factor_that_is_not_positive():
    assert ratios(torch.tensor([[0.1, -0.5]]), torch.tensor([1])).item() == math.inf


@pytest.fixture(scope="module")
def planted() -> PartsOfLatents:
    """Latents with one direction each, of which part b has all.

    0 is in both parts, and 1 in b alone. 2 writes to b alone, though a has its direction, too: it is an error at a. 3
    writes to b alone, and 4, which is on for the same samples, writes the same direction at a. 5 is never on.
    """
    width, generator = 6, torch.Generator().manual_seed(0)
    strength = torch.rand(400, width, generator=generator) * (torch.rand(400, width, generator=generator) < 0.3)
    strength[:, 4], strength[:, 5] = strength[:, 3], 0
    in_a, in_b = torch.eye(width), torch.eye(width)
    in_a[1], in_b[4], in_a[4], in_a[3] = 0, 0, torch.eye(width)[3], 0
    # a's vectors are longer, which must not count.
    x = torch.cat([10 * (strength @ in_a), strength @ in_b], dim=1)
    written_a = in_a.clone()
    written_a[2] = 0
    layout = Layout((("a", width), ("b", width)))
    settings = settings_of("standard", d_sae=width, decoder_norm=DecoderNorm.free)
    autoencoder = settings.build(Ends(input=layout, target=layout), torch.Generator()).eval()
    read = torch.eye(width)
    read[:, 4] = torch.eye(width)[3]
    read[5, 5] = -1
    with torch.no_grad():
        autoencoder.W_enc.copy_(torch.cat([torch.zeros(width, width), read]))
        autoencoder.W_dec.copy_(torch.cat([10 * written_a, in_b], dim=1))
    batches = [Batch(part, part) for part in x.split(150)]
    (found,) = measure_parts([autoencoder], evaluate_vectors([autoencoder], batches, [Fisher()]), batches)
    return found


def test_planted_latents_are_of_their_parts(planted: PartsOfLatents):
    assert planted.live.tolist() == [True] * 5 + [False]
    assert planted.part[1:5].tolist() == [1, 1, 1, 0]
    assert planted.single.tolist() == [False, True, True, True, True, False]
    assert planted.shared.tolist() == [True, False, False, False, False, False]
    # Of those that one part's norm is nearly all of, only latent 1 has a direction that the other part lacks.
    assert planted.specific is not None
    assert planted.specific.tolist() == [False, True, False, False, False, False]


def test_planted_factors(planted: PartsOfLatents):
    assert planted.of_error is not None
    assert planted.of_reconstruction is not None
    # b has no error, and latents 1 to 3 are longest there. Latent 2's direction is in a's error, and latent 3's is
    # written at a by latent 4. Both parts vary nearly as much.
    assert planted.of_error[1:4, 1].tolist() == pytest.approx([1, 1, 1])
    assert ratios(planted.of_error, planted.part)[[2, 3]].tolist() == [pytest.approx(1, abs=0.3), pytest.approx(0)]
    assert ratios(planted.of_reconstruction, planted.part)[[2, 3]].tolist() == [0, pytest.approx(1, abs=0.3)]


def test_numbers_and_table_of_planted_latents(planted: PartsOfLatents):
    assert planted.numbers() == {
        "crosscoder_shared": pytest.approx(1 / 5),
        "crosscoder_single": pytest.approx(4 / 5),
        "crosscoder_specific": pytest.approx(1 / 5),
        "crosscoder_confirmed": pytest.approx(1 / 4),
        # Of latent 0 alone both parts have a direction.
        "crosscoder_cosine": pytest.approx(1 / 5),
    }
    counts = planted.counts()
    assert [(each["single"], each["specific"]) for each in counts.values()] == [(1, 0), (3, 1)]
    assert [each["relative_norms"][-1] for each in counts.values()] == [1, 3]
    table = planted.table()
    assert {len(column) for column in table.values()} == {6}
    assert table["part"][1] == "b"
    assert table["specific"] == [False, True, False, False, False, False]
    assert table["relative_norm b"] == [pytest.approx(0.5, abs=0.1), 1, 1, 1, 0, None]


def test_parts_of_different_widths_have_norms_alone():
    layout = Layout((("a", 3), ("b", 2)))
    settings = settings_of("standard", d_sae=4)
    autoencoder = settings.build(Ends(input=layout, target=layout), torch.Generator().manual_seed(0)).eval()
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(1))
    (found,) = measure_parts([autoencoder], evaluate_vectors([autoencoder], [Batch(x, x)], [Fisher()]), [Batch(x, x)])
    assert found.numbers().keys() == {"crosscoder_shared", "crosscoder_single"}
    assert {"part", "live", "relative_norm a", "relative_norm b"} == found.table().keys()
