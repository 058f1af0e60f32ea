"""The parts of a run, built from its settings: the source, the autoencoders in training, and the trained ones."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.settings import AutoencoderSettings
from fsae.configuration.schema import RunSettings, Task
from fsae.couplings.mutual import MutualCoupling
from fsae.devices import dtype_of
from fsae.evaluation.suite import held_out_samples
from fsae.export.folding import fold
from fsae.losses.fisher import with_fisher_measured
from fsae.losses.objective import Objective
from fsae.memory import freed_memory_kept
from fsae.outputs.metric_log import MetricSink
from fsae.runs.run import Run, for_each
from fsae.seeds import seed_of
from fsae.sources.source import Request, Source
from fsae.training.checkpoints import Checkpoints
from fsae.training.interruption import Interruption
from fsae.training.loop import Training, train
from fsae.training.room import RoomCheck
from fsae.training.scaling import Scale, scale_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run and the autoencoders that it trained or read, in raw units.

    Attributes:
        run: the run.
        autoencoders: one, or the members of a population.
        samples: samples that they were trained on in this run; 0 if they were only read.
        best: the member with the least unexplained variance at the end of training.
    """

    run: Run
    autoencoders: list[Autoencoder]
    samples: int
    best: int


def request_of(settings: RunSettings) -> Request:
    """Return the request of a run to its source."""
    harvest = settings.task is Task.harvest
    return Request(
        model=settings.model,
        site=settings.site,
        dataset=settings.dataset,
        training_samples=settings.trainer.samples if settings.task in (Task.train, Task.harvest) else 0,
        held_out_samples=held_out_samples(settings.eval),
        stores=Path(settings.paths.activations),
        harvest=harvest,
        spliced=not harvest and any("language_model" in each.needs for each in settings.eval.values()),
    )


def open_source(runs: Sequence[Run], heartbeat: Callable[[], None]) -> AbstractContextManager[Source]:
    """Return the source that all the runs share, to be entered."""
    requests = [request_of(run.settings) for run in runs]
    most = max(request.training_samples for request in requests)
    return runs[0].settings.source.open(replace(requests[0], training_samples=most), heartbeat)


def trained(runs: Sequence[Run], source: Source, interruption: Interruption) -> list[TrainedRun]:
    """Train all the runs on the source's stream; a run that fails ends and is not returned."""
    began = time.monotonic()
    scale = cache(lambda kind: scale_of(source.first_vectors(), kind))
    trainings: dict[Training, Run] = {}
    made: list[TrainedRun] = []
    with freed_memory_kept():
        with interruption.at_once():
            check_memory([run.settings for run in runs if run.state is None], source)
            for_each(runs, lambda run: trainings.update({_training(run, source, scale): run}))
        # `pop` releases the finished training, and with it the optimiser's moments.
        for training, error in train(list(trainings), source, interruption):
            run = trainings.pop(training)
            if error is not None:
                run.end(error)
                continue
            with run.alone():
                autoencoders = [fold(member.autoencoder, training.scale) for member in training.members]
                samples = training.step * run.settings.trainer.batch_size
                made.append(TrainedRun(run, autoencoders, samples, training.best))
    costs = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in source.costs().items())
    log.info("trained in %.0f s%s", time.monotonic() - began, f"; the source so far: {costs}" if costs else "")
    return made


def check_memory(fresh: Sequence[RunSettings], source: Source) -> None:
    """Raise ValueError if memory is too small to train the new runs together; resumed runs already hold their share."""
    needing: dict[RoomCheck, list[AutoencoderSettings]] = {}
    for settings in fresh:
        for check in settings.trainer.room_checks:
            needing.setdefault(check, []).extend([settings.arch] * settings.population.size)
    for check, archs in needing.items():
        check(archs, source.d_in, source.device)


def _training(run: Run, source: Source, scale_by: Callable[[Scale], float]) -> Training:
    training = training_of(run.settings, source, scale_by, run.state, run.tracker, run.checkpoints)
    run.state = None
    return training


def training_of(
    settings: RunSettings,
    source: Source,
    scale_by: Callable[[Scale], float],
    state: dict[str, Any] | None,
    tracker: MetricSink,
    checkpoints: Checkpoints | None,
) -> Training:
    """Build the training of a run.

    Args:
        settings: the run's settings.
        source: the source of the vectors.
        scale_by: measures the factor by which training multiplies the vectors.
        state: the checkpoint's state from which training continues; None at the beginning.
        tracker: logs the measures.
        checkpoints: stores the states; None if no state is kept.

    Raises:
        ValueError: the settings do not fit vectors of this width, or all vectors are zero.
    """
    settings.check_width(source.d_in)
    autoencoders = [_fresh(settings, number, source) for number in range(settings.population.size)]
    autoencoder = autoencoders[0]
    # An autoencoder that cannot be folded and exported cannot be measured: refused before the source makes a vector.
    autoencoder.check_algebra()
    scale = scale_by(settings.trainer.activation_scale) if state is None else state["scale"]
    if state is None:
        for each in autoencoders:
            each.initialise(source.first_vectors, scale)
    members = [
        settings.trainer.build_learner(
            each, Objective(with_fisher_measured(settings.loss)), scale, _seed(settings, number)
        )
        for number, each in enumerate(autoencoders)
    ]
    log.info(
        "%s%s: d_in %d, d_sae %d, at %s; inputs are scaled by %.4g",
        f"{len(members)} x " if len(members) > 1 else "", type(autoencoder).__name__,
        autoencoder.d_in, autoencoder.d_sae, _described(settings), scale,
    )  # fmt: skip
    population = settings.population
    training = Training(
        members,
        MutualCoupling(population.mutual, settings.seed) if population.mutual.weight > 0 else None,
        population.reinitialise,
        source,
        scale,
        settings.trainer,
        tracker,
        checkpoints,
    )
    if state is not None:
        training.load(state)
        log.info("resuming at step %d of %d", training.step, settings.trainer.steps)
    return training


def _seed(settings: RunSettings, number: int) -> int:
    """Return a member's seed; the first member has the run's seed, so it equals the autoencoder of a run of one."""
    return settings.seed if number == 0 else seed_of(settings.seed, number)


def _fresh(settings: RunSettings, number: int, source: Source) -> Autoencoder:
    generator = torch.Generator().manual_seed(_seed(settings, number))
    return settings.arch.build(source.d_in, generator).to(source.device)


def existing(loaded: dict[Run, list[Autoencoder]], source: Source) -> list[TrainedRun]:
    """Return the runs whose autoencoders read vectors of the source's width; the other runs end."""
    made: list[TrainedRun] = []
    for run, autoencoders in loaded.items():
        with run.alone():
            if autoencoders[0].d_in != source.d_in:
                raise ValueError(
                    f"the autoencoder in {run.exported} reads vectors of width {autoencoders[0].d_in}, but "
                    f"{_described(run.settings)} has width {source.d_in}; choose the vectors that it was made for"
                )
            moved = [each.to(source.device) for each in autoencoders]
            made.append(TrainedRun(run, moved, 0, run.best))
    return made


def _described(settings: RunSettings) -> str:
    """Return a description of the origin of the vectors."""
    if settings.model is None:
        return "the source"
    return f"{settings.site} of {settings.model.name} in {str(dtype_of(settings.model)).removeprefix('torch.')}"
