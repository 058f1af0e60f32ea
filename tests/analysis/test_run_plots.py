from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fsae.analysis.run_plots import plot_density, plot_sharing, plot_training
from fsae.outputs.metric_log import MetricLog

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def remembered(figure: Figure, *arguments, **settings):
        saved.append(figure)
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", remembered)
    return saved


def metrics_file(folder: Path, records: list[tuple[int, dict[str, float]]]) -> Path:
    log = MetricLog(folder / "metrics.jsonl")
    for step, values in records:
        log.append(values, step)
    log.close()
    return folder / "metrics.jsonl"


def line(axis: Axes) -> list[tuple[float, float]]:
    (drawn,) = axis.get_lines()
    return [(x, y) for x, y in np.column_stack(drawn.get_data()).tolist()]


def test_curves_are_drawn_against_millions_of_vectors(tmp_path: Path, figures: list[Figure]):
    metrics = metrics_file(
        tmp_path,
        [
            (500_000, {"train/fvu": 0.5, "train/l0": 80.0, "train/fisher_ratio": 2.0, "train/dead_share": 0.0}),
            (1_500_000, {"train/fvu": 0.25, "train/l0": 64.0, "train/dead_share": 0.1}),
            # Logged as well, and not drawn.
            (1_500_000, {"eval/fvu": 0.3}),
        ],
    )
    plot_training(metrics, tmp_path / "plots" / "training.png")
    assert (tmp_path / "plots" / "training.png").read_bytes().startswith(PNG)
    fvu, l0, fisher, dead = figures[0].axes
    assert line(fvu) == [(0.5, 0.5), (1.5, 0.25)]
    assert line(l0) == [(0.5, 80.0), (1.5, 64.0)]
    assert line(fisher) == [(0.5, 2.0)]
    assert line(dead) == [(0.5, 0.0), (1.5, 0.1)]
    assert (fvu.get_yscale(), dead.get_yscale()) == ("log", "linear")
    assert all(axis.get_title() and axis.get_xlabel() == "training vectors (millions)" for axis in figures[0].axes)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [(10, {"train/loss": 1.0})],
        [(10, {"train/fvu": float("nan"), "train/fisher_ratio": 0.0}), (20, {"train/fvu": float("inf")})],
    ],
)
def test_a_run_with_few_records_is_drawn(records: list, tmp_path: Path):
    plot_training(metrics_file(tmp_path, records), tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes().startswith(PNG)


def test_the_density_is_drawn_and_dead_latents_are_counted(tmp_path: Path, figures: list[Figure]):
    plot_density({"log10_edges": [-3.0, -2.0, -1.0, 0.0], "latents": [0, 5, 2]}, 0.125, tmp_path / "firing.png")
    (axis,) = figures[0].axes
    assert axis.get_title() == "7 latents are active; 12.5 % never are"
    (steps,) = axis.patches
    assert steps.get_data().values.tolist() == [0, 5, 2]  # pyright: ignore[reportAttributeAccessIssue]
    # The axis begins a little left of the first latents.
    assert axis.get_xlim() == pytest.approx((-2.2, 0.0))


def test_a_density_without_active_latents_is_drawn(tmp_path: Path):
    plot_density({"log10_edges": [-1.0, 0.0], "latents": [0]}, 1.0, tmp_path / "firing.png")
    assert (tmp_path / "firing.png").read_bytes().startswith(PNG)


def test_sharing_is_drawn_next_to_the_cosines_to_the_truth(tmp_path: Path, figures: list[Figure]):
    # The last latent of the second member is dead.
    found = {"found_by": [[2, 2, 1], [2, 2, 0]], "closest": [[0.9, 0.8, 0.3], [0.8, 0.9, 0.3]]}
    plot_sharing(found, tmp_path / "alone.png")
    plot_sharing(found | {"nearest_cosine": [[0.9, 0.8, 0.2], [0.9, 0.8, 0.4]]}, tmp_path / "known.png")
    alone, known = figures
    heights = [bar.get_height() for bar in alone.axes[0].patches if isinstance(bar, Rectangle)]
    assert heights == [0.5, 2]
    assert alone.axes[0].get_title() == "80 % in all 2"
    (points,) = known.axes[1].get_lines()
    assert np.asarray(points.get_xydata()).tolist() == [[0.9, 0.9], [0.8, 0.8], [0.3, 0.2], [0.8, 0.9], [0.9, 0.8]]
    assert (tmp_path / "known.png").read_bytes().startswith(PNG)
