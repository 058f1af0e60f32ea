"""`fsae.collect`: folders and patterns of folders become a table of runs."""

from pathlib import Path

import pytest

import fsae
from tests.surface.vectors import SHORT, sparse_features


def test_folders_and_patterns_become_a_row_per_run(tmp_path: Path):
    for k in (2, 3):
        fsae.train(sparse_features(), "topk", d_sae=16, k=k, folder=tmp_path / "runs" / f"k-{k}", **SHORT)
    for named in ([tmp_path], [str(tmp_path / "runs" / "k-*")], [tmp_path / "runs" / "k-2", tmp_path / "**" / "k-3"]):
        table = fsae.collect(*named)
        assert list(table["arch.k"]) == [2, 3]
        assert table["eval/l0"].is_monotonic_increasing


def test_what_fits_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"k-\*: no folder fits this pattern"):
        fsae.collect(tmp_path / "k-*")
    with pytest.raises(ValueError, match="expected at least one folder"):
        fsae.collect()
    with pytest.raises(ValueError, match="no such folder"):
        fsae.collect(tmp_path / "none")
