import math
import os
import time
from pathlib import Path

import pytest

from fsae.outputs.metric_log import MetricLog, read_metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_logged_record_can_be_read_at_once(path: Path) -> None:
    before = time.time_ns() // 1_000_000
    log = MetricLog(path)
    log.append({"train/l0": 64.0, "train/mse": 0.1 + 0.2}, step=512)
    log.append({"train/l0": 60}, step=1024)
    # The file is still open, so a kill at this point loses neither line.
    first, second = read_metrics(path)
    assert (first.step, first.metrics) == (512, {"train/l0": 64.0, "train/mse": 0.1 + 0.2})
    assert (second.step, second.metrics) == (1024, {"train/l0": 60.0})
    assert before <= first.time_ms <= second.time_ms <= time.time_ns() // 1_000_000
    assert second.end == path.stat().st_size
    assert list(read_metrics(path, first.end)) == [second]


def test_values_that_are_not_finite_are_stored_as_valid_json(path: Path) -> None:
    MetricLog(path).append({"nan": math.nan, "up": math.inf, "down": -math.inf}, step=1)
    text = path.read_text()
    assert '"nan": "NaN"' in text
    assert '"up": "Infinity"' in text
    (record,) = read_metrics(path)
    assert math.isnan(record.metrics["nan"])
    assert (record.metrics["up"], record.metrics["down"]) == (math.inf, -math.inf)


def test_read_metrics_omits_an_incomplete_last_line(path: Path) -> None:
    log = MetricLog(path)
    log.append({"a": 1.0}, step=1)
    log.append({"a": 2.0}, step=2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    (first,) = read_metrics(path)
    assert first.step == 1
    path.write_bytes(whole)
    assert [record.step for record in read_metrics(path, first.end)] == [2]


def test_the_error_names_the_position_of_a_damaged_line(path: Path) -> None:
    MetricLog(path).append({"a": 1.0}, step=1)
    size = path.stat().st_size
    with path.open("a") as file:
        file.write('{"time_ms": 3}\n')
    with pytest.raises(ValueError, match=f"at byte {size} "):
        list(read_metrics(path))


def test_resuming_drops_values_logged_after_the_checkpoint(path: Path) -> None:
    log = MetricLog(path)
    log.append({"a": 1.0}, step=1)
    position = log.position()
    log.append({"a": 2.0}, step=2)
    with path.open("a") as file:
        file.write('{"torn')
    resumed = MetricLog(path, position)
    resumed.append({"a": 3.0}, step=2)
    assert [record.metrics["a"] for record in read_metrics(path)] == [1.0, 3.0]
    assert resumed.position() == path.stat().st_size


def test_dropped_values_are_kept_in_a_second_file_in_the_order_of_logging(path: Path) -> None:
    dropped = path.with_name("dropped")
    log = MetricLog(path, dropped=dropped)
    log.append({"a": 1.0}, step=1)
    position = log.position()
    for value in (2.0, 3.0):
        log.append({"a": value}, step=2)
        with path.open("a") as file:
            file.write('{"torn')
        log = MetricLog(path, position, dropped)
    assert [record.metrics["a"] for record in read_metrics(path)] == [1.0]
    assert [record.metrics["a"] for record in read_metrics(dropped)] == [2.0, 3.0]
    # A kill during the copy left half a line.
    dropped.write_bytes(dropped.read_bytes()[:-3])
    log.append({"a": 4.0}, step=2)
    MetricLog(path, position, dropped)
    assert [record.metrics["a"] for record in read_metrics(dropped)] == [2.0, 4.0]


def test_a_new_run_in_an_existing_folder_starts_an_empty_file(path: Path) -> None:
    MetricLog(path).append({"a": 1.0}, step=1)
    MetricLog(path)
    assert path.stat().st_size == 0


def test_a_file_shorter_than_the_checkpoint_is_refused_and_kept(path: Path) -> None:
    MetricLog(path).append({"a": 1.0}, step=1)
    size = path.stat().st_size
    with pytest.raises(ValueError, match=rf"has {size} bytes.*when it had {size + 1}: restore"):
        MetricLog(path, size + 1)
    assert path.stat().st_size == size


@pytest.mark.parametrize("name", ["train/l0[2]", "", "../l0", "/l0", "a//b", "x" * 251, "fisher>0"])
def test_append_refuses_names_that_mlflow_would_refuse(path: Path, name: str) -> None:
    log = MetricLog(path)
    with pytest.raises(ValueError, match="as in train/l0"):
        log.append({name: 1.0}, step=1)
    assert path.stat().st_size == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device without space")  # noqa: PTH110
def test_append_raises_on_a_full_disk() -> None:
    log = MetricLog.__new__(MetricLog)
    log._known_names = set()
    log._file = open("/dev/full", "ab")  # noqa: PTH123, SIM115
    with pytest.raises(OSError, match="No space left"):
        log.append({"a": 1.0}, step=1)
