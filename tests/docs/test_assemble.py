"""The site's sources: where each file of the repository stands, and what its links become."""

import json
import re
from pathlib import Path

import pytest

from docs import reference
from docs.assemble import (
    evaluations_table,
    included,
    layers_table,
    left_out,
    notebook_text,
    page_links,
    page_paths,
    page_text,
)
from docs.reference import REPOSITORY, generated_pages
from tests.test_imports import LAYERS


def test_links_between_files_become_links_between_pages():
    assert page_links("[a](docs/sweeps.md#launchers)", "README.md") == "[a](sweeps.md#launchers)"
    assert page_links("[a](../docs/datasets.md)", "experiments/README.md") == "[a](../datasets.md)"
    assert page_links("[a](mfr/)", "experiments/README.md") == "[a](mfr/README.md)"
    assert page_links("[a](../README.md)", "docs/sweeps.md") == "[a](index.md)"
    assert page_links("[a](https://example.org/README.md)", "README.md") == "[a](https://example.org/README.md)"


def test_every_page_of_the_repository_is_in_the_site():
    paths = page_paths()
    assert paths["experiments/mfr/README.md"] == "studies/mfr/README.md"
    assert paths["docs/architecture.md"] == "architecture.md"
    assert len(set(paths.values())) == len(paths)


def test_a_page_shows_the_files_that_it_names():
    page = page_text("docs/adding.md")
    for path in (REPOSITORY / "tests" / "outside").rglob("*.yaml"):
        assert f"```yaml\n{path.read_text()}```" in page
    assert "```python\n" + (REPOSITORY / "tests/outside/package/src/fsae_outside/circle.py").read_text() + "```" in page
    assert left_out(page) == []


def test_an_inclusion_that_was_changed_by_a_formatter_is_reported():
    assert left_out(included('a\n--8 < --"tests/outside/package/pyproject.toml"\n')) == [
        '--8 < --"tests/outside/package/pyproject.toml"'
    ]


def test_every_module_that_a_page_names_exists():
    modules = [
        f"/{path.relative_to(REPOSITORY).as_posix()}"
        for folder in ("src", "tests", "benchmarks", "docs")
        for path in (REPOSITORY / folder).rglob("*.py")
    ]
    named = {
        (page.name, name)
        for page in [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
        for name in re.findall(r"`([\w/]+\.py)`", page.read_text())
    }
    assert len(named) > 20
    assert [each for each in sorted(named) if not any(module.endswith(f"/{each[1]}") for module in modules)] == []


def test_the_import_law_on_the_page_is_the_tests_own():
    rows = layers_table().splitlines()[2:]
    assert len(rows) == len(LAYERS)
    assert rows[3] == f"| 3 | {', '.join(f'`{name}`' for name in sorted(LAYERS[3]))} |"


def test_the_evaluations_of_layouts_on_the_page_are_those_that_their_needs_allow():
    rows = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in evaluations_table().splitlines()[2:]}
    found = {name: [each.strip() for each in row] for name, row in rows.items()}
    assert found["`vectors`"] == ["yes", "yes", "yes", "each"]
    assert found["`circuits`"] == ["yes", "", "", ""]
    assert found["`crosscoder`"] == ["", "", "yes", ""]
    assert found["`jacobian`"] == ["", "", "", "yes"]
    assert found["`agreement`"] == ["yes", "yes", "yes", ""]
    assert evaluations_table() in page_text("docs/layouts.md")


def test_a_notebook_becomes_its_cells_and_what_they_printed(tmp_path: Path):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [{"output_type": "stream", "text": ["1\n"]}]},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    assert notebook_text(tmp_path / "a.ipynb") == "# Title\nText.\n\n```python\nprint(1)\n```\n\n```text\n1\n```"


def test_every_page_is_in_the_navigation(monkeypatch: pytest.MonkeyPatch):
    # Paths alone matter here, and the help of every command takes long to print.
    monkeypatch.setattr(reference, "commands_page", str)
    text = (REPOSITORY / "mkdocs.yml").read_text()
    pages = {*page_paths().values(), *generated_pages()}
    assert [
        page for page in sorted(pages) if page.endswith(".md") and f"- {page}\n" not in text and page != "index.md"
    ] == []
