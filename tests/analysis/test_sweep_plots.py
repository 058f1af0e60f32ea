from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fsae.analysis.sweep_plots import Palette, plot_description_length

BITS, FVU = "eval/description_length", "eval/fvu"


def test_a_line_of_bits_goes_through_the_means_that_no_other_betters(tmp_path: Path, figures: list[Figure]):
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
    # Means that a line leaves out have their label too.
    assert [text.get_text() for text in axis.texts] == ["a", "b", "c", "c"]


def test_labels_of_points_that_lie_close_do_not_cover_each_other(tmp_path: Path, figures: list[Figure]):
    rows = [
        {"arch": "topk", "treatment": "", "setting": name, "label": f"{name} latents", BITS: bits, FVU: 0.2}
        for name, bits in {"a": 100, "b": 101, "c": 102, "d": 10}.items()
    ]
    plot_description_length(pd.DataFrame(rows), Palette(["topk"], [""]), tmp_path / "bits.png")
    boxes = [text.get_window_extent() for text in figures[0].axes[0].texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
