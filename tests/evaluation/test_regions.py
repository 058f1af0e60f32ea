"""Regions of k-means on a line, whose number, boundaries and sizes are known."""

import math

import pytest
import torch

from fsae.autoencoders.local_pca import KMeansSettings, LocalPCA
from fsae.evaluation.regions import Regions, along_segments, on_plane, radii, sizes
from tests.architectures import build, each_architecture, samples


def line() -> LocalPCA:
    """Centres at 0, 2 and 4: boundaries at 1 and 3."""
    autoencoder = KMeansSettings(d_sae=3).build(1, torch.Generator()).double().eval()
    autoencoder.set_weights(torch.tensor([[0.0], [2.0], [4.0]]).double())
    return autoencoder


def points(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


@each_architecture
def test_two_inputs_share_a_name_where_they_share_their_support(arch: str):
    autoencoder = build(arch, d_in=2, d_sae=6).eval()
    x = samples(300, d_in=2)
    supports = [tuple(row.nonzero().squeeze(1).tolist()) for row in autoencoder(x).codes.dense()]
    names = Regions(autoencoder).names(x).tolist()
    assert len(set(supports)) > 1
    assert len(set(names)) == len(set(supports)) == len(set(zip(names, supports, strict=True)))


def test_sizes_are_of_occupied_regions_the_fullest_first():
    assert sizes(Regions(line()).names(points(0.0, 0.5, 3.5, 5.0, 9.0))).tolist() == [3, 2]


def test_a_segment_crosses_what_lies_between():
    ends = torch.stack([points(0.0, 3.5), points(3.5, 9.0)], dim=1)
    found = along_segments(Regions(line()), ends, steps=8)
    changes = found[:, 1:] != found[:, :-1]
    # From 0 in steps of 0.5: 1 is as near to both centres, and 0 comes first; from 3.5 on there is one cell.
    assert [row.nonzero().squeeze(1).tolist() for row in changes] == [[2, 6], []]


def test_a_ray_ends_at_the_boundary_or_nowhere():
    x = points(*[0.25] * 20)
    found = radii(Regions(line()), x, unit=0.01, generator=torch.Generator().manual_seed(0))
    # To the right the boundary at 1; to the left there is none.
    assert {round(value, 6) if value < math.inf else value for value in found.tolist()} == {0.75, math.inf}


@pytest.mark.parametrize("unit", [1e-3, 0.3])
def test_radii_do_not_depend_on_the_unit_to_begin_with(unit: float):
    found = radii(Regions(line()), points(2.0, 1.5), unit, torch.Generator().manual_seed(0))
    assert found.tolist() == pytest.approx([1.0, found[1].item()])
    assert min(abs(found[1].item() - each) for each in (0.5, 1.5)) < 1e-6


def test_no_more_places_are_there_at_a_time_than_a_forward_pass_takes(monkeypatch: pytest.MonkeyPatch):
    seen, names = [], Regions.names

    def counted(self: Regions, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return names(self, x)

    monkeypatch.setattr(Regions, "names", counted)
    ends = samples(400, d_in=1, seed=3).view(200, 2, 1) * 4
    found = along_segments(Regions(line()), ends, steps=100)
    assert (max(seen), sum(seen)) == (4000, 20_000)
    places = ends[:, :1] + torch.linspace(0, 1, 100).double().view(1, -1, 1) * (ends[:, 1:] - ends[:, :1])
    assert torch.equal(found, names(Regions(line()), places.flatten(0, 1)).view(200, 100))
    seen.clear()
    grid = torch.linspace(-1, 5, 150).double()
    found = on_plane(Regions(line()), torch.zeros(1).double(), torch.tensor([[1.0], [0.5]]).double(), grid)
    assert (max(seen), sum(seen)) == (4050, 150**2)
    places = grid + 0.5 * grid.unsqueeze(1)
    assert torch.equal(found, names(Regions(line()), places.reshape(-1, 1)).view(150, 150))


def test_a_plane_is_cut_row_by_row():
    autoencoder = KMeansSettings(d_sae=2).build(3, torch.Generator()).double().eval()
    autoencoder.set_weights(torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]]).double())
    # Columns go along the third axis, rows along the second: the boundary at 1 is between rows 0.5 and 1.5.
    axes = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).double()
    grid = torch.tensor([-0.5, 0.5, 1.5]).double()
    found = on_plane(Regions(autoencoder), torch.zeros(3).double(), axes, grid)
    assert torch.equal(found[0], found[1])
    assert (found[2] == found[2, 0]).all()
    assert found[2, 0] != found[0, 0]
