import logging
from pathlib import Path

import pytest

from fsae.outputs.run_log import run_log


def test_a_full_disk_is_reported_and_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "run.log").symlink_to("/dev/full")
    with run_log(tmp_path):
        logging.getLogger("fsae").warning("a line that has no room")
    assert caplog.messages[-1] == f"{tmp_path / 'run.log'} lacks lines: No space left on device"


def test_a_runs_log_ends_with_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with run_log(tmp_path):
        logging.getLogger("fsae").warning("within")
    logging.getLogger("fsae").warning("after")
    assert [line.partition(" ")[2] for line in (tmp_path / "run.log").read_text().splitlines()] == ["WARNING within"]
