import json
import math
from pathlib import Path

import pandas as pd
import pytest

from fsae.analysis.report import write_report
from fsae.analysis.runs import collect_folders, collect_mlflow
from fsae.outputs.status import Failure, RunState
from fsae.tracking.mlflow_upload import MlflowUpload, read_description
from fsae.tracking.server import create_database
from tests.analysis.run_folders import results_of, settings_of, write_run, write_sweep


def one_run(folder: Path, **more) -> None:
    write_run(folder, settings_of("gated", 0.01, 1, 3), results_of("gated", 0.01, 1, 3, effect=0, noise=0), **more)


def test_a_row_holds_settings_numbers_and_identity(tmp_path: Path):
    one_run(tmp_path / "r", tags={"fsae.sweep": "2026-11-21/14-00-00", "mlflow.source.git.commit": "abc"})
    (row,) = collect_folders([tmp_path / "r"]).to_dict("records")
    assert (row["run"], row["folder"], row["state"], row["failure"]) == ("r", str(tmp_path / "r"), "finished", None)
    assert (row["sweep"], row["commit"]) == ("2026-11-21/14-00-00", "abc")
    assert (row["arch"], row["loss.penalty.weight"], row["seed"], row["arch.d_sae"]) == ("gated", 0.01, 3, 2048)
    assert row["eval/fvu"] == results_of("gated", 0.01, 1, 3, effect=0, noise=0)["eval/fvu"]
    assert len(row["density/log10_edges"]) == len(row["density/latents"]) + 1 == 61


def test_runs_are_found_at_any_depth_in_the_order_of_their_numbers(tmp_path: Path):
    for name in ("s/10", "s/9", "other/x/1"):
        one_run(tmp_path / name)
    # A run's subfolders are no runs, nor is a folder above runs with the status of a refused command.
    for copied in ("s/9/sae/config.yaml", "mlartifacts/1/artifacts/status.json"):
        (tmp_path / copied).parent.mkdir(parents=True)
        (tmp_path / copied).touch()
    (tmp_path / "status.json").write_text("{}")
    found = collect_folders([tmp_path, tmp_path / "s"])
    assert [Path(folder).relative_to(tmp_path).as_posix() for folder in found["folder"]] == ["other/x/1", "s/9", "s/10"]


def test_a_setting_is_a_number_if_it_is_one_in_every_run(tmp_path: Path):
    for number, (k, data) in enumerate(((8, 1), (None, "text"), (0.5, True))):
        write_run(tmp_path / str(number), {"arch.k": k, "mixed": data, "off": None, "yes": True}, {"eval/l0": 1.0})
    runs = collect_folders([tmp_path])
    assert runs["arch.k"].isna().tolist() == [False, True, False]
    assert runs["arch.k"].dropna().tolist() == [8.0, 0.5]
    assert runs["mixed"].tolist() == ["1", "text", "true"]
    assert runs["off"].isna().tolist() == [True] * 3
    assert runs["yes"].tolist() == ["true"] * 3


def test_a_refused_job_does_not_turn_numbers_into_texts(tmp_path: Path):
    for number, weight in enumerate((0.5, 10.0)):
        write_run(tmp_path / str(number), {"weight": weight}, {"eval/l0": 1.0})
    for number, text in ((2, "abc"), (3, "1e-5")):
        failure = Failure(kind="ValueError", message="no")
        write_run(tmp_path / str(number), {"weight": text}, None, state=RunState.refused, failure=failure)
    weights = collect_folders([tmp_path])["weight"].tolist()
    assert weights[:2] == [0.5, 10.0]
    assert math.isnan(weights[2])
    assert weights[3] == 1e-5


@pytest.mark.parametrize("texts", [["007", "7"], ["1e5", "100000"], [str(2**53), str(2**53 + 1), "null"]])
def test_texts_that_would_become_equal_numbers_stay_texts(texts: list[str], tmp_path: Path):
    for number, text in enumerate(texts):
        write_run(tmp_path / str(number), {"name": text}, {"eval/l0": 1.0})
    assert collect_folders([tmp_path])["name"].tolist() == [None if text == "null" else text for text in texts]


def test_values_that_are_not_finite_become_nan(tmp_path: Path):
    write_run(tmp_path / "r", {}, {"eval/fvu": None, "eval/l0": 3.0, "notes": {"eval/fvu": "not finite: inf"}})
    (row,) = collect_folders([tmp_path]).to_dict("records")
    assert math.isnan(row["eval/fvu"])
    assert row["eval/l0"] == 3.0
    assert "notes" not in row


@pytest.mark.parametrize(
    ("file", "content", "state", "reason"),
    [
        ("results.json", None, "damaged", "results.json"),
        ("results.json", '{"eval/fvu": 0.', "damaged", ""),
        ("results.json", "[1, 2]", "damaged", "results.json does not hold a run's results"),
        ("results.json", '{"eval/fvu": "low"}', "damaged", "low"),
        ("results.json", '{"density_histogram": {"latents": []}}', "damaged", "log10_edges"),
        ("status.json", None, "not started", "no status.json"),
        ("status.json", '{"state": "exploded"}', "damaged", "exploded"),
        ("status.json", "", "damaged", "status.json"),
        ("status.json", "\xff\xfe", "damaged", ""),
        ("tracking.json", '{"uid": "1"}', "damaged", "tracking.json"),
    ],
)
def test_a_damaged_folder_is_a_row_with_the_reason(
    file: str, content: str | None, state: str, reason: str, tmp_path: Path
):
    one_run(tmp_path / "good")
    one_run(tmp_path / "bad")
    (tmp_path / "bad" / file).unlink()
    if content is not None:
        (tmp_path / "bad" / file).write_bytes(content.encode("latin-1"))
    bad, good = collect_folders([tmp_path]).to_dict("records")
    assert good["state"] == "finished"
    assert bad["state"] == state
    assert reason in bad["failure"]
    assert bad["folder"] == str(tmp_path / "bad")


def test_a_run_without_a_description_keeps_its_numbers(tmp_path: Path):
    one_run(tmp_path / "r")
    (tmp_path / "r" / "tracking.json").unlink()
    (row,) = collect_folders([tmp_path]).to_dict("records")
    assert (row["run"], row["state"]) == ("r", "finished")
    assert row["eval/l0"] > 0


def test_failure_states_how_runs_ended_early(tmp_path: Path):
    settings = settings_of("gated", 0, 1, 0)
    oom = Failure(kind="OutOfMemoryError", message="CUDA out of memory")
    write_run(tmp_path / "0", settings, None, state=RunState.failed, failure=oom)
    write_run(tmp_path / "1", settings, None, state=RunState.running)
    write_run(tmp_path / "2", settings, None, state=RunState.running)
    status = json.loads((tmp_path / "2" / "status.json").read_text())
    (tmp_path / "2" / "status.json").write_text(json.dumps(status | {"pid": 2**22 + 1}))
    # The sweep had four jobs; the last never started.
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": [[], [], [], []]}))
    runs = collect_folders([tmp_path])
    assert runs["state"].tolist() == ["failed", "running", "killed", "not started"]
    assert runs["failure"].tolist()[0] == "OutOfMemoryError: CUDA out of memory"
    assert "ended without a report" in runs["failure"].tolist()[2]


def test_folders_without_runs_are_reported(tmp_path: Path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        collect_folders([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no run in .*empty"):
        collect_folders([tmp_path / "empty"])


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep in folders and in MLflow, with a run for every way to end."""
    outputs = tmp_path_factory.mktemp("outputs")
    create_database(outputs / "mlflow.db")
    uri = f"sqlite:///{outputs / 'mlflow.db'}"
    sweep = outputs / "sweeps" / "s"
    write_sweep(sweep, archs=["gated"], weights=[1, 2], seeds=[0], uri=uri)
    tags = {"fsae.sweep": "2026-11-21/14-00-00"}
    failure = Failure(kind="ValueError", message="no ünicode\nin two lines")
    settings = settings_of("jumprelu", 0, 1, 0)
    write_run(sweep / "8", settings, None, uri=uri, tags=tags, state=RunState.failed, failure=failure)
    results = results_of("jumprelu", 0, 1, 0, effect=0, noise=0) | {"eval/fvu": None}
    write_run(sweep / "9", settings, results, uri=uri, tags=tags)
    write_run(sweep / "10", settings, None, uri=uri, tags=tags, state=RunState.interrupted)
    write_run(outputs / "runs" / "apart", settings, results, uri=uri)
    for folder in (*sweep.iterdir(), outputs / "runs" / "apart"):
        upload = MlflowUpload(folder, uri, read_description(folder))
        upload.send_metrics()
        assert upload.close()
    return outputs, uri


def test_folders_and_mlflow_give_the_same_table(logged: tuple[Path, str]):
    outputs, uri = logged
    pd.testing.assert_frame_equal(collect_folders([outputs]), collect_mlflow(uri, "fsae"))


def test_folders_and_mlflow_give_the_same_report(logged: tuple[Path, str], tmp_path: Path):
    outputs, uri = logged
    pages = [
        write_report(runs, tmp_path / name).read_text()
        for name, runs in (("a", collect_folders([outputs])), ("b", collect_mlflow(uri, "fsae")))
    ]
    # All lines except the time of writing.
    first, second = ([line for line in page.splitlines() if "Written" not in line] for page in pages)
    assert first == second
    assert (tmp_path / "a" / "runs.csv").read_text() == (tmp_path / "b" / "runs.csv").read_text()


def test_collect_mlflow_may_select_one_sweep(logged: tuple[Path, str]):
    outputs, uri = logged
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("fsae")
    assert experiment
    summary = client.create_run(
        experiment.experiment_id, tags={"fsae.sweep": "2026-11-21/14-00-00", "fsae.kind": "sweep"}
    )
    try:
        found = collect_mlflow(uri, "fsae", "2026-11-21/14-00-00")
    finally:
        client.delete_run(summary.info.run_id)
    pd.testing.assert_frame_equal(found, collect_folders([outputs / "sweeps"]))


def test_a_truncated_result_in_mlflow_is_reported(tmp_path: Path):
    create_database(tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    write_run(tmp_path / "run", settings_of("gated", 0, 1, 0), {"eval/fvu": 0.3}, uri=uri)
    upload = MlflowUpload(tmp_path / "run", uri, read_description(tmp_path / "run"))
    upload.send_metrics()
    assert upload.close()
    (stored,) = tmp_path.glob("mlartifacts/**/results.json")
    stored.write_text(stored.read_text()[:-9])
    (row,) = collect_mlflow(uri, "fsae").to_dict("records")
    assert row["state"] == "damaged"
    assert "results.json does not hold a run's results" in row["failure"]


def test_the_error_names_what_mlflow_lacks(logged: tuple[Path, str], tmp_path: Path):
    _, uri = logged
    with pytest.raises(ValueError, match=r"no experiment 'other'; it has .*fsae"):
        collect_mlflow(uri, "other")
    with pytest.raises(ValueError, match=r"no run with the tag fsae\.sweep = never"):
        collect_mlflow(uri, "fsae", "never")
    with pytest.raises(ValueError, match=r"new\.db: no such file"):
        collect_mlflow(f"sqlite:///{tmp_path / 'new.db'}", "fsae")
    assert not (tmp_path / "new.db").exists()
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9\) does not answer"):
        collect_mlflow("http://127.0.0.1:9", "fsae")
