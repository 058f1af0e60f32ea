"""The templates of pages that open without a server, and the scripts that such a page permits."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

_FOLDER = Path(__file__).with_name("latent_view")


def _file(name: str) -> Markup:
    """Return a file of the templates' folder, to be part of a page as it is."""
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def script_of(parts: Sequence[str]) -> dict[str, Markup]:
    """Return a page's script and its digest, by which the page's policy permits it and no other one.

    Args:
        parts: the names of its files.
    """
    script = "\n".join(['"use strict";', *(_file(f"{name}.js") for name in parts)])
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"script": Markup(script), "script_digest": Markup(digest)}


TEMPLATES = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
TEMPLATES.globals["file"] = _file
# The order of the columns is the order in the table.
TEMPLATES.policies["json.dumps_kwargs"] = {"sort_keys": False}
