import itertools
from pathlib import Path
from typing import Any

import pytest

from fsae.analysis.job_table import JobTable, job_table
from fsae.analysis.runs import collect_folders
from fsae.outputs.status import Failure, RunState
from fsae.outputs.sweep_folder import Sweep
from tests.analysis.run_folders import settings_of, write_run

REFUSED = Failure(kind="ValueError", message="k is too large")


def jobs(folder: Path, *rows: tuple[dict[str, Any], dict[str, Any] | None]) -> JobTable:
    """Return the table of jobs with these settings and held-out numbers; None for a failed job."""
    for number, (settings, numbers) in enumerate(rows):
        results = None if numbers is None else {f"eval/{name}": value for name, value in numbers.items()}
        state = RunState.failed if numbers is None else RunState.finished
        write_run(folder / str(number), settings, results, state=state, failure=REFUSED if numbers is None else None)
    return job_table(collect_folders([folder]))


def test_rows_list_differing_settings_then_numbers_then_state(tmp_path: Path):
    rows = [
        (settings_of(arch, 0, 1, seed), {"fvu": 0.25 + seed / 8, "l0": 65536.0, "dead_share": 0.0, "kl": 1.0})
        for arch, seed in itertools.product(("gated", "jumprelu"), (0, 1))
    ]
    table = jobs(tmp_path, *rows, (settings_of("gated", 0, 1, 2), None))
    # source.seed follows seed, and the bandwidth the architecture.
    assert table.settings == ["arch", "seed"]
    assert list(table.numbers) == ["eval/fvu", "eval/l0", "eval/dead_share"]
    assert [row.job for row in table.rows][:2] == ["gated, seed=0", "gated, seed=1"]
    assert table.text().splitlines() == [
        "arch      seed    fvu      l0   dead_share   state",
        "gated     0      0.25*  65536            0   finished",
        "gated     1     0.375   65536            0   finished",
        "jumprelu  0      0.25*  65536            0   finished",
        "jumprelu  1     0.375   65536            0   finished",
        "gated     2                                  failed",
        "* best of all jobs: lowest fvu",
    ]
    assert table.markdown().splitlines()[:3] == [
        "| arch | seed | fvu | l0 | dead_share | state |",
        "| --- | --- | ---: | ---: | ---: | --- |",
        "| gated | 0 | **0.25** | 65536 | 0 | finished |",
    ]


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("fvu", [0.3, 0.1, 0.2], {1}),
        ("ce_recovered_zero", [0.8, 0.9, -0.5], {1}),
        ("dead_share", [0.0, 0.5, 0.0], {0, 2}),
        # Equal values have no best.
        ("fvu", [0.3, 0.3, 0.3], set()),
        ("fvu", [None, 0.3, 0.2], {2}),
        # For these numbers no direction is better.
        ("l0", [8.0, 16.0, 32.0], set()),
        ("fisher_ratio", [0.1, 0.2, 0.3], set()),
    ],
)
def test_the_best_job_is_marked_if_there_is_one(name: str, values: list[float | None], best: set[int], tmp_path: Path):
    table = jobs(tmp_path, *((settings_of("gated", 0, 1, seed), {name: value}) for seed, value in enumerate(values)))
    assert {number for number, row in enumerate(table.rows) if f"eval/{name}" in row.best} == best


def test_a_job_worse_than_the_mean_is_best_at_nothing(tmp_path: Path):
    """Such a job may have no dead latents and still be useless."""
    numbers = [(1.5, 0.0), (0.4, 0.3), (1.0, 0.2), (0.5, 0.2)]
    rows = [
        (settings_of("gated", 0, 1, seed), {"fvu": fvu, "dead_share": dead}) for seed, (fvu, dead) in enumerate(numbers)
    ]
    best = [row.best for row in jobs(tmp_path, *rows).rows]
    assert best == [set(), {"eval/fvu"}, {"eval/dead_share"}, {"eval/dead_share"}]


def test_a_single_job_is_named_after_its_run(tmp_path: Path):
    table = jobs(tmp_path / "alone", (settings_of("gated", 0, 1, 0), {"fvu": 0.5}))
    assert (table.settings, [row.job for row in table.rows]) == ([], ["0"])
    assert table.text() == "run  fvu   state\n0    0.5   finished"


def test_jobs_that_never_started_are_named_after_their_overrides(tmp_path: Path):
    overrides = [["model=tiny", "arch=topk", f"arch.k={k}"] for k in (4, 8, 999, 16)]
    Sweep(
        folder=tmp_path, tag="s", started="", command=[], working_directory="", outputs="", config_dirs=[],
        hydra_overrides=[], constant=["model=tiny", "arch=topk"], varied=["arch.k"], jobs=overrides,
    ).write()  # fmt: skip
    for number, k in ((0, 4), (1, 8)):
        write_run(tmp_path / str(number), settings_of("topk", 0, 1, 0) | {"arch.k": k}, {"eval/fvu": 0.5})
    write_run(tmp_path / "2", {}, None, state=RunState.refused, failure=REFUSED)
    # Without MLflow a refused job has no description.
    (tmp_path / "2" / "tracking.json").unlink()
    table = job_table(collect_folders([tmp_path]))
    assert table.settings == ["arch.k"]
    assert [(row.job, row.state) for row in table.rows] == [
        ("k=4", "finished"), ("k=8", "finished"), ("k=999", "refused"), ("k=16", "not started"),
    ]  # fmt: skip
    assert [line.split()[0] for line in table.text().splitlines()] == ["k", "4", "8", "999", "16"]


def test_a_refused_jobs_group_is_no_setting(tmp_path: Path):
    """For such a job MLflow has the typed override: `model=tiny`, which all other jobs have as `model.name`."""
    for seed in (0, 1):
        write_run(tmp_path / str(seed), settings_of("topk", 0, 1, seed), {"eval/fvu": 0.5})
    asked = {"model": "tiny", "seed": "2"}
    write_run(tmp_path / "2", asked, None, state=RunState.refused, failure=REFUSED)
    table = job_table(collect_folders([tmp_path]))
    assert table.settings == ["seed"]


def test_a_failed_jobs_missing_settings_are_no_difference(tmp_path: Path):
    rows = [({"seed": seed, "arch.k": 8}, {"fvu": 0.5}) for seed in (0, 1)]
    assert jobs(tmp_path, *rows, ({"seed": 2}, None)).settings == ["seed"]


def test_bars_in_names_do_not_end_a_cell_of_markdown(tmp_path: Path):
    names = ("a|b", "c")
    table = jobs(tmp_path, *((settings_of("gated", 0, 1, 0) | {"model.name": name}, {"fvu": 0.5}) for name in names))
    assert table.markdown().splitlines()[2] == "| a\\|b | 0.5 | finished |"
