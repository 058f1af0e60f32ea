"""The site's sources: where each file of the repository stands, and what its links become."""

import json
from pathlib import Path

from docs.assemble import layers_table, notebook_text, page_links, page_paths
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


def test_the_import_law_on_the_page_is_the_tests_own():
    rows = layers_table().splitlines()[2:]
    assert len(rows) == len(LAYERS)
    assert rows[3] == f"| 3 | {', '.join(f'`{name}`' for name in sorted(LAYERS[3]))} |"


def test_a_notebook_becomes_its_cells_and_what_they_printed(tmp_path: Path):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [{"output_type": "stream", "text": ["1\n"]}]},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    assert notebook_text(tmp_path / "a.ipynb") == "# Title\nText.\n\n```python\nprint(1)\n```\n\n```text\n1\n```"


def test_every_page_is_in_the_navigation():
    text = (REPOSITORY / "mkdocs.yml").read_text()
    pages = {*page_paths().values(), *generated_pages()}
    assert [
        page for page in sorted(pages) if page.endswith(".md") and f"- {page}\n" not in text and page != "index.md"
    ] == []
