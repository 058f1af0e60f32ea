"""Trainings with a term that compares each sample with the one before it."""

from pathlib import Path

import pytest
import torch

from fsae.losses.temporal import TemporalContrast
from fsae.training.interruption import Interrupted
from tests.streams import activation_source
from tests.training.runs import LoneRun, adam, differences, logged, member, saved, terms, training_run


def run(folder: Path, stop_at: int | None = None, weight: float = 0.5) -> LoneRun:
    loss = {**terms("batch_topk"), "contrast": TemporalContrast(weight=weight, width=12)}
    learner = member("batch_topk", adam(), loss)
    return training_run("batch_topk", folder, stop_at=stop_at, source=activation_source(partners=True), trained=learner)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder).train()
    return folder


def test_stopped_and_resumed_training_is_the_uninterrupted_one(whole: Path, tmp_path: Path):
    for step in (3, 9):
        with pytest.raises(Interrupted):
            run(tmp_path, stop_at=step).train()
    run(tmp_path).train()
    assert not differences(saved(tmp_path), saved(whole))


def test_contrast_trains_codes_and_not_the_threshold_of_partners(whole: Path, tmp_path: Path):
    run(tmp_path, weight=0.0).train()
    with_term, without = logged(whole), logged(tmp_path)
    assert with_term[-1][1]["train/contrast"] < 0.95 * without[-1][1]["train/contrast"]
    # The threshold follows the samples alone: one step without a learning rate leaves it as without the term.
    found = []
    for weight in (0.5, 0.0):
        training = run(tmp_path / f"step-{weight}", weight=weight)
        batch = next(training.source.batches(16))
        partners = batch.partners
        assert partners is not None
        training.take(batch.inputs, None, partners)
        found.append(training.members[0].autoencoder.state_dict()["threshold"])
    assert torch.equal(*found)
