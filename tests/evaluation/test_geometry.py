"""The geometry of an autoencoder as a whole, where it can be said beforehand."""

import pytest
import torch

from fsae.autoencoders.local_pca import KMeansSettings, LocalPCA
from fsae.evaluation.geometry import evaluate_geometry, size_histogram
from fsae.evaluation.results import MEANINGS
from fsae.sources.source import Batch
from tests.architectures import build, samples


def halves(d_in: int) -> LocalPCA:
    """Two cells with a boundary at 0 of the first axis."""
    autoencoder = KMeansSettings(d_sae=2).build(d_in, torch.Generator()).eval()
    centres = torch.zeros(2, d_in)
    centres[:, 0] = torch.tensor([-1.0, 1.0])
    autoencoder.place(centres)
    return autoencoder


def batches(x: torch.Tensor) -> list[Batch]:
    return [Batch(some, some) for some in x.split(100)]


def test_two_halves_of_a_plane():
    x = samples(2000, d_in=2, dtype=torch.float32)
    (found,) = evaluate_geometry([halves(2)], batches(x))
    scalars = found.scalars
    assert (scalars["regions"], scalars["points_per_region"]) == (2.0, 1000.0)
    assert found.region_sizes.sum() == 2000
    assert scalars["largest_region"] == pytest.approx(0.5, abs=0.05)
    # Two samples lie in different halves every other time, with the one boundary between them.
    assert scalars["same_region_share"] == pytest.approx(0.5, abs=0.1)
    assert scalars["adjacent_share"] == 1 - scalars["same_region_share"]
    assert scalars["segment_regions"] == pytest.approx(1 + scalars["adjacent_share"])
    assert scalars["diagram_agreement"] == 1.0
    assert scalars.keys() <= MEANINGS.keys()


def test_the_picture_is_of_the_plane_itself_with_sites_and_lift():
    x = samples(500, d_in=2, dtype=torch.float32)
    (found,) = evaluate_geometry([halves(2)], batches(x))
    plane = found.plane
    left, right = plane.edges < 0, plane.edges > 0
    assert len(plane.regions[:, left].unique()) == len(plane.regions[:, right].unique()) == 1
    assert torch.equal(plane.points, x)
    assert plane.sites is not None
    assert plane.lift is not None
    # Equal weights: all sites at height 0.
    assert plane.lift[:, 2].tolist() == [0.0, 0.0]


def test_in_more_dimensions_the_picture_is_through_three_samples():
    x = samples(50, d_in=6, dtype=torch.float32)
    (found,) = evaluate_geometry([halves(6)], batches(x))
    plane = found.plane
    assert plane.sites is None
    # Distances within the plane are those of the samples.
    torch.testing.assert_close(torch.cdist(plane.points, plane.points), torch.cdist(x[:3], x[:3]))
    numbers = [
        plane.regions[(plane.edges - y).abs().argmin(), (plane.edges - x).abs().argmin()] for x, y in plane.points
    ]
    same = [bool(a == b) for a in numbers for b in numbers]
    assert same == [bool((a[0] > 0) == (b[0] > 0)) for a in x[:3] for b in x[:3]]


def test_every_kind_of_region_can_be_looked_at():
    x = samples(300, dtype=torch.float32)
    autoencoders = [build(arch, dtype=torch.float32).eval() for arch in ("standard", "topk", "abs_topk")]
    standard, topk, abs_topk = evaluate_geometry(autoencoders, batches(x))
    assert "diagram_agreement" not in standard.scalars
    assert topk.scalars["diagram_agreement"] == abs_topk.scalars["diagram_agreement"] == 1.0


def test_sizes_are_counted_by_powers_of_two():
    # One of 5 (4 to 7), one of 3 and one of 2 (2 to 3), two of 1.
    assert size_histogram(torch.tensor([5, 3, 2, 1, 1])) == {"from": [1, 2, 4], "regions": [2, 2, 1]}
