import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from fsae.files import write_json
from fsae.outputs.metric_log import MetricLog, read_metrics
from fsae.outputs.results import Meaning
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import Failure, RunState, mark
from fsae.tracking.mlflow_upload import (
    DeletedExperimentError,
    MlflowUpload,
    RunDescription,
    describe_run,
    read_description,
)

Describe = Callable[..., RunDescription]


def runs(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def history(uri: str, name: str) -> list[tuple[int, float]]:
    (run,) = runs(uri)
    return [(metric.step, metric.value) for metric in MlflowClient(uri).get_metric_history(run.info.run_id, name)]


def test_upload_logs_a_run_from_its_folder_alone(
    sqlite_uri: str, run_folder: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Set by a program that started this one; using it would mix two runs.
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    folder = RunFolder(run_folder)
    description = describe(sqlite_uri, params={"arch.name": "gated", "long": "x" * 9000}, tags={"fsae.job": "slurm 7"})
    started = mark(run_folder, RunState.running)
    log = MetricLog(folder.metrics)
    for step in range(300):
        log.append({f"train/{name}": step + name / 10 for name in range(7)}, step=step * 512)
    log.append({"train/loss": math.nan, "train/peak": math.inf}, step=300 * 512)
    folder.config.write_text("seed: 3\n")
    folder.sae.mkdir()
    (folder.sae / "cfg.json").write_text("{}")
    fvu = Meaning("fraction of variance unexplained")
    write_json(folder.results, {"eval/fvu": 0.125, "eval/note": "text", "meanings": {"eval/fvu": fvu.as_json()}})
    ended = mark(run_folder, RunState.finished)

    upload = MlflowUpload(run_folder, sqlite_uri, description)
    assert upload.send_metrics() == 300 * 7 + 2
    assert upload.close()

    (run,) = runs(sqlite_uri)
    assert run.info.run_name == "gated"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == int(started.started.timestamp() * 1000)
    assert ended.ended is not None
    assert run.info.end_time == int(ended.ended.timestamp() * 1000)
    assert run.data.params == {"arch.name": "gated", "long": "x" * 6000}
    assert run.data.tags["fsae.job"] == "slurm 7"
    assert run.data.tags["fsae.state"] == "finished"
    assert "| eval/fvu | 0.125 | fraction of variance unexplained |" in run.data.tags["mlflow.note.content"]
    for name in range(7):
        assert history(sqlite_uri, f"train/{name}") == [(step * 512, step + name / 10) for step in range(300)]
    ((_, loss),) = history(sqlite_uri, "train/loss")
    assert math.isnan(loss)
    ((_, peak),) = history(sqlite_uri, "train/peak")
    assert peak > 1e308
    # Artifacts are next to the database; the working directory stays empty.
    place = tmp_path / "outputs" / "mlartifacts" / run.info.run_id / "artifacts"
    found = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    assert found == ["config.yaml", "results.json", "sae/cfg.json", "status.json"]
    assert upload.link == (
        f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        "?workflowType=machine_learning"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]

    again = MlflowUpload(run_folder, sqlite_uri, description)
    assert again.send_metrics() == 0
    assert not again.close()
    assert len(runs(sqlite_uri)) == 1


def test_requests_stay_within_mlflows_limit(
    sqlite_uri: str, run_folder: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = MlflowClient.log_batch

    def counted(self: MlflowClient, run_id: str, metrics: list = [], **rest: object) -> None:  # noqa: B006
        sizes.append(len(metrics))
        original(self, run_id, metrics=metrics, **rest)  # pyright: ignore

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    log = MetricLog(RunFolder(run_folder).metrics)
    for step in range(5):
        log.append({f"a/{n}": 1.0 for n in range(400)}, step=step)
    log.append({f"b/{n}": 1.0 for n in range(2100)}, step=5)
    assert MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri)).send_metrics() == 5 * 400 + 2100
    # First the tags and the parameters, then whole records while they fit (2 x 400), then parts of a larger record.
    assert sizes == [0, 0, 800, 800, 400, 1000, 1000, 100]


@pytest.mark.parametrize(
    ("state", "failure", "status"),
    [
        (RunState.failed, Failure(kind="FloatingPointError", message="the loss is NaN at step 3"), "FAILED"),
        (RunState.refused, Failure(kind="ValueError", message="k=9 above d_sae=8"), "FAILED"),
        (RunState.interrupted, None, "KILLED"),
    ],
)
def test_upload_logs_how_a_run_ended(
    sqlite_uri: str, run_folder: Path, describe: Describe, state: RunState, failure: Failure | None, status: str
) -> None:
    mark(run_folder, RunState.running)
    mark(run_folder, state, failure)
    upload = MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri))
    assert upload.close()
    (run,) = runs(sqlite_uri)
    assert (run.info.status, run.data.tags["fsae.state"]) == (status, state.value)
    if failure:
        assert f"{failure.kind}: {failure.message}" in run.data.tags["mlflow.note.content"]


def test_a_resumed_run_continues_its_mlflow_run_without_doubled_values(
    sqlite_uri: str, run_folder: Path, describe: Describe
) -> None:
    metrics = RunFolder(run_folder).metrics
    description = describe(sqlite_uri)
    mark(run_folder, RunState.running)
    log = MetricLog(metrics)
    log.append({"train/l0": 1.0}, step=1)
    position = log.position()
    log.append({"train/l0": 2.0, "train/seconds": 0.5}, step=2)
    log.append({"train/l0": 3.0}, step=3)
    killed = MlflowUpload(run_folder, sqlite_uri, description)
    killed.send_metrics()
    mark(run_folder, RunState.interrupted)
    assert killed.close()

    # Resumed from the checkpoint after step 1: the same steps at another time, with other measured seconds.
    mark(run_folder, RunState.running)
    log = MetricLog(metrics, position)
    resumed = MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri, uid=description.uid))
    log.append({"train/l0": 2.0, "train/seconds": 0.7}, step=2)
    log.append({"train/l0": 3.0, "eval/fvu": 0.2}, step=3)
    log.append({"train/l0": 4.0, "train/seconds": 0.8}, step=4)
    assert resumed.send_metrics() == 3
    assert runs(sqlite_uri)[0].info.status == "RUNNING"
    assert history(sqlite_uri, "train/l0") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert history(sqlite_uri, "train/seconds") == [(2, 0.5), (4, 0.8)]
    # Logged at a step that MLflow has for other metrics but not for this one.
    assert history(sqlite_uri, "eval/fvu") == [(0, 0.2)]
    mark(run_folder, RunState.finished)
    assert resumed.close()
    assert runs(sqlite_uri)[0].info.status == "FINISHED"


def test_a_later_evaluation_replaces_the_counts_of_samples_too(
    sqlite_uri: str, run_folder: Path, describe: Describe
) -> None:
    mark(run_folder, RunState.running)
    log = MetricLog(RunFolder(run_folder).metrics)
    log.append({"train/l0": 1.0, "data/held_out_samples": 512.0, "eval/fvu": 0.2}, step=3)
    MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri)).send_metrics()
    log.append({"train/l0": 2.0, "data/held_out_samples": 300.0, "eval/fvu": 0.3}, step=3)
    MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri)).send_metrics()
    latest = runs(sqlite_uri)[0].data.metrics
    assert latest == {"train/l0": 1.0, "data/held_out_samples": 300.0, "eval/fvu": 0.3}
    # Nothing is left to send, although the log has the earlier values, too.
    assert MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri)).send_metrics() == 0
    assert history(sqlite_uri, "eval/fvu") == [(0, 0.2), (0, 0.3)]


def test_files_that_a_killed_process_left_unfinished_are_not_uploaded(
    sqlite_uri: str, run_folder: Path, describe: Describe
) -> None:
    folder = RunFolder(run_folder)
    folder.plots.mkdir(exist_ok=True)
    (folder.plots / "whole.png").write_text("drawn")
    (folder.plots / "half.png.partial").write_text("dra")
    mark(run_folder, RunState.finished)
    assert MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri)).close()
    client = MlflowClient(sqlite_uri)
    names = {each.path for each in client.list_artifacts(runs(sqlite_uri)[0].info.run_id, "plots")}
    assert "plots/whole.png" in names
    assert "plots/half.png.partial" not in names


@pytest.mark.parametrize(("megabytes", "arrives"), [(0.01, True), (0.002, False)])
def test_pages_of_latents_arrive_as_one_archive_up_to_a_size(
    megabytes: float, arrives: bool, sqlite_uri: str, run_folder: Path, describe: Describe, tmp_path: Path
) -> None:
    for member in range(2):
        pages = run_folder / "latents" / str(member)
        (pages / "pages-1").mkdir(parents=True)
        (pages / "index.html").write_text("page")
        (pages / "pages-1" / "first-index.js").write_bytes(bytes(1500))
        (pages / "pages-2.partial").mkdir()
        (pages / "pages-2.partial" / "half.js").write_text("half")
    mark(run_folder, RunState.finished)
    assert MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri, latents_mb=megabytes)).close()
    (run,) = runs(sqlite_uri)
    archives = list((tmp_path / "outputs" / "mlartifacts").rglob("latents.zip"))
    assert len(archives) == arrives
    for archive in archives:
        with ZipFile(archive) as opened:
            files = [
                f"latents/{member}/{name}" for member in range(2) for name in ("index.html", "pages-1/first-index.js")
            ]
            assert sorted(opened.namelist()) == files
    # The note names the pages of every member.
    assert run.data.tags["mlflow.note.content"].count("index.html") == 2


@pytest.mark.parametrize("late", ["before", "between", "after", "reading on"])
def test_a_late_uploader_of_a_killed_run_doubles_nothing(
    sqlite_uri: str, run_folder: Path, describe: Describe, late: str
) -> None:
    """The killed run's last request is carried out before the resumed run's uploader reads what MLflow has, after that,
    or after its upload; or no request is pending, and the late uploader reads the resumed run's values."""
    folder = RunFolder(run_folder)
    description = describe(sqlite_uri)
    mark(run_folder, RunState.running)
    log = MetricLog(folder.metrics, 0, folder.dropped)
    log.append({"train/l0": 0.0}, step=0)
    killed = MlflowUpload(run_folder, sqlite_uri, description)
    killed.send_metrics()
    log.append({"train/l0": 1.0}, step=1)
    position = log.position()
    if late == "reading on":
        killed.send_metrics()
    for step in range(2, 6):
        log.append({"train/l0": float(step), "train/seconds": 0.5}, step=step)
    on_its_way = list(read_metrics(folder.metrics, killed.position))

    log = MetricLog(folder.metrics, position, folder.dropped)
    for step in range(2, 8):
        log.append({"train/l0": float(step), "train/seconds": 0.7}, step=step)
    resumed = MlflowUpload(run_folder, sqlite_uri, description)
    if late == "before":
        killed._send(on_its_way)
    resumed._open()
    if late == "between":
        killed._send(on_its_way)
    resumed.send_metrics()
    if late == "after":
        killed._send(on_its_way)
    if late == "reading on":
        assert killed.position == position
        killed.send_metrics()
    assert history(sqlite_uri, "train/l0") == [(step, float(step)) for step in range(8)]
    assert history(sqlite_uri, "train/seconds") == [(step, 0.5 if step < 6 else 0.7) for step in range(2, 8)]


def test_a_late_uploader_of_a_killed_run_does_not_end_the_resumed_run(
    sqlite_uri: str, run_folder: Path, describe: Describe
) -> None:
    description = describe(sqlite_uri)
    mark(run_folder, RunState.running)
    killed, resumed = (MlflowUpload(run_folder, sqlite_uri, description) for _ in range(2))
    resumed.send_metrics()
    assert not killed.close()
    assert runs(sqlite_uri)[0].info.status == "RUNNING"


def test_upload_reports_every_answered_request(sqlite_uri: str, run_folder: Path, describe: Describe) -> None:
    folder = RunFolder(run_folder)
    log = MetricLog(folder.metrics)
    for step in range(25):
        log.append({f"a/{n}": 1.0 for n in range(100)}, step=step)
    folder.config.write_text("seed: 3")
    folder.sae.mkdir()
    for name in ("cfg.json", "weights"):
        (folder.sae / name).write_text("1")
    mark(run_folder, RunState.finished)
    arrived: list[int] = []
    upload = MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri), lambda: arrived.append(1))
    upload.send_metrics()
    # 2500 values, at most 1000 at once.
    assert len(arrived) == 3
    upload.close()
    # config.yaml, status.json and the autoencoder's two files.
    assert len(arrived) == 3 + 4


def test_the_error_for_a_deleted_experiment_names_the_command_to_restore_it(
    sqlite_uri: str, run_folder: Path, describe: Describe
) -> None:
    client = MlflowClient(sqlite_uri)
    client.delete_experiment(client.create_experiment("fsae"))
    MetricLog(RunFolder(run_folder).metrics).append({"a": 1.0}, step=1)
    upload = MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri))
    with pytest.raises(DeletedExperimentError, match=r"tracking\.experiment=fsae: .*deleted.* `(.*)`, or") as caught:
        upload.send_metrics()
    (command,) = re.findall("`(.*)`", str(caught.value))
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert upload.send_metrics() == 1


def test_a_lost_answer_does_not_double_the_batch(
    sqlite_uri: str, run_folder: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricLog(RunFolder(run_folder).metrics)
    for step in range(50):
        log.append({"train/l0": float(step)}, step=step)
    upload = MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri))
    original = MlflowClient.log_batch

    def stored_and_then_cut_off(self: MlflowClient, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)  # pyright: ignore
        if kwargs.get("metrics"):
            raise ConnectionError("cut off")

    monkeypatch.setattr(MlflowClient, "log_batch", stored_and_then_cut_off)
    with pytest.raises(ConnectionError):
        upload.send_metrics()
    assert upload.unsent() == 50
    monkeypatch.setattr(MlflowClient, "log_batch", original)
    upload.send_metrics()
    assert upload.unsent() == 0
    assert history(sqlite_uri, "train/l0") == [(step, float(step)) for step in range(50)]


def test_close_marks_a_killed_run_and_does_nothing_for_a_running_one(
    sqlite_uri: str, run_folder: Path, describe: Describe
) -> None:
    mark(run_folder, RunState.running)
    upload = MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri))
    assert not upload.close()
    assert runs(sqlite_uri)[0].info.status == "RUNNING"
    status = json.loads((run_folder / "status.json").read_text())
    (run_folder / "status.json").write_text(json.dumps(status | {"pid": 2**22 + 1}))
    assert upload.close()
    (run,) = runs(sqlite_uri)
    assert (run.info.status, run.data.tags["fsae.state"]) == ("KILLED", "killed")


def test_changed_parameters_do_not_block_a_resumed_run(sqlite_uri: str, run_folder: Path, describe: Describe) -> None:
    first = describe(sqlite_uri, params={"tracking.flush_seconds": 30})
    MlflowUpload(run_folder, sqlite_uri, first).send_metrics()
    again = describe(sqlite_uri, params={"tracking.flush_seconds": 5, "new": 1}, uid=first.uid)
    MlflowUpload(run_folder, sqlite_uri, again).send_metrics()
    (run,) = runs(sqlite_uri)
    # MLflow never changes a parameter; config.yaml among the artifacts has the current values.
    assert run.data.params == {"tracking.flush_seconds": "30", "new": "1"}


def test_describe_run_keeps_the_uid_until_parameters_change(describe: Describe, sqlite_uri: str) -> None:
    first = describe(sqlite_uri)
    assert describe(sqlite_uri).uid == first.uid
    assert describe(sqlite_uri, uid="from the checkpoint", params={"seed": 4}).uid == "from the checkpoint"
    assert describe(sqlite_uri, params={"seed": 5}).uid not in (first.uid, "from the checkpoint")


def test_describe_run_does_not_store_a_password(run_folder: Path, tmp_path: Path) -> None:
    describe_run(
        run_folder,
        uri="https://me:secret@host",
        outputs=tmp_path,
        experiment="fsae",
        run_name="gated",
        params={},
        tags={},
    )
    assert "secret" not in RunFolder(run_folder).tracking.read_text()
    assert read_description(run_folder).uri == "https://host"


def test_the_error_names_a_folder_that_is_no_run(run_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run's folder: it holds no tracking\.json"):
        read_description(run_folder)
    RunFolder(run_folder).tracking.write_text('{"uid": ')
    with pytest.raises(ValueError, match="does not describe a run"):
        read_description(run_folder)


def test_an_experiment_created_concurrently_is_used(
    sqlite_uri: str, run_folder: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MlflowClient(sqlite_uri).create_experiment("fsae")
    original = MlflowClient.get_experiment_by_name
    asked: list[str] = []

    def not_yet_there(self: MlflowClient, name: str) -> object:
        asked.append(name)
        return None if len(asked) == 1 else original(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", not_yet_there)
    MlflowUpload(run_folder, sqlite_uri, describe(sqlite_uri)).send_metrics()
    assert [run.info.experiment_id for run in runs(sqlite_uri)] == [made]


def test_importing_the_uploader_does_not_import_mlflow() -> None:
    program = (
        "import sys, fsae.sync, fsae.tracking.tracker, fsae.tracking.tags; print({'mlflow', 'torch'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"
