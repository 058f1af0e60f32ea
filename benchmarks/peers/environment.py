"""The environments that the libraries live in, one each: their requirements do not go together."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What the Makefile makes for each peer.
FOLDERS = {
    "sae_lens": ".venv-peers",
    "dictionary_learning": ".venv-dictionary-learning",
    "sparsify": ".venv-sparsify",
}


class CannotInstallError(Exception):
    """A peer's environment could not be made; the message says why."""


def python_of(library: str) -> Path:
    """A library's Python; a peer's environment is made when it is missing or its requirements have changed.

    Raises:
        CannotInstallError: it could not be.
    """
    if library == "fsae":
        return Path(sys.executable)
    folder = FOLDERS[library]
    making = ["make", "--silent", f"PYTHON={sys.executable}", f"{folder}/.installed"]
    made = subprocess.run(making, cwd=ROOT, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        errors = [line for line in made.stderr.splitlines() if "error" in line.lower()]
        raise CannotInstallError((errors or ["make failed without a word"])[0].strip())
    return ROOT / folder / "bin" / "python"
