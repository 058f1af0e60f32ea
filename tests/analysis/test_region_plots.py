from pathlib import Path

import numpy as np
import pytest

from fsae.analysis.region_plots import plot_lift, plot_region_sizes, plot_regions

PNG = b"\x89PNG\r\n\x1a\n"
EDGES = np.linspace(-1, 1, 50)
# Left and right of the middle.
REGIONS = np.broadcast_to((EDGES > 0).astype(int), (50, 50))


@pytest.mark.parametrize("sites", [None, np.array([[0.5, 0.0, 1.0], [-0.5, 0.0, 0.0]])])
def test_a_plane_of_regions_is_drawn(tmp_path: Path, sites: np.ndarray | None):
    plot_regions(REGIONS, EDGES, np.zeros((3, 2)), sites, tmp_path / "plots" / "regions.png")
    assert (tmp_path / "plots" / "regions.png").read_bytes().startswith(PNG)


def test_the_lifted_sites_are_drawn_above_their_section(tmp_path: Path):
    plot_lift(REGIONS, EDGES, np.array([[0.5, 0.0, 0.0], [-0.5, 0.0, 1.0]]), tmp_path / "lift.png")
    assert (tmp_path / "lift.png").read_bytes().startswith(PNG)


def test_sizes_of_regions_are_drawn(tmp_path: Path):
    plot_region_sizes([1, 2, 4], [7, 0, 1], tmp_path / "sizes.png")
    assert (tmp_path / "sizes.png").read_bytes().startswith(PNG)
