"""Assemble the sources of the documentation site in build/docs: `python -m docs.assemble`.

The site has the pages of docs/, the repository's own files (README, CHANGELOG, ...), the studies of experiments/, and a
reference that is made from the code. Links between files of the repository become links between pages.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from docs.reference import REPOSITORY, generated_pages, undocumented
from fsae.evaluation.choices import CHOICES
from fsae.evaluation.evaluation import Evaluation
from fsae.evaluation.suite import MEMBERS, PAIR
from fsae.language_models.sites import SiteName
from fsae.outputs.latent_store import HIT_COLUMNS, LATENT_COLUMNS, Column
from fsae.sources.layout import LayoutSettings

ASSEMBLED = REPOSITORY / "build" / "docs"

# Where files outside docs/ stand in the site.
_FILES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "LICENSE.txt",
    "CITATION.cff": "CITATION.cff",
}

# A layout of each kind that evaluations distinguish.
_LAYOUTS = {
    "autoencoder": LayoutSettings(),
    "transcoders, CLT": LayoutSettings(target=SiteName.mlp_out),
    "crosscoders": LayoutSettings(layers=[0, 1]),
    "Jacobian pair": LayoutSettings(target=SiteName.mlp_out, pair=True),
}

# A comment in the language of the code block, so that no formatter takes the line for code.
_INCLUDED = re.compile(r'^# --8<-- "(.*)"$', re.MULTILINE)
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)\s]+)(\))")


def main() -> int:
    """Write all pages.

    Return 1 if a page links to a missing file or still names a file to include, or if something has no description;
    else 0.
    """
    shutil.rmtree(ASSEMBLED, ignore_errors=True)
    pages = generated_pages()
    for source, page in sorted(page_paths().items()):
        if page.endswith(".md"):
            pages[page] = page_text(source)
        else:
            _place(page).write_bytes((REPOSITORY / source).read_bytes())
    for page, text in pages.items():
        _place(page).write_text(text)
    complaints = [
        *undocumented(),
        *(f"{page}: there is no {link}" for page in pages for link in missing_links(page)),
        *(f"{page}: not included: {line}" for page, text in pages.items() for line in left_out(text)),
    ]
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


def missing_links(page: str) -> list[str]:
    """Return the relative links of an assembled page that lead to no file. The builder checks links to pages alone."""
    text = re.sub(r"^ *```.*?^ *```", "", (ASSEMBLED / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link[2].partition("#")[0] for link in _LINK.finditer(text)]
    return [link for link in links if not (ASSEMBLED / page).parent.joinpath(link).exists()]


def _place(page: str) -> Path:
    target = ASSEMBLED / page
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def page_paths() -> dict[str, str]:
    """Return the path in the site of every file that the site takes from the repository."""
    found = dict(_FILES)
    for folder, prefix in (("docs", ""), ("experiments", "studies")):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".md", ".png", ".ipynb"):
                page = Path(prefix, path.relative_to(REPOSITORY / folder))
                page = page.with_suffix(".md") if page.suffix == ".ipynb" else page
                found[str(path.relative_to(REPOSITORY))] = str(page)
    return found


def page_text(source: str) -> str:
    """Return the Markdown of a page: its file with included files, links between pages and the import law in place."""
    path = REPOSITORY / source
    markdown = notebook_text(path) if path.suffix == ".ipynb" else path.read_text()
    linked = page_links(markdown, source)
    for mark, table in _TABLES.items():
        if mark in linked:
            linked = linked.replace(mark, table())
    return included(linked)


def included(markdown: str) -> str:
    """Replace each line `# --8<-- "path"` by that file of the repository."""
    return _INCLUDED.sub(lambda line: (REPOSITORY / line[1]).read_text().rstrip(), markdown)


def left_out(markdown: str) -> list[str]:
    """Return the lines of an assembled page that look like an inclusion, such as one that a formatter changed."""
    return [line for line in markdown.splitlines() if "--8" in line]


def page_links(markdown: str, source: str) -> str:
    """Rewrite links between files of the repository as links between pages of the site."""
    pages = page_paths()

    def rewritten(link: re.Match[str]) -> str:
        target, mark, anchor = link[2].partition("#")
        path = os.path.normpath(Path(source).parent / target)
        page = pages.get(path) or pages.get(f"{path}/README.md")
        if page is None:
            # A generated page, or a broken link, which the builder reports.
            return link[0]
        return f"{link[1]}{os.path.relpath(page, Path(pages[source]).parent)}{mark}{anchor}{link[3]}"

    return _LINK.sub(rewritten, markdown)


def columns_table(columns: Mapping[str, Column]) -> str:
    """Return the columns of a table of the latent store, with their types and meanings."""
    rows = [f"| `{name}` | {column.type} | {column.meaning} |" for name, column in columns.items()]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])


def layers_table() -> str:
    """Return the import law as a table."""
    from tests.test_imports import LAYERS

    rows = "".join(f"| {i} | {', '.join(f'`{name}`' for name in sorted(layer))} |\n" for i, layer in enumerate(LAYERS))
    return f"| layer | packages and modules |\n|---|---|\n{rows}"


def homes_table() -> str:
    """Return which modules may import each foreign package as a table."""
    from tests.test_imports import HOMES

    rows = "".join(
        f"| {package} | {', '.join(f'`{home.rstrip(chr(46))}`' for home in sorted(homes))} |\n"
        for package, homes in HOMES.items()
        if homes
    )
    return f"| package | imported in |\n|---|---|\n{rows}"


def evaluations_table() -> str:
    """Return which evaluations measure the dictionaries of each layout as a table."""
    ends = frozenset[str]().union(*(layout.provides for layout in _LAYOUTS.values()))

    def said(evaluation: type[Evaluation], layout: LayoutSettings) -> str:
        needed = evaluation.needs & ends
        if not needed <= layout.provides or (layout.pair and MEMBERS in evaluation.needs):
            return ""
        return "each" if layout.pair and PAIR not in needed else "yes"

    rows = [
        f"| `{name}` | {' | '.join(said(evaluation, layout) for layout in _LAYOUTS.values())} |"
        for name, evaluation in CHOICES.items()
    ]
    return "\n".join([f"| `eval=` | {' | '.join(_LAYOUTS)} |", "|---" * (1 + len(_LAYOUTS)) + "|", *rows])


def notebook_text(path: Path) -> str:
    """Return a notebook's cells and printed outputs as Markdown."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            text = "".join(output.get("text", ()) or output.get("data", {}).get("text/plain", ()))
            if text:
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


# What stands in a page in place of a table that is made from the code.
_TABLES = {
    "<!-- layers -->": layers_table,
    "<!-- homes -->": homes_table,
    "<!-- latent columns -->": partial(columns_table, LATENT_COLUMNS),
    "<!-- hit columns -->": partial(columns_table, HIT_COLUMNS),
    "<!-- evaluations of layouts -->": evaluations_table,
}

if __name__ == "__main__":
    sys.exit(main())
