"""Printing and logging that cannot fail, in processes with closed or full streams of their own."""

import contextlib
import logging
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from fsae.console import OutsideBars, lenient_file

# Prints more than a pipe holds, logs, and writes a file of its own.
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
def test_a_command_finishes_without_readable_streams(redirection: str, tmp_path: Path):
    result = tmp_path / "result"
    command = f'set -o pipefail; "$0" -c "$1" "$2" {redirection}'
    done = subprocess.run(["bash", "-c", command, sys.executable, SPEAKS, str(result)], capture_output=True, timeout=60)
    assert done.returncode == 0
    assert b"Error" not in done.stderr
    # The file received nothing that was meant for a closed stream.
    assert result.read_text() == "all of it"


def test_a_character_without_a_code_is_printed_as_its_number():
    code = "from fsae.console import console\nwith console():\n    print('gr\\u00f6\\u00dfe')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={"PYTHONIOENCODING": "ascii", "PATH": "/bin:/usr/bin"}
    )
    assert (done.returncode, done.stdout) == (0, b"gr\\xf6\\xdfe\n")


ON_A_TERMINAL = """
import logging, sys, time, warnings
from fsae import progress
from fsae.console import OutsideBars, console
from fsae.progress import Progress, working

progress.SECONDS_BETWEEN_LINES = 0.0
with console():
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(OutsideBars())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    with working("opening the model"):
        logging.info("it is large")
    bar = Progress("training", 10)
    bar.advance(4)
    logging.info("a latent starts over")
    bar.advance(4)
    print("a library's words", file=sys.stderr)
    bar.close()
"""


def test_a_terminal_shows_lines_above_the_bar_and_nothing_twice():
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], stdout=slave, stderr=slave)
    os.close(slave)
    written = b""
    # Reading a terminal fails once its only writer has ended.
    with contextlib.suppress(OSError):
        while piece := os.read(master, 4096):
            written += piece
    os.close(master)
    assert process.wait() == 0
    # A line shows the text after its last carriage return.
    shown = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in written.decode().split("\n")]
    assert shown[:3] == ["it is large", "a latent starts over", "a library's words"]
    assert shown[3].startswith("training: 8 of 10 tokens (80 %)")
    assert shown[4:] == [""]
    # Both bars were shown meanwhile.
    assert b"opening the model: 00:00" in written
    assert b"training:  80%" in written


def test_console_restores_the_streams_and_does_not_replace_a_capture():
    code = """
import io, sys
from fsae.console import console
before = sys.stdout, sys.stderr
with console():
    inner = sys.stdout
    with console():
        print("printed", sys.stdout is inner, inner is not before[0])
print((sys.stdout, sys.stderr) == before)
sys.stdout = io.StringIO()
with console():
    print("captured")
sys.stderr.write(sys.stdout.getvalue())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("printed True True\nTrue\n", "captured\n")


def test_a_file_on_a_full_disk_drops_lines_and_keeps_the_reason():
    words = lenient_file("/dev/full")
    assert words.failure is None
    words.write("a line\n")
    words.close()
    assert words.failure is not None
    assert words.failure.strerror == "No space left on device"


def test_the_filter_drops_records_that_a_bar_shows():
    shown = OutsideBars()
    record = logging.makeLogRecord({"msg": "training: 10 %"})
    assert shown.filter(record)
    record.in_the_bar = True
    assert not shown.filter(record)
