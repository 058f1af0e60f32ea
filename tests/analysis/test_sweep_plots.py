from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fsae.analysis.comparison import Comparison, Curve
from fsae.analysis.metrics import Accompaniment
from fsae.analysis.sweep_plots import Palette, plot_description_length, plot_differences, plot_front, plot_theta

BITS, FVU = "eval/description_length", "eval/fvu"


def test_the_line_of_bits_joins_the_means_that_no_other_beats(tmp_path: Path, figures: list[Figure]):
    # Two seeds each, of which the lucky ones would make another line. The mean of "c" has more bits and more fvu than
    # that of "b"; of another treatment it would stand alone.
    values = {"a": [(10, 0.4), (14, 0.2)], "b": [(20, 0.2), (20, 0.1)], "c": [(30, 0.05), (30, 0.35)]}
    rows = [
        {"arch": "topk", "treatment": treatment, "setting": name, "label": name, BITS: bits, FVU: fvu}
        for treatment, names in {"trainer=adam": "abc", "trainer=pam": "c"}.items()
        for name in names
        for bits, fvu in values[name]
    ]
    palette = Palette(["topk"], ["trainer=adam", "trainer=pam"])
    plot_description_length(pd.DataFrame(rows), palette, tmp_path / "bits.png")
    (axis,) = figures[0].axes
    points, line, alone, single = (np.column_stack(each.get_data()) for each in axis.lines)
    assert len(points) == 6
    np.testing.assert_allclose(line, [[12, 0.3], [20, 0.15]])
    assert len(alone) == 2
    np.testing.assert_allclose(single, [[30, 0.2]])
    assert axis.lines[1].get_linestyle() != axis.lines[3].get_linestyle()
    # Means that the line omits are labelled too.
    assert [text.get_text() for text in axis.texts] == ["a", "b", "c", "c"]


def test_labels_of_close_points_do_not_overlap(tmp_path: Path, figures: list[Figure]):
    rows = [
        {"arch": "topk", "treatment": "", "setting": name, "label": f"{name} latents", BITS: bits, FVU: 0.2}
        for name, bits in {"a": 100, "b": 101, "c": 102, "d": 10}.items()
    ]
    plot_description_length(pd.DataFrame(rows), Palette(["topk"], [""]), tmp_path / "bits.png")
    boxes = [text.get_window_extent() for text in figures[0].axes[0].texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


LONG = "form=reconstruction, samples=1024"


@pytest.mark.parametrize(
    "names", [["0", "0.01", "0.1"], ["0", *(f"{10.0**-n}" for n in range(6))], ["0", f"1, {LONG}"]]
)
def test_ticks_of_treatments_do_not_overlap(names: list[str], tmp_path: Path, figures: list[Figure]):
    archs, treatments = ["batch_topk", "gated", "jumprelu"], [f"θ = {name}" for name in names]
    rows = [
        {"arch": arch, "treatment": treatment, "sparsity": "", FVU: 0.2, "eval/l0": 8.0}
        for arch, treatment in product(archs, treatments)
    ]
    plot_theta(pd.DataFrame(rows), FVU, Palette(archs, treatments), tmp_path / "theta.png")
    ticks = [text for axis in figures[0].axes[:3] for text in axis.get_xticklabels() if text.get_text()]
    assert len(ticks) == len(archs) * len(names)
    boxes = [text.get_window_extent() for text in ticks]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    width = figures[0].bbox.width
    assert all(box.x0 >= 0 and box.x1 <= width for box in boxes)


def test_all_text_can_be_read_on_a_phone(tmp_path: Path, figures: list[Figure]):
    """A phone shows a picture of the page at a width of 350 pixels."""
    treatments = ["θ = 0", f"θ = 0.01, {LONG}"]
    curves = {
        ("", "gated", name): {"seed=0": Curve(np.array([8.0, 16.0]), np.array([0.2, 0.1]))} for name in treatments
    }
    palette = Palette(["gated"], treatments)
    beside = Accompaniment(0.01, {"random directions": np.array([[8.0, 16.0], [0.9, 0.8]])})
    plot_front(curves, "", "fraction of variance unexplained", palette, tmp_path / "front.png", beside)
    differences = {"seed=0": -0.1, "seed=1": 0.2}
    compared = Comparison(
        condition=f"model={LONG}", arch="gated", treatment=treatments[1], metric=FVU, differences=differences
    )
    plot_differences([compared], palette, tmp_path / "difference.png")
    for figure in figures:
        pixels_a_point = 350 / (72 * figure.get_figwidth())
        sizes = [float(text.get_fontsize()) * pixels_a_point for text in figure.findobj(Text) if text.get_text()]
        assert min(sizes) > 8
        (axis,) = figure.axes
        # Long names leave most of the width to the picture, and none is cut off.
        assert axis.get_window_extent().width > 0.5 * figure.bbox.width
        names = [text.get_window_extent() for text in figure.findobj(Text) if "form=" in text.get_text()]
        assert names
        assert [box for box in names if box.x0 < 0 or box.x1 > figure.bbox.width] == []


def test_a_front_has_room_for_points_noise_controls_and_the_band(tmp_path: Path, figures: list[Figure]):
    l0 = np.array([2.0, 4.0, 8.0])
    # The mean of the last is 0.63, and its standard error 0.03: the band ends 3.18 of these above.
    last = (0.6, 0.6, 0.6, 0.72)
    seeds = {f"seed={number}": Curve(l0, np.array([0.4, 0.5, each])) for number, each in enumerate(last)}
    label = "the share of a long name with many words that would not fit along the axis (long_name)\N{NO-BREAK SPACE}↑"
    beside = Accompaniment(0.005, {"random directions": np.array([l0, [0.2, 0.25, 0.3]])})
    plot_front({("", "topk", "θ = 0"): seeds}, "", label, Palette(["topk"], ["θ = 0"]), tmp_path / "front.png", beside)
    (axis,) = figures[0].axes
    low, high = axis.get_ylim()
    assert 0.1 < low < 0.2
    assert 0.725 < high < 0.775
    box = axis.yaxis.label.get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= figures[0].bbox.height
    (legend,) = figures[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert {"noise of the evaluation", "random directions"} < set(names)


def test_every_architecture_has_a_colour_of_its_own():
    archs = [f"arch{number}" for number in range(9)]
    assert len({Palette(archs, []).colour(arch) for arch in [*archs, "all"]}) == 10
