"""Run the tutorial notebook and keep its outputs in it: `python -m docs.tutorial`, which is `make tutorial`.

If no run of a language model has finished below outputs/runs, a small one is trained first.
"""

import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import fsae

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOK = REPOSITORY / "docs" / "tutorial.ipynb"
# Two or three minutes on two cores.
SMALL = ["name=tutorial", "arch=topk", "arch.d_sae=4608", "arch.k=32", "source.tokens=60_000"]
SMALL += ["source.shard_tokens=60_000", "trainer.samples=250_000", "trainer.dead_after=60_000", "suite=quick"]


def main() -> None:
    """Run every cell in the repository's folder; a cell that fails ends it with that cell's error."""
    if not has_run(REPOSITORY / "outputs" / "runs"):
        subprocess.run([sys.executable, "-m", "fsae.run", *SMALL], cwd=REPOSITORY, check=True)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(REPOSITORY)}}).execute()
    for cell in notebook.cells:
        # When each cell began and ended, and warnings, which name files of this machine.
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)


def has_run(runs: Path) -> bool:
    """Return whether a training run on a language model has finished."""
    try:
        table = fsae.collect(runs)
    except ValueError:
        return False
    rows = table.to_dict("records")
    # A run on other vectors has None there, or a table of such runs has no such column.
    return any(row["state"] == "finished" and row["task"] == "train" and row.get("model.name") for row in rows)


if __name__ == "__main__":
    main()
