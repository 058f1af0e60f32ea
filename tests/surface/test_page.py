"""docs/python.md and docs/interventions.md: their code blocks run unchanged, one after the other."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.processes import finished

DOCS = Path(__file__).resolve().parents[2] / "docs"


def run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run all blocks of a page in a folder of their own, and return the names that they define."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    blocks = re.findall(r"^```(python|console)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert {kind for kind, _ in blocks} == {"python", "console"}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(page), "exec"), namespace)
            continue
        for line in text.splitlines():
            python, minus_m, module, *arguments = shlex.split(line)
            assert (python, minus_m, module) == ("python", "-m", "fsae.run")
            done = finished(*arguments, outputs=tmp_path / "outputs")
            assert done.returncode == 0, done.stdout
    return namespace


@pytest.mark.packaged
def test_every_code_block_of_the_page_on_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    namespace = run(DOCS / "python.md", tmp_path, monkeypatch)
    assert namespace["codes"].shape[0] == len(namespace["read"].tokens)


def test_every_code_block_of_the_page_on_interventions_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    namespace = run(DOCS / "interventions.md", tmp_path, monkeypatch)
    assert (namespace["edited"] != namespace["plain"]).any()
    assert len(namespace["texts"]) == 2
    assert namespace["best"] in namespace["steering"].steered
