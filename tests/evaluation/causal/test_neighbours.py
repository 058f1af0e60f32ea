"""The jobs of a sweep that differ in the site alone."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from fsae.evaluation.causal.neighbours import read_neighbour, same_but_for_site
from fsae.export.provenance import Provenance
from fsae.export.saelens import save_saelens
from fsae.outputs.status import RunState, mark
from fsae.outputs.sweep_folder import Sweep
from tests.evaluation.causal.toy import LATE, axes

JOBS = [
    ["arch=topk", "site.layer=1", "seed=0"],
    ["arch=topk", "site.layer=2", "seed=0"],
    ["arch=topk", "site=mlp_out", "seed=0"],
    ["arch=topk", "site.layer=1", "seed=1"],
]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    Sweep(
        folder=tmp_path, tag="a", started=datetime.now(UTC).isoformat(), command=[], working_directory="", outputs="",
        config_dirs=[], hydra_overrides=[], constant=[], varied=["site.layer", "seed"], jobs=JOBS,
    ).write()  # fmt: skip
    for number in range(len(JOBS)):
        (tmp_path / str(number)).mkdir()
        mark(tmp_path / str(number), RunState.finished)
    return tmp_path


def test_jobs_that_differ_in_the_site_alone_belong_together(sweep: Path):
    assert same_but_for_site(sweep / "0") == [sweep / "1", sweep / "2"]
    assert same_but_for_site(sweep / "2") == [sweep / "0", sweep / "1"]
    assert same_but_for_site(sweep / "3") == []


def test_a_run_of_no_sweep_is_alone(tmp_path: Path):
    assert same_but_for_site(tmp_path) == []


def test_a_circuit_is_not_over_some_of_the_sites(sweep: Path, caplog: pytest.LogCaptureFixture):
    mark(sweep / "1", RunState.failed)
    with caplog.at_level(logging.WARNING):
        assert same_but_for_site(sweep / "0") == []
    assert "job 1, which differs from it in the site alone, has not finished" in caplog.text


def test_a_neighbour_is_read_from_a_run_or_from_an_export(tmp_path: Path):
    autoencoder = axes().float()
    for folder in (tmp_path / "run" / "sae", tmp_path / "export"):
        save_saelens(autoencoder, folder, Provenance(hook_name=LATE.hook_name))
    for folder in (tmp_path / "run", tmp_path / "export"):
        found = read_neighbour(folder)
        assert found.site == LATE
        (own,) = found.autoencoders
        torch.testing.assert_close(own.W_dec, autoencoder.W_dec)


def test_a_dictionary_without_a_site_is_refused(tmp_path: Path):
    save_saelens(axes().float(), tmp_path / "export", Provenance())
    assert json.loads((tmp_path / "export" / "cfg.json").read_text())["metadata"]["hook_name"] is None
    with pytest.raises(ValueError, match=r"names no site \(hook_name\), so it cannot join a circuit"):
        read_neighbour(tmp_path / "export")
