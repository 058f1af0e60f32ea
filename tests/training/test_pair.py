"""Pairs of autoencoders, one of each end of a stream: resumed bit for bit; without the term, two single trainings."""

from pathlib import Path

import pytest
import torch

from fsae.autoencoders.layout import End, Scaling
from fsae.couplings.jacobian import JacobianCoupling, JacobianSparsity
from fsae.language_models.mlp import MLP, Affine
from fsae.outputs.run_folder import RunFolder
from fsae.sources.layout import LayoutSettings
from fsae.tracking.tracker import Tracker
from fsae.training.checkpoints import Checkpoints
from fsae.training.interruption import Interrupted, Interruption
from fsae.training.resample import Reinitialisation
from tests.architectures import samples
from tests.sources.test_layout import BETWEEN
from tests.streams import D_IN, activation_source
from tests.training.runs import SCALE, LoneRun, adam, differences, logged, member, saved, training_run

READ_BY = LayoutSettings(target=BETWEEN.target[0].name, pair=True).read_by


def coupling(weight: float = 0.5) -> JacobianCoupling:
    into, out = (Affine(samples(*shape, seed=7).float(), torch.zeros(shape[1])) for shape in ((D_IN, 9), (9, D_IN)))
    mlp = MLP(into=into, out=out, activation=torch.nn.functional.silu)
    return JacobianCoupling(JacobianSparsity(weight=weight, warm_up=0.2, samples=5), mlp, SCALE, SCALE)


def pair(folder: Path, term: JacobianCoupling | None, stop_at: int | None = None) -> LoneRun:
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(RunFolder(folder).checkpoints, {}, {})
    state = checkpoints.load()
    run = LoneRun(
        [member("topk", adam(), seed=1), member("topk", adam(), seed=2)],
        term,
        Reinitialisation(),
        activation_source(read=BETWEEN),
        Scaling.of(SCALE),
        adam(),
        Tracker(folder, None, state["metrics_position"] if state else 0),
        checkpoints,
        READ_BY,
    )
    run.interruption, run.stop_at = Interruption(), stop_at
    if state is not None:
        run.load(state)
    return run


def test_stopped_and_resumed_pair_is_the_uninterrupted_one(tmp_path: Path):
    pair(tmp_path / "whole", coupling()).train()
    folder = tmp_path / "stopped"
    for step in (3, 7, 22):
        with pytest.raises(Interrupted):
            pair(folder, coupling(), stop_at=step).train()
    pair(folder, coupling()).train()
    assert not differences(saved(folder), saved(tmp_path / "whole"))
    assert logged(folder) == logged(tmp_path / "whole")


def test_pair_without_a_term_is_two_single_trainings(tmp_path: Path):
    pair(tmp_path / "pair", None).train()
    for number, end in enumerate(End):
        source = activation_source(read=BETWEEN).at(end)
        alone = tmp_path / end.name
        training_run("topk", alone, source=source, trained=member("topk", adam(), seed=1 + number)).train()
        found, wanted = saved(tmp_path / "pair")["members"][number], saved(alone)["members"][0]
        assert not differences(found, wanted)


def test_the_term_makes_the_jacobian_smaller(tmp_path: Path):
    values = {}
    for weight in (1e-9, 50.0):
        pair(tmp_path / str(weight), coupling(weight)).train()
        values[weight] = logged(tmp_path / str(weight))[-1][1]["train/jacobian"]
    assert values[50.0] < 0.9 * values[1e-9]
