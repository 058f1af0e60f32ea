"""Small trainings of every architecture, from fresh objects, as a process makes them at its start."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.layout import Scaling
from fsae.losses.fisher import Fisher
from fsae.losses.objective import Objective
from fsae.losses.reconstruction import SquaredError
from fsae.losses.term import LossTerm
from fsae.outputs.metric_log import read_metrics
from fsae.outputs.run_folder import RunFolder
from fsae.sources.source import Batch, Source
from fsae.tracking.tracker import Tracker
from fsae.training.checkpoints import Checkpoints
from fsae.training.gradient_learner import GradientLearner
from fsae.training.interruption import Interruption
from fsae.training.learner import Learner
from fsae.training.loop import Ended, Training, train
from fsae.training.pam_settings import PamSettings
from fsae.training.resample import Reinitialisation
from fsae.training.settings import AdamSettings, TrainerSettings
from tests.architectures import ARCHITECTURES, settings_of
from tests.streams import D_IN, activation_source

D_SAE = 24
SCALE = 0.8
SCALING = Scaling.of(SCALE)
BATCH = 16
STEPS = 27

NEVER = 1e9
EACH_STEP = 0.0

SHORT: dict[str, Any] = {
    "samples": STEPS * BATCH,
    "batch_size": BATCH,
    "lr": 0.01,
    "warm_up": 0.2,
    "decay": 0.2,
    "dead_after": 2 * BATCH,
    "resample_every": 7 * BATCH,
    "log_every": 5,
    "checkpoint_seconds": NEVER,
}


def adam(**changes: Any) -> AdamSettings:
    """27 steps of 16; logged every 5, so that the last interval is a short one; latents die and are resampled."""
    return AdamSettings(**(SHORT | changes))


def pam(**changes: Any) -> PamSettings:
    """As many steps and one, whole rounds, in which the decoder is solved for."""
    longer: dict[str, Any] = {"samples": (STEPS + 1) * BATCH}
    return PamSettings(**(SHORT | longer | changes))


def terms(arch: str) -> dict[str, LossTerm]:
    """What the architecture's own loss group has, and a Fisher penalty that trains."""
    fisher = Fisher(weight=1e-3, warm_up=0.3)
    return {"reconstruction": SquaredError(), **ARCHITECTURES[arch].loss, "fisher": fisher}


def member(
    arch: str,
    settings: AdamSettings,
    loss: dict[str, LossTerm] | None = None,
    seed: int = 1,
    d_sae: int = D_SAE,
    **changes: Any,
) -> GradientLearner:
    """A member with fresh weights, a quarter of its latents dead; `changes` are the architecture's settings."""
    row = ARCHITECTURES[arch]
    autoencoder = settings_of(arch, d_sae=d_sae, **changes).build(D_IN, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        # If magnitudes decide, a low bias would put latents first, so they get small weights instead, as they do if
        # there is no bias. A gate may have a bias for each sign.
        low = {row.bias, *(row.silent if row.gate is not None else ())} & dict(autoencoder.named_parameters()).keys()
        by_weights = not low or (row.signed and row.gate is None)
        for name, parameter in autoencoder.named_parameters():
            if name == "W_enc" and by_weights:
                parameter[:, : d_sae // 4] *= 1e-3
            elif name in low and not by_weights:
                parameter[: d_sae // 4] = -20.0
    objective = Objective(loss if loss is not None else terms(arch))
    made = settings.build_learner(autoencoder, objective, SCALE, seed=3)
    assert isinstance(made, GradientLearner)
    return made


class LoneRun(Training):
    """A run that has its stream for itself; a signal comes during step `stop_at`."""

    checkpoints: Checkpoints  # pyright: ignore[reportIncompatibleVariableOverride] (it always keeps its state)
    interruption: Interruption
    stop_at: int | None

    def train(self) -> None:
        """To the end, raising what ends it early."""
        ((_, error),) = train_pack([self], self.source, self.interruption, self.stop_at)
        if error is not None:
            raise error


def train_pack(
    runs: Sequence[Training], source: Source, interruption: Interruption | None = None, stop_at: int | None = None
) -> list[Ended]:
    """Train all from one source; a signal comes during the step that takes the least advanced one to `stop_at`."""
    interruption = interruption or Interruption()
    whole_stream, step = source.batches, min(run.step for run in runs)

    def batches(batch_size: int) -> Iterator[Batch]:
        for drawn, batch in enumerate(whole_stream(batch_size), step + 1):
            if drawn == stop_at:
                interruption.signal_name = "SIGTERM"
            yield batch

    source.batches = batches
    try:
        return list(train(runs, interruption))
    finally:
        source.batches = whole_stream


def training_run(
    arch: str,
    folder: Path,
    settings: TrainerSettings | None = None,
    stop_at: int | None = None,
    source: Source | None = None,
    trained: Learner | None = None,
) -> LoneRun:
    """Build all parts of a run; load the state from `folder` if it holds a checkpoint."""
    settings = settings or adam()
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(RunFolder(folder).checkpoints, {"arch": arch}, {})
    state = checkpoints.load()
    tracker = Tracker(folder, None, state["metrics_position"] if state else 0)
    if trained is None:
        assert isinstance(settings, AdamSettings)
        trained = member(arch, settings)
    run = LoneRun(
        [trained], None, Reinitialisation(), source or activation_source(), SCALING, settings, tracker, checkpoints
    )
    run.interruption, run.stop_at = Interruption(), stop_at
    if state is not None:
        run.load(state)
    return run


def saved(folder: Path) -> dict[str, Any]:
    """The state in a folder's checkpoint, without the length of its metrics file (the speed's digits vary)."""
    state = torch.load(RunFolder(folder).checkpoints / "latest.pt", weights_only=True)["state"]
    return {name: value for name, value in state.items() if name != "metrics_position"}


def logged(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """What is in a folder's metrics file, without what took how long."""
    return [
        (record.step, {name: value for name, value in record.metrics.items() if "_second" not in name})
        for record in read_metrics(RunFolder(folder).metrics)
    ]


def differences(a: Any, b: Any, where: str = "state") -> list[str]:
    """The places at which two states are not the same, bit for bit."""
    if isinstance(a, Tensor):
        same = isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [where]
        return [found for key in a for found in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list):
        if not isinstance(b, list) or len(a) != len(b):
            return [where]
        return [found for i, (x, y) in enumerate(zip(a, b, strict=True)) for found in differences(x, y, f"{where}.{i}")]
    return [] if a == b else [where]
