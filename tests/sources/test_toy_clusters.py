"""The toy's points lie where its definition puts them."""

import pytest
import torch

from fsae.sources.toy_clusters import ToyClustersSettings

CPU = torch.device("cpu")


def test_points_are_a_line_a_square_and_a_diagonal():
    x, y = ToyClustersSettings(points=1000).source(CPU).first_vectors().T
    # 40, 30 and 30 %; noise of 0.15 stays within 0.75, that is five standard deviations.
    line, square, diagonal = slice(0, 400), slice(400, 700), slice(700, 1000)
    assert x[line].min() >= -4
    assert x[line].max() <= -1
    assert y[line].abs().max() < 0.75
    for each in (x[square], y[square]):
        assert each.min() >= 1
        assert each.max() <= 3
    # y = x - 4, each with noise of its own.
    assert (y - x + 4)[diagonal].std().item() == pytest.approx(0.15 * 2**0.5, rel=0.15)


def test_held_out_points_are_other_points_of_the_same_clusters():
    source = ToyClustersSettings().source(CPU)
    held_out = torch.cat([batch.inputs for batch in source.held_out(10_000, 512)])
    assert (len(source.first_vectors()), len(held_out), source.d_in) == (100, 4096, 2)
    assert held_out.mean(0).tolist() == pytest.approx([0.2, 0.0], abs=0.1)
    assert torch.cdist(source.first_vectors(), held_out).min() > 0


def test_fewer_than_three_points_are_refused():
    with pytest.raises(ValueError, match=r"source.points is 2; it must be a number of points, at least 3"):
        ToyClustersSettings(points=2)
