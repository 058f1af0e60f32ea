"""The page of circuits: the graph of each task over the tokens of a prompt, without a server or a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fsae.analysis.page_templates import TEMPLATES, script_of
from fsae.files import replacing

PAGE = "index.html"
_SCRIPTS = ("text", "appearance", "circuit")


def write_circuit_page(folder: Path, graphs: Sequence[Mapping[str, Any]], title: str) -> Path:
    """Write the page of some graphs.

    Args:
        folder: of the page; an earlier one is replaced.
        graphs: in circuit-tracer's format.
        title: the run's name.

    Returns:
        The page.

    Raises:
        OSError: the folder cannot be written.
    """
    page = TEMPLATES.get_template("circuit.html.jinja").render(
        title=title, content={"graphs": list(graphs)}, **script_of(_SCRIPTS)
    )
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / PAGE) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return folder / PAGE
