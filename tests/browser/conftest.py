"""Headless Chromium: the appearance of pages, and their content after their scripts have run."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# The page may connect to this machine only.
ONLY_LOOPBACK = "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    f"--host-resolver-rules={ONLY_LOOPBACK}",
)  # fmt: skip


class Browser:
    """Chromium with a profile of its own in `folder`."""

    def __init__(self, program: str, folder: Path):
        self._program = program
        self._folder = folder

    def picture(self, url: str, *flags: str, width: int, height: int) -> np.ndarray:
        """Return a screenshot of the page, (height, width, 3), from 0 to 255."""
        file = self._folder / "picture.png"
        self._run(url, *flags, f"--window-size={width},{height}", f"--screenshot={file}")
        return np.asarray(Image.open(file).convert("RGB"))

    def source(self, url: str, *flags: str) -> str:
        """Return the page's source after its scripts have run."""
        return self._run(url, *flags, "--dump-dom")

    def _run(self, url: str, *flags: str) -> str:
        profile = self._folder / "profile"
        command = [self._program, *QUIET, f"--user-data-dir={profile}"]
        command += ["--virtual-time-budget=30000", *flags, url]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def find_program() -> str | None:
    """Return the path of Chromium."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def program() -> str:
    """The path of Chromium; without one the test is skipped, or fails if FSAE_REQUIRE_BROWSER is set."""
    program = find_program()
    if program is None:
        missing = "there is no Chromium; on Debian: apt-get install chromium"
        if os.environ.get("FSAE_REQUIRE_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    return program


@pytest.fixture
def browser(program: str, tmp_path: Path) -> Browser:
    """A browser that opens a page, takes a picture of it or reads its source, and closes."""
    (tmp_path / "browser").mkdir()
    return Browser(program, tmp_path / "browser")


@pytest.fixture(scope="session")
def share_of() -> Callable[[np.ndarray, str], float]:
    """Return the share of a picture that has a colour such as "#0072B2", or one close to it."""

    def share(picture: np.ndarray, colour: str) -> float:
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        return float((np.abs(picture.astype(int) - wanted).max(-1) < 12).mean())

    return share
