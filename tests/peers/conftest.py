"""Runs sae_lens on files, in an environment of its own (`make test-peers` makes it)."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("sae_lens_side.py")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "peers: runs sae_lens in the environment that `make test-peers` makes")


@pytest.fixture(scope="session")
def sae_lens() -> Callable[..., None]:
    """Run one command of `sae_lens_side.py` with sae_lens' Python.

    FSAE_PEERS_PYTHON names another Python than .venv-peers' own; FSAE_REQUIRE_PEERS makes its absence a failure.
    """
    python = Path(os.environ.get("FSAE_PEERS_PYTHON", ROOT / ".venv-peers" / "bin" / "python"))
    if not python.exists():
        missing = f"{python} is not there; `make test-peers` makes the environment"
        if os.environ.get("FSAE_REQUIRE_PEERS"):
            pytest.fail(missing)
        pytest.skip(missing)

    def run(*arguments: str | Path) -> None:
        # It needs nothing from the hub.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        command = [str(python), str(SCRIPT), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    return run
