"""The source as it was at an earlier commit, in a folder of its own, and processes that run it."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The working tree that this file is in.
ROOT = Path(__file__).parents[1]


@contextmanager
def tree_of(ref: str) -> Iterator[Path]:
    """Check out a commit in a temporary folder, which is removed in the end.

    Raises:
        SystemExit: git knows no such commit.
    """
    with tempfile.TemporaryDirectory(prefix="fsae-tree-") as folder:
        tree = Path(folder).resolve() / "fsae"
        added = _git("worktree", "add", "--quiet", "--detach", str(tree), ref)
        if added.returncode != 0:
            raise SystemExit(f"--against {ref}: {added.stderr.strip()}")
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def environment_of(tree: Path) -> dict[str, str]:
    """Return the environment in which a tree's own source is imported, on one thread.

    PYTHONPATH comes before the folder that an editable install names, and the YAML files are found next to the source.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "FSAE_CACHE" or not name.startswith(("MLFLOW", "HYDRA", "FSAE"))
    }
    one_thread = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return kept | one_thread | {"PYTHONPATH": str(tree / "src"), "HF_HUB_OFFLINE": "1"}


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
