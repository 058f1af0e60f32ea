import gc
import math
import weakref
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.layout import Layout, Scaling
from fsae.autoencoders.settings import DecoderNorm
from fsae.losses.decorrelation import Decorrelation
from fsae.losses.fisher import Fisher, RandomSign
from fsae.losses.matryoshka import SampledMatryoshka
from fsae.losses.reconstruction import SquaredError
from fsae.losses.term import LossTerm
from fsae.losses.weights import Orthogonality
from fsae.outputs.metric_log import read_metrics
from fsae.sources.source import Batch, Partners, Source
from fsae.training.interruption import Interrupted, Interruption
from fsae.training.loop import train
from tests.architectures import ARCHITECTURES, each_architecture
from tests.streams import PASSES, activation_source
from tests.training.runs import (
    BATCH,
    D_SAE,
    EACH_STEP,
    NEVER,
    SCALE,
    STEPS,
    LoneRun,
    adam,
    differences,
    logged,
    member,
    saved,
    train_pack,
    training_run,
)

# Once round the stream is four batches, and values are logged every five steps and at the end.
STOPS = {
    "within an epoch and an interval": 3,
    "between two epochs": 4,
    "after a logged step": 5,
    "after the first batch of an epoch": 9,
    "within a later epoch": 22,
    "before the last step": STEPS - 1,
}


@each_architecture
def test_a_stopped_and_resumed_training_is_the_uninterrupted_one_bit_for_bit(arch: str, tmp_path: Path):
    # Unit columns are soon as long as all others, so that no latent stays dead.
    free: dict[str, Any] = {"decoder_norm": DecoderNorm.free} if "encoder_norm" in ARCHITECTURES[arch].fixed else {}

    def run(folder: Path, stop_at: int | None = None) -> LoneRun:
        return training_run(arch, folder, stop_at=stop_at, trained=member(arch, adam(), **free))

    run(tmp_path / "whole").train()
    reference = saved(tmp_path / "whole")
    # It would show nothing if nothing had happened.
    assert reference["members"][0]["resampled"] > 0
    position = reference["source"]
    assert (position["epoch"], position["batch"], position["passes"]) == (6, 3, PASSES.numerics)
    for where, step in STOPS.items():
        folder = tmp_path / f"stopped at {step}"
        with pytest.raises(Interrupted, match="SIGTERM"):
            run(folder, step).train()
        assert saved(folder)["step"] == step
        run(folder).train()
        assert not differences(saved(folder), reference), where
        assert logged(folder) == logged(tmp_path / "whole"), where


@each_architecture
def test_the_state_survives_a_stop_at_every_single_step(arch: str, tmp_path: Path):
    training_run(arch, tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    for step in range(1, STEPS):
        with pytest.raises(Interrupted):
            training_run(arch, folder, stop_at=step).train()
    training_run(arch, folder).train()
    assert not differences(saved(folder), saved(tmp_path / "whole"))
    assert logged(folder) == logged(tmp_path / "whole")


def test_values_after_the_checkpoint_are_logged_once_after_a_kill(tmp_path: Path):
    training_run("topk", tmp_path / "whole").train()
    folder = tmp_path / "killed"
    # Eleven steps and their two logged lines are lost with the process.
    with pytest.raises(Interrupted):
        training_run("topk", folder, stop_at=3).train()
    killed = training_run("topk", folder, stop_at=14)

    class PowerCut(BaseException):
        pass

    def power_cut(state: object) -> None:
        raise PowerCut

    killed.checkpoints.save = power_cut
    with pytest.raises(PowerCut):
        killed.train()
    assert [step for step, _ in logged(folder)] == [5 * BATCH, 10 * BATCH]
    training_run("topk", folder).train()
    assert logged(folder) == logged(tmp_path / "whole")
    assert not differences(saved(folder), saved(tmp_path / "whole"))


def test_a_finished_training_is_not_trained_again(tmp_path: Path):
    training_run("standard", tmp_path).train()
    before = saved(tmp_path)
    again = training_run("standard", tmp_path)
    again.train()
    assert again.step == STEPS
    assert not differences(before, saved(tmp_path))


def test_checkpoints_are_as_many_as_asked_for(tmp_path: Path):
    for seconds, wanted in ((EACH_STEP, STEPS), (NEVER, 1)):
        run = training_run("standard", tmp_path / str(seconds), adam(checkpoint_seconds=seconds))
        steps: list[int] = []
        save = run.checkpoints.save
        run.checkpoints.save = lambda state, steps=steps, save=save: (steps.append(state["step"]), save(state))[1]
        run.train()
        assert len(steps) == wanted
        assert steps[-1] == STEPS


def test_logged_values_are_means_over_all_steps_of_their_interval(tmp_path: Path):
    for every in (1, 5):
        training_run("standard", tmp_path / str(every), adam(log_every=every, resample_every=None)).train()
    single, means = dict(logged(tmp_path / "1")), dict(logged(tmp_path / "5"))
    assert list(means) == [step * BATCH for step in (5, 10, 15, 20, 25, 27)]
    begin = 0
    for tokens, mean in means.items():
        end = tokens // BATCH
        steps = [single[step * BATCH] for step in range(begin + 1, end + 1)]
        for name in ("loss", "l0", "l1", "mse", "fvu", "l2_ratio", "reconstruction"):
            values = [values[f"train/{name}"] for values in steps]
            assert mean[f"train/{name}"] == pytest.approx(sum(values) / len(values), rel=1e-5), name
        # These are no means: what holds at the interval's end.
        for name in ("lr", "dead_share"):
            assert mean[f"train/{name}"] == steps[-1][f"train/{name}"], name
        begin = end


PENALTIES = [Fisher(weight=0.0), RandomSign(weight=0.0), Decorrelation(weight=0.0), Orthogonality(weight=0.0)]


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda each: type(each).__name__)
def test_a_penalty_of_weight_0_is_measured_at_every_logged_step(tmp_path: Path, penalty: LossTerm):
    # Levels are drawn by the generator of training, from which resampling draws, too.
    loss = {"reconstruction": SampledMatryoshka(levels=3), "penalty": penalty}
    settings = adam()
    training_run("standard", tmp_path / "measured", settings, trained=member("standard", settings, loss)).train()
    loss.pop("penalty")
    training_run("standard", tmp_path / "without", settings, trained=member("standard", settings, loss)).train()
    for _, values in logged(tmp_path / "measured"):
        assert values["train/penalty"] != 0
        assert values["train/penalty_weighted"] == 0
    # Measuring does not train.
    weights = [saved(tmp_path / name)["members"][0]["autoencoder"] for name in ("measured", "without")]
    assert not differences(*weights)


def test_a_fisher_penalty_of_weight_0_has_its_ratio(tmp_path: Path):
    loss = {"reconstruction": SquaredError(), "fisher": Fisher(weight=0.0)}
    training_run("standard", tmp_path / "measured", trained=member("standard", adam(), loss)).train()
    for _, values in logged(tmp_path / "measured"):
        assert values["train/fisher"] > 0
        assert values["train/fisher_ratio"] > 0


MEMBERS = ("standard", "gated", "jumprelu", "topk", "batch_topk", "abs_topk")


def pack_of_all(folder: Path, source: Source, **lengths: int) -> list[LoneRun]:
    """A run of every architecture, each with a learning rate and a scale of its own, on one source."""
    runs = []
    for i, arch in enumerate(MEMBERS):
        settings = adam(lr=0.005 * (i + 1), samples=BATCH * lengths.get(arch, STEPS))
        run = training_run(arch, folder / arch, settings, source=source)
        run.scaling = Scaling.of(SCALE if i % 2 else 1.0)
        runs.append(run)
    return runs


def assert_each_as_alone(folder: Path, alone: Path, **lengths: int) -> None:
    for run in pack_of_all(alone, activation_source(), **lengths):
        run.source = activation_source()
        run.train()
    for arch in MEMBERS:
        assert saved(folder / arch)["step"] == lengths.get(arch, STEPS)
        assert not differences(saved(folder / arch), saved(alone / arch)), arch
        assert logged(folder / arch) == logged(alone / arch), arch


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """For a pack, and for the same runs each alone."""
    pack, alone = tmp_path / "pack", tmp_path / "alone"
    pack.mkdir()
    alone.mkdir()
    return pack, alone


def test_runs_of_a_pack_equal_single_runs_bit_for_bit_and_batches_are_drawn_once(folders: tuple[Path, Path]):
    pack, alone = folders
    source = activation_source()
    drawn = 0
    batches = source.batches

    def counted(batch_size: int) -> Iterator[Batch]:
        nonlocal drawn
        for batch in batches(batch_size):
            drawn += 1
            yield batch

    source.batches = counted
    assert [error for _, error in train_pack(pack_of_all(pack, source), source)] == [None] * 6
    assert drawn == STEPS
    assert_each_as_alone(pack, alone)


def test_runs_of_different_lengths_end_in_their_own_time(folders: tuple[Path, Path]):
    pack, alone = folders
    lengths = {"standard": 9, "topk": 20, "abs_topk": 1}
    source = activation_source()
    ended = train_pack(pack_of_all(pack, source, **lengths), source)
    assert [run.step for run, _ in ended] == [1, 9, 20, STEPS, STEPS, STEPS]
    assert_each_as_alone(pack, alone, **lengths)


def test_runs_that_stand_at_different_steps_meet_on_the_way(folders: tuple[Path, Path]):
    pack, alone = folders
    # One is finished, one has not begun, and the others were killed at different times.
    for arch, step in {"standard": STEPS, "gated": 3, "jumprelu": 8, "topk": 9, "batch_topk": 22}.items():
        source = activation_source()
        (run,) = [run for run in pack_of_all(pack, source) if run.checkpoints.path.parent.parent.name == arch]
        run.stop_at = step
        with pytest.raises(Interrupted):
            run.train()
    source = activation_source()
    # Before any but the one that was not begun can have joined.
    with pytest.raises(Interrupted):
        train_pack(pack_of_all(pack, source), source, stop_at=2)
    assert {arch: saved(pack / arch)["step"] for arch in MEMBERS} == {
        "standard": STEPS, "gated": 3, "jumprelu": 8, "topk": 9, "batch_topk": 22, "abs_topk": 2,
    }  # fmt: skip
    source = activation_source()
    ended = train_pack(pack_of_all(pack, source), source)
    assert [error for _, error in ended] == [None] * 6
    assert_each_as_alone(pack, alone)


def test_a_signal_saves_every_run_of_a_pack(folders: tuple[Path, Path]):
    pack, alone = folders
    source = activation_source()
    with pytest.raises(Interrupted, match="SIGTERM"):
        train_pack(pack_of_all(pack, source), source, stop_at=13)
    assert [saved(pack / arch)["step"] for arch in MEMBERS] == [13] * 6
    source = activation_source()
    train_pack(pack_of_all(pack, source), source)
    assert_each_as_alone(pack, alone)


def pack_of_streams(folder: Path) -> list[LoneRun]:
    """Two runs on one stream, and one on a stream of another order."""
    sources = activation_source(), activation_source(seed=5)
    return [
        training_run(arch, folder / arch, source=source)
        for arch, source in (("topk", sources[0]), ("gated", sources[0]), ("jumprelu", sources[1]))
    ]


def test_streams_of_a_pack_are_saved_wherever_a_harvest_is_interrupted(folders: tuple[Path, Path]):
    pack, alone = folders
    for number in range(3):
        # Each from the beginning of its stream.
        pack_of_streams(alone)[number].train()

    def interrupted(source: Source, at: int) -> None:
        whole = source.batches

        def batches(batch_size: int) -> Iterator[Batch]:
            # The signal comes while the next batch is harvested: its position is still the one before.
            yield from islice(whole(batch_size), at)
            raise Interrupted("SIGTERM", saved=True)

        source.batches = batches

    # The second stream is interrupted after the first one has taken its step, at a step that is logged; then the first.
    runs = pack_of_streams(pack)
    interrupted(runs[2].source, at=4)
    with pytest.raises(Interrupted):
        list(train(runs, Interruption()))
    assert [saved(pack / run)["step"] for run in ("topk", "gated", "jumprelu")] == [5, 5, 4]
    runs = pack_of_streams(pack)
    interrupted(runs[0].source, at=3)
    with pytest.raises(Interrupted):
        list(train(runs, Interruption()))
    assert [saved(pack / run)["step"] for run in ("topk", "gated", "jumprelu")] == [8, 8, 8]
    assert [error for _, error in train(pack_of_streams(pack), Interruption())] == [None] * 3
    for arch in ("topk", "gated", "jumprelu"):
        assert not differences(saved(pack / arch), saved(alone / arch)), arch
        assert logged(pack / arch) == logged(alone / arch), arch


def test_a_run_that_fails_leaves_the_others_alone(folders: tuple[Path, Path]):
    pack, alone = folders
    source = activation_source()
    runs = pack_of_all(pack, source)
    runs[0].members[0].autoencoder.W_enc.register_hook(lambda gradient: gradient * math.nan)

    def full(state: object) -> None:
        raise OSError("no space left")

    def broken(x: Tensor, targets: Tensor | None, partners: Partners | None = None) -> None:
        raise TypeError("nobody expects this")

    runs[1].checkpoints.save = full
    runs[2].take = broken
    errors = {MEMBERS[runs.index(cast(LoneRun, run))]: str(error) for run, error in train_pack(runs, source) if error}
    assert errors.keys() == {"standard", "gated", "jumprelu"}
    assert "W_enc" in errors["standard"]
    assert "became infinite or NaN by step 5" in errors["standard"]
    assert errors["gated"] == "no space left"
    assert errors["jumprelu"] == "nobody expects this"
    for run in pack_of_all(alone, activation_source())[3:]:
        run.source = activation_source()
        run.train()
    for arch in MEMBERS[3:]:
        assert not differences(saved(pack / arch), saved(alone / arch))


def test_train_releases_a_run_that_has_ended(tmp_path: Path):
    source = activation_source()
    runs = [training_run("topk", tmp_path / str(n), adam(samples=BATCH * n), source=source) for n in (2, 9)]
    short = weakref.ref(runs[0].members[0])
    ending = train(runs, Interruption())
    assert next(ending).training is runs[0]
    runs.clear()
    ((_, error),) = ending
    assert error is None
    gc.collect()
    assert short() is None


class Rising:
    """Vectors of ones until a step, then of a number whose square is beyond float32."""

    d_in, unit, device = 6, "samples", torch.device("cpu")
    input_layout = target_layout = Layout.of(6)

    def __init__(self, until: int):
        self.until, self.given = until, 0

    def batches(self, batch_size: int):
        while True:
            self.given += 1
            vectors = torch.ones(batch_size, self.d_in) * (1.0 if self.given <= self.until else 1e30)
            yield Batch(vectors, vectors)

    def state_dict(self):
        return {"given": self.given}


@pytest.mark.parametrize("seconds", [EACH_STEP, NEVER])
def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_good_checkpoint(seconds: float, tmp_path: Path):
    source = Rising(until=3)
    run = training_run("standard", tmp_path, adam(checkpoint_seconds=seconds), source=source)  # pyright: ignore
    with pytest.raises(ValueError, match=r"loss.* became infinite or NaN by step [45] .*lower trainer\.lr"):
        run.train()
    if seconds == EACH_STEP:
        state = saved(tmp_path)
        assert state["step"] == 3
        assert all(weight.isfinite().all() for weight in state["members"][0]["autoencoder"].values())
    else:
        assert not run.checkpoints.path.exists()


def test_a_gradient_that_is_not_finite_is_not_saved_though_the_loss_is(tmp_path: Path):
    settings = adam(checkpoint_seconds=EACH_STEP)
    trained = member("standard", settings)
    run = training_run("standard", tmp_path, settings, trained=trained)
    trained.autoencoder.W_enc.register_hook(lambda gradient: gradient * (math.nan if run.step == 6 else 1.0))
    with pytest.raises(ValueError, match=r"W_enc.*by step 7"):
        run.train()
    assert saved(tmp_path)["step"] == 6


def test_tokens_are_the_axis_and_the_unit_names_the_speed(tmp_path: Path):
    run = training_run("standard", tmp_path)
    run.train()
    last = list(read_metrics(tmp_path / "metrics.jsonl"))[-1]
    assert last.step == STEPS * BATCH
    assert last.metrics["train/tokens_per_second"] > 0
    assert 0 <= last.metrics["train/dead_share"] <= 1
    assert last.metrics["train/l0"] <= D_SAE
