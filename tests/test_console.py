"""Printing and logging that cannot fail, in processes of their own: what is closed or full is the process' own."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from fsae.console import BesideBars, console, forgiving_file

# Prints more than a pipe holds, logs, writes a file of its own, and at the end says how it left.
SPEAKS = """
import contextlib, logging, os, sys
from fsae.console import console, live_bar

@console()
def main():
    logging.basicConfig(stream=sys.stdout)
    with open(sys.argv[1], "w") as result:
        bar = live_bar(total=3)
        for _ in range(3):
            print("words " * 10_000)
            logging.warning("and these")
            with contextlib.suppress(OSError):
                os.write(2, b"what a library writes to its stream of errors")
            bar.update(1)
        bar.close()
        result.write("all of it")

main()
"""


@pytest.mark.parametrize(
    "redirection",
    ["> /dev/full", "> /dev/full 2> /dev/full", ">&-", "2>&- > /dev/null", "<&- >&- 2>&-", "| head -c 1 > /dev/null"],
)
def test_a_command_finishes_although_nobody_can_read_it(redirection: str, tmp_path: Path):
    result = tmp_path / "result"
    command = f'set -o pipefail; "$0" -c "$1" "$2" {redirection}'
    done = subprocess.run(["bash", "-c", command, sys.executable, SPEAKS, str(result)], capture_output=True, timeout=60)
    assert done.returncode == 0
    assert b"Error" not in done.stderr
    # Nothing that was meant for a closed stream has gone into it.
    assert result.read_text() == "all of it"


def test_a_character_that_the_console_cannot_show_is_shown_by_its_number():
    code = "from fsae.console import console\nwith console():\n    print('gr\\u00f6\\u00dfe')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={"PYTHONIOENCODING": "ascii", "PATH": "/bin:/usr/bin"}
    )
    assert (done.returncode, done.stdout) == (0, b"gr\\xf6\\xdfe\n")


def test_the_streams_are_given_back(capfd: pytest.CaptureFixture[str]):
    before = sys.stdout, sys.stderr
    with console():
        inner = sys.stdout
        with console():
            assert sys.stdout is inner
        print("said")
    assert (sys.stdout, sys.stderr) == before
    assert capfd.readouterr().out == "said\n"


def test_a_file_on_a_full_disk_drops_lines_and_knows_why():
    words = forgiving_file("/dev/full")
    assert words.failure is None
    words.write("a line\n")
    words.close()
    assert words.failure is not None
    assert words.failure.strerror == "No space left on device"


def test_what_a_bar_shows_is_kept_off_the_console():
    shown = BesideBars()
    record = logging.makeLogRecord({"msg": "training: 10 %"})
    assert shown.filter(record)
    record.in_the_bar = True
    assert not shown.filter(record)
