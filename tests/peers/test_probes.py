"""fsae's rankings and probes equal those of sae-probes and SAEBench on the same codes, if the definitions agree."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fsae.evaluation.downstream.k_sparse import KSparse, Protocol
from fsae.evaluation.downstream.latent_scores import largest, normalised_mean_differences
from fsae.evaluation.downstream.probe import Fit, auc, best_probe
from tests.peers.sae_bench_side import KS, SEED, SIZES

pytestmark = pytest.mark.peers

FITS = {"l1": Fit.l1_saga, "l2": Fit.l2_lbfgs}
CASES = [(k, rows, kind) for k in KS for rows in SIZES for kind in FITS if (rows, kind) != (10, "l1")]


def some_codes(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sparse codes of different sizes; some latents say something about the label."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(rows) % 2)
    codes = np.maximum(generator.normal(size=(rows, 80)) - 0.5, 0)
    codes[:, :12] += (generator.random((rows, 12)) < 0.3) * labels[:, None] * generator.random((rows, 12))
    return codes * np.logspace(-1, 1, 80), labels


@pytest.fixture(scope="module")
def compared(sae_bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("probes")
    (train, train_labels), (test, test_labels) = some_codes(200, 0), some_codes(150, 1)
    given = {"train": train, "train_labels": train_labels, "test": test, "test_labels": test_labels}
    save_file({name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in given.items()}, folder / "in.st")
    sae_bench("probes", folder / "in.st", folder / "out.json")
    return given, json.loads((folder / "out.json").read_text())


def test_latents_come_in_the_order_of_sae_probes(compared):
    given, found = compared
    scores = normalised_mean_differences(given["train"], given["train_labels"])
    assert largest(scores, 20).tolist() == found["order"][:20]


def test_a_latents_size_is_that_of_sae_probes(compared):
    given, found = compared
    train, labels = given["train"], given["train_labels"]
    np.testing.assert_allclose(normalised_mean_differences(train, labels), found["normalised"], atol=1e-6)


@pytest.mark.parametrize(("k", "rows", "kind"), CASES)
def test_a_probe_is_that_of_sae_probes(compared, k: int, rows: int, kind: str):
    given, found = compared
    chosen, theirs = found["order"][:k], found["probes"][f"{k} {rows} {kind}"]
    mine = best_probe(given["train"][:rows, chosen], given["train_labels"][:rows], FITS[kind], SEED)
    assert mine.strength == pytest.approx(theirs["strength"], rel=1e-9)
    assert mine.validation_auc == pytest.approx(theirs["val_auc"], abs=1e-6)
    np.testing.assert_allclose(mine.weights, theirs["weights"], atol=1e-6)
    assert auc(mine.scores(given["test"][:, chosen]), given["test_labels"]) == pytest.approx(
        theirs["test_auc"], abs=1e-6
    )


@pytest.mark.parametrize("k", KS)
def test_the_default_probe_ranks_as_well_as_that_of_sae_probes(compared, k: int):
    given, found = compared
    chosen = found["order"][:k]
    mine = best_probe(given["train"][:, chosen], given["train_labels"], Fit.l1, SEED)
    area = auc(mine.scores(given["test"][:, chosen]), given["test_labels"])
    assert area == pytest.approx(found["probes"][f"{k} 200 l1"]["test_auc"], abs=0.01)


@pytest.mark.parametrize("k", KS)
def test_choice_and_accuracy_are_those_of_saebench(compared, k: int):
    given, found = compared
    probing = KSparse(protocol=Protocol.saebench, counts=[k])
    ((chosen, _),) = probing.probes(given["train"], given["train_labels"])
    assert sorted(chosen.tolist()) == found["saebench"][str(k)]["chosen"]
    columns = sorted(chosen.tolist())
    probe = probing.fitted(given["train"][:, columns], given["train_labels"])
    assert probing.score(probe, given["test"][:, columns], given["test_labels"]) == pytest.approx(
        found["saebench"][str(k)]["accuracy"], abs=1e-6
    )
