"""Runs other libraries on files, in environments of their own (`make test-peers` makes them)."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "peers: runs another library in the environment that `make test-peers` makes")


@pytest.fixture(scope="session")
def sae_lens() -> Callable[..., None]:
    """Run one command of `sae_lens_side.py` with sae_lens' Python; FSAE_PEERS_PYTHON names another one."""
    return _runner("FSAE_PEERS_PYTHON", ".venv-peers", HERE / "sae_lens_side.py")


@pytest.fixture(scope="session")
def sae_bench() -> Callable[..., None]:
    """Run one command of `sae_bench_side.py` with SAEBench's Python; FSAE_SAE_BENCH_PYTHON names another one."""
    return _runner("FSAE_SAE_BENCH_PYTHON", ".venv-sae-bench", HERE / "sae_bench_side.py")


@pytest.fixture(scope="session")
def circuit_tracer() -> Callable[..., None]:
    """Run `circuit_tracer_side.py` with circuit-tracer's Python; FSAE_CIRCUIT_TRACER_PYTHON names another one."""
    return _runner("FSAE_CIRCUIT_TRACER_PYTHON", ".venv-circuit-tracer", HERE / "circuit_tracer_side.py")


@pytest.fixture(scope="session")
def releases() -> Callable[..., None]:
    """Run `release_side.py` for a library with its own Python; FSAE_SPARSIFY_PYTHON and so on name other ones."""

    def run(library: str, *arguments: str | Path) -> None:
        environment = f".venv-{library.replace('_', '-')}"
        _runner(f"FSAE_{library.upper()}_PYTHON", environment, HERE / "release_side.py")(library, *arguments)

    return run


def _runner(variable: str, environment: str, script: Path) -> Callable[..., None]:
    """Return a function that runs a script; FSAE_REQUIRE_PEERS makes the absence of its Python a failure."""
    python = Path(os.environ.get(variable, ROOT / environment / "bin" / "python"))
    if not python.exists():
        missing = f"{python} is not there; `make test-peers` makes the environment"
        if os.environ.get("FSAE_REQUIRE_PEERS"):
            pytest.fail(missing)
        pytest.skip(missing)

    def run(*arguments: str | Path) -> None:
        # It needs nothing from the hub.
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        command = [str(python), str(script), *map(str, arguments)]
        done = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    return run
