"""docs/python.md: its code blocks run unchanged, one after the other."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.processes import finished

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


@pytest.mark.packaged
def test_every_code_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    blocks = re.findall(r"^```(python|console)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert {kind for kind, _ in blocks} == {"python", "console"}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), namespace)
            continue
        for line in text.splitlines():
            python, minus_m, module, *arguments = shlex.split(line)
            assert (python, minus_m, module) == ("python", "-m", "fsae.run")
            done = finished(*arguments, outputs=tmp_path / "outputs")
            assert done.returncode == 0, done.stdout
    assert namespace["codes"].shape[0] == len(namespace["read"].tokens)
