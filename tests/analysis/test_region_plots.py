from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from fsae.analysis.region_plots import plot_lift, plot_region_sizes, plot_regions

EDGES = np.linspace(-1, 1, 50)
# One region on each side of the middle.
REGIONS = np.broadcast_to((EDGES > 0).astype(int), (50, 50))
POINTS = np.array([[0.5, -0.5], [0.1, 0.9], [-0.2, 0.0]])


@pytest.mark.parametrize("sites", [None, np.array([[0.5, 0.0, 1.0], [-0.5, 0.0, 0.0]])])
def test_the_plane_shows_regions_boundaries_samples_and_sites(
    tmp_path: Path, figures: list[Figure], sites: np.ndarray | None
):
    plot_regions(REGIONS, EDGES, POINTS, sites, tmp_path / "plots" / "regions.png")
    (axis,) = figures[0].axes
    (image,) = axis.images
    colours = np.asarray(image.get_array())[10, :, :3]
    # One hue on each side; the first column of the right one is the dark boundary.
    left, boundary, right = colours[:25], colours[25], colours[26:]
    assert (left == left[0]).all()
    assert (right == right[0]).all()
    assert np.abs(left[0] - right[0]).max() > 0.1
    np.testing.assert_allclose(boundary, 0.35 * right[0])
    assert (image.origin, tuple(image.get_extent())) == ("lower", (-1, 1, -1, 1))
    drawn = [np.column_stack(line.get_data()) for line in axis.lines]
    np.testing.assert_array_equal(drawn[0], POINTS)
    assert len(drawn) == (1 if sites is None else 2)
    if sites is not None:
        np.testing.assert_array_equal(drawn[1], sites[:, :2])
    where = "the plane through three samples" if sites is None else "the plane"
    assert axis.get_title() == f"2 regions in {where}"


def test_sites_are_drawn_at_their_height_above_the_section(tmp_path: Path, figures: list[Figure]):
    lift = np.array([[0.5, 0.0, 0.0], [-0.5, 0.0, 1.0]])
    plot_lift(REGIONS, EDGES, lift, tmp_path / "lift.png")
    (axis,) = figures[0].axes
    *stems, sites = (np.column_stack(line.get_data_3d()) for line in axis.lines)  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(sites, lift)
    assert [stem.tolist() for stem in stems] == [[[x, y, 0.0], [x, y, height]] for x, y, height in lift]


def test_region_sizes_are_bars_between_powers_of_two(tmp_path: Path, figures: list[Figure]):
    plot_region_sizes([1, 2, 4], [7, 0, 1], tmp_path / "sizes.png")
    (axis,) = figures[0].axes
    (bars,) = axis.patches
    counts, edges, _ = bars.get_data()  # pyright: ignore[reportAttributeAccessIssue]
    assert (list(counts), list(edges)) == ([7, 0, 1], [1, 2, 4, 8])
    assert axis.get_title() == "8 regions are occupied"
