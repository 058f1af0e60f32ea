"""The environments of the libraries, one for each: their requirements are incompatible."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The folders that the Makefile makes.
FOLDERS = {
    "sae_lens": ".venv-peers",
    "dictionary_learning": ".venv-dictionary-learning",
    "sparsify": ".venv-sparsify",
    "sae_dashboard": ".venv-sae-dashboard",
}


class CannotInstallError(Exception):
    """A peer's environment that could not be made; the message has the reason."""


def python_of(library: str) -> Path:
    """Return a library's Python; a peer's environment is made if it is missing or its requirements have changed.

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
        raise CannotInstallError((errors or ["make failed without an error message"])[0].strip())
    return ROOT / folder / "bin" / "python"
