"""The page of circuits: everything in one file, and no markup from the data."""

import json
import re
from pathlib import Path
from typing import Any

from fsae.analysis.circuit_page import write_circuit_page


def graph(name: str, token: str) -> dict[str, Any]:
    return {"metadata": {"slug": name, "prompt_tokens": [token]}, "nodes": [], "links": []}


def test_the_page_holds_the_graphs_as_data(tmp_path: Path):
    hostile = "</script><script>alert(1)</script>"
    graphs = [graph("simple", hostile), graph("nounpp", "a")]
    page = write_circuit_page(tmp_path, graphs, "run <b>1</b>")
    assert page == tmp_path / "index.html"
    text = page.read_text()
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL)
    assert found
    assert json.loads(found[1]) == {"graphs": graphs}
    assert "<script>alert" not in text
    assert "run &lt;b&gt;1&lt;/b&gt;" in text
    assert "default-src 'none'" in text
