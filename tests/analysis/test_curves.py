"""Curves whose points are arms of a study."""

import json
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest

from experiments.arms import arms_of
from experiments.curves import Point, curves_of, plot, seconds_of, table


def runs(tmp_path: Path) -> pd.DataFrame:
    """Five seeds of two trainers at three shares; a run's seconds are ten times its share."""
    rows = []
    for trainer in ("adam", "pam"):
        for share in (0.1, 0.5, 1.0):
            for seed in range(5):
                folder = tmp_path / f"{trainer}-{share}-{seed}"
                folder.mkdir()
                lines = [
                    {"time_ms": 100 * step * share, "step": step, "metrics": {"train/loss": 1.0}}
                    for step in (20, 60, 100)
                ]
                lines.append({"time_ms": 10**6, "step": 100, "metrics": {"eval/fvu": 1.0}})
                (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
                rows.append(
                    {
                        "run": folder.name,
                        "folder": str(folder),
                        "state": "finished",
                        "failure": None,
                        "sweep": None,
                        "commit": None,
                        "arch": "topk",
                        "trainer": trainer,
                        "source.share": share,
                        "seed": seed,
                        "eval/l0": 10 * share,
                        "eval/fvu": (trainer == "adam") + share + 0.01 * seed,
                    }
                )
    return pd.DataFrame(rows)


def test_one_setting_is_the_axis_and_others_are_lines(tmp_path: Path):
    curves = curves_of(
        arms_of(runs(tmp_path), ["source.share", "trainer"], ["fvu"]), "source.share", ["trainer"], "fvu"
    )
    assert [(point.x, pytest.approx(point.mean)) for point in curves["trainer=pam"]] == [
        (0.1, 0.12),
        (0.5, 0.52),
        (1.0, 1.02),
    ]
    first = curves["trainer=adam"][0]
    assert first.seeds == 5
    assert first.interval is not None
    assert 1.05 < first.interval[0] < first.mean < first.interval[1] < 1.2
    assert "| trainer=pam | 0.5 | 0.52 | " in table(curves, "source.share", "fvu")


def test_a_measured_number_may_be_the_axis(tmp_path: Path):
    arms = arms_of(runs(tmp_path), ["trainer"], ["fvu", "l0"])
    assert [point.x for point in curves_of(arms, "eval/l0", ["trainer"], "fvu")["trainer=adam"]] == [1.0, 5.0, 10.0]
    # The first line is logged after a fifth of the run.
    assert [point.x for point in curves_of(arms, "seconds", ["trainer"], "fvu")["trainer=adam"]] == [1.0, 5.0, 10.0]


def test_an_unknown_time_is_reported(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"time_ms": 1, "step": 1, "metrics": {"train/loss": 1}}\n')
    with pytest.raises(SystemExit, match="logged once only"):
        seconds_of(tmp_path)


@pytest.mark.parametrize("places", [(1.0, 20.0), ("all", "last")])
def test_curves_are_drawn(places: tuple[float | str, ...], tmp_path: Path):
    curves = {
        f"trainer={name}": [Point(place, mean, (0.9 * mean, 1.1 * mean), 5) for place in places]
        for name, mean in (("pam", 0.5), ("adam", 1.0))
    }
    colours = []
    for shown in (dict(list(curves.items())[:1]), curves):
        plot(shown, "source.share", "fvu", tmp_path / "curves.png")
        image = matplotlib.image.imread(tmp_path / "curves.png")[..., :3]
        colours.append({tuple(each) for each in image[image.std(2) > 0.2].round(1)})
    # Each line has a colour of its own.
    assert len(colours[0]) > 0
    assert colours[1] > colours[0]
