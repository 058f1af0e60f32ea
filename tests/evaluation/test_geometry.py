"""The geometry of an autoencoder as a whole, for cases whose geometry is known."""

import math

import pytest
import torch

from fsae.autoencoders.local_pca import KMeansSettings, LocalPCA
from fsae.autoencoders.pca import PCASettings
from fsae.autoencoders.topk import TopK
from fsae.evaluation import geometry
from fsae.evaluation.geometry import Geometry, evaluate_geometry, size_histogram
from fsae.evaluation.power_diagram import power_diagram
from fsae.seeds import generator_for
from fsae.sources.source import Batch
from tests.architectures import build, samples


def halves(d_in: int) -> LocalPCA:
    """Two cells with a boundary at 0 of the first axis."""
    autoencoder = KMeansSettings(d_sae=2).build(d_in, torch.Generator()).eval()
    centres = torch.zeros(2, d_in)
    centres[:, 0] = torch.tensor([-1.0, 1.0])
    autoencoder.set_weights(centres)
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
    assert scalars.keys() <= Geometry.meanings.keys()


def test_the_picture_is_of_the_plane_itself_with_sites_and_lift():
    x = samples(500, d_in=2, dtype=torch.float32)
    (found,) = evaluate_geometry([halves(2)], batches(x))
    plane = found.plane
    assert plane is not None
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
    assert plane is not None
    assert plane.sites is None
    three = x[torch.randperm(50, generator=generator_for("plane"))[:3]]
    # Distances within the plane are those of the samples.
    torch.testing.assert_close(torch.cdist(plane.points, plane.points), torch.cdist(three, three))
    numbers = [
        plane.regions[(plane.edges - y).abs().argmin(), (plane.edges - x).abs().argmin()] for x, y in plane.points
    ]
    same = [bool(a == b) for a in numbers for b in numbers]
    assert same == [bool((a[0] > 0) == (b[0] > 0)) for a in three for b in three]


def test_the_three_samples_are_not_in_line_where_most_are_the_same():
    places = samples(3, d_in=6, dtype=torch.float32)
    # Two hundred times the first one, a hundred between it and the second one.
    between = places[0] + torch.rand(100, 1, generator=torch.Generator().manual_seed(0)) * (places[1] - places[0])
    x = torch.cat([places[:1].repeat(200, 1), between, places[2:]])
    (found,) = evaluate_geometry([halves(6)], batches(x))
    assert found.plane is not None
    one, two, three = found.plane.points
    area = (two - one)[0] * (three - one)[1] - (two - one)[1] * (three - one)[0]
    assert area.abs() > 0.05


@pytest.mark.parametrize("count", [1, 2, 30])
def test_where_samples_span_no_plane_there_is_no_picture(count: int):
    line = torch.linspace(1, 2, count).unsqueeze(1) * samples(1, d_in=6, dtype=torch.float32)
    (found,) = evaluate_geometry([halves(6)], batches(line))
    assert found.plane is None
    assert found.region_sizes.sum() == count
    point = torch.ones(count, 2)
    assert evaluate_geometry([halves(2)], batches(point))[0].plane is None


def test_one_region_has_no_end():
    autoencoder = PCASettings(d_sae=1).build(3, torch.Generator()).eval()
    autoencoder.set_weights(torch.zeros(1, 3), torch.eye(3)[:1].unsqueeze(0))
    (found,) = evaluate_geometry([autoencoder], batches(samples(200, d_in=3, dtype=torch.float32)))
    assert (found.scalars["regions"], found.scalars["region_radius"]) == (1.0, math.inf)
    assert (found.scalars["same_region_share"], found.scalars["adjacent_share"]) == (1.0, 0.0)


def test_it_can_be_stopped_between_forward_passes():
    beats = []

    def heartbeat() -> None:
        beats.append(len(beats))
        if len(beats) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_geometry([halves(2)], batches(samples(2000, d_in=2, dtype=torch.float32)), heartbeat)


def test_every_kind_of_region_can_be_looked_at():
    x = samples(300, dtype=torch.float32)
    autoencoders = [build(arch, dtype=torch.float32).eval() for arch in ("standard", "topk", "abs_topk")]
    standard, topk, abs_topk = evaluate_geometry(autoencoders, batches(x))
    assert "diagram_agreement" not in standard.scalars
    assert topk.scalars["diagram_agreement"] == abs_topk.scalars["diagram_agreement"] == 1.0


def test_another_autoencoders_diagram_does_not_agree(monkeypatch: pytest.MonkeyPatch):
    x = samples(300, dtype=torch.float32)
    topk, other = build("topk", dtype=torch.float32).eval(), build("topk", dtype=torch.float32).eval()
    assert isinstance(other, TopK)
    with torch.no_grad():
        other.b_enc[0] += 0.1
    monkeypatch.setattr(geometry, "power_diagram", lambda _: power_diagram(other))
    (found,) = evaluate_geometry([topk], batches(x))
    assert 0.5 < found.scalars["diagram_agreement"] < 1


def test_ties_are_reported():
    topk = build("topk", dtype=torch.float32).eval()
    assert isinstance(topk, TopK)
    with torch.no_grad():
        topk.W_enc[:, 1] = topk.W_enc[:, 0]
        topk.b_enc[:] = 0
    x = samples(300, dtype=torch.float32)
    (found,) = evaluate_geometry([topk], batches(x))
    assert 0 < found.scalars["diagram_ties"] < 1


def test_sizes_are_counted_by_powers_of_two():
    # One of 5 (4 to 7), one of 3 and one of 2 (2 to 3), two of 1.
    assert size_histogram(torch.tensor([5, 3, 2, 1, 1])) == {"from": [1, 2, 4], "regions": [2, 2, 1]}
