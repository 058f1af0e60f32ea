"""The parts of a run, built from its settings: the source, the autoencoders in training, and what they become."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder
from fsae.autoencoders.fitted import FittedSettings
from fsae.autoencoders.initialisation import initialise_from
from fsae.autoencoders.local_pca import LocalPCA
from fsae.autoencoders.pca import PCA
from fsae.configuration.schema import RunSettings, Task
from fsae.couplings.mutual import MutualCoupling
from fsae.devices import dtype_of
from fsae.export.folding import check_foldable, fold
from fsae.export.saelens import check_exportable
from fsae.losses.fisher import with_fisher_measured
from fsae.losses.objective import Objective
from fsae.memory import FEWER_AUTOENCODERS, freed_memory_kept, require_free
from fsae.runs.outcome import TrainedRun
from fsae.runs.run import Run, for_each
from fsae.seeds import seed_of
from fsae.sources.activations import ActivationSource
from fsae.sources.source import Request, Source
from fsae.training.fitted_learner import FittedLearner, check_moments
from fsae.training.gradient_learner import GradientLearner
from fsae.training.interruption import Interruption
from fsae.training.learner import Learner
from fsae.training.least_squares import check_equations
from fsae.training.loop import Training, train
from fsae.training.pam_learner import PamLearner, PamSettings
from fsae.training.scaling import Scale, scale_of
from fsae.training.settings import AdamSettings, FitSettings

log = logging.getLogger(__name__)


def request_of(settings: RunSettings) -> Request:
    """Return what a run asks of its source."""
    harvest = settings.task is Task.harvest
    return Request(
        model=settings.model,
        site=settings.site,
        dataset=settings.dataset,
        training_samples=0 if settings.task is Task.eval else settings.trainer.samples,
        held_out_samples=settings.eval.tokens,
        stores=Path(settings.paths.activations),
        harvest=harvest,
        spliced=not harvest and settings.eval.splice_tokens > 0,
    )


def open_source(runs: Sequence[Run], heartbeat: Callable[[], None]) -> AbstractContextManager[Source]:
    requests = [request_of(run.settings) for run in runs]
    most = max(request.training_samples for request in requests)
    return runs[0].settings.source.open(replace(requests[0], training_samples=most), heartbeat)


def trained(runs: Sequence[Run], source: Source, interruption: Interruption) -> list[TrainedRun]:
    began = time.monotonic()
    scale = cache(lambda kind: scale_of(source.first_vectors(), kind))
    trainings: dict[Training, Run] = {}
    made: list[TrainedRun] = []
    with freed_memory_kept():
        with interruption.at_once():
            _check_memory([run.settings for run in runs if run.state is None], source)
            for_each(runs, lambda run: trainings.update({_training(run, source, scale): run}))
        # A training that is given back is let go of, and with it the optimiser's moments.
        for training, error in train(list(trainings), source, interruption):
            run = trainings.pop(training)
            if error is not None:
                run.end(error)
                continue
            with run.alone():
                autoencoders = [fold(member.autoencoder, training.scale) for member in training.members]
                tokens = training.step * run.settings.trainer.batch_size
                made.append(TrainedRun(run, autoencoders, tokens, training.best))
    harvest = ""
    if isinstance(source, ActivationSource):
        harvester = source.harvester
        harvest = (
            f", {source.waited:.0f} s of it waiting for activations; harvest: {harvester.seconds:.0f} s, "
            f"{harvester.text_seconds:.0f} s of it waiting for text"
        )
    log.info("trained in %.0f s%s", time.monotonic() - began, harvest)
    return made


def _check_memory(fresh: Sequence[RunSettings], source: Source) -> None:
    """Raise ValueError where what is held beside weights has no room; what goes on holds it already."""
    members = [each for each in fresh for _ in range(each.population.size)]
    weights = sum(2 * source.d_in * each.arch.width(source.d_in) for each in members if _by_gradients(each))
    require_free(
        # Each has a gradient and two moments.
        4 * 4 * weights,
        source.device,
        f"the weights of {len(members)} autoencoder{'s' * (len(members) > 1)}, and what Adam keeps of them,",
        f"lower arch.d_sae or arch.expansion, {FEWER_AUTOENCODERS}",
    )
    solved = [each.arch.width(source.d_in) for each in members if isinstance(each.trainer, PamSettings)]
    check_equations(solved, source.d_in, source.device)
    check_moments([each.arch for each in members if isinstance(each.arch, FittedSettings)], source.d_in)


def _by_gradients(settings: RunSettings) -> bool:
    return isinstance(settings.trainer, AdamSettings)


def _training(run: Run, source: Source, scale_by: Callable[[Scale], float]) -> Training:
    settings, state = run.settings, run.state
    settings.check_width(source.d_in)
    autoencoders = [_fresh(settings, number, source) for number in range(settings.population.size)]
    autoencoder = autoencoders[0]
    # Before a vector is asked for, for what cannot be folded and exported cannot be measured either.
    check_foldable(autoencoder)
    check_exportable(autoencoder)
    scale = scale_by(settings.trainer.activation_scale) if state is None else state["scale"]
    members = [
        _member(settings, number, each, source, scale, fresh=state is None) for number, each in enumerate(autoencoders)
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
        run.tracker,
        run.checkpoints,
    )
    if state is not None:
        training.load(state)
        log.info("going on at step %d of %d", training.step, settings.trainer.steps)
        run.state = None
    return training


def _seed(settings: RunSettings, number: int) -> int:
    """Of one of a population; the first has the run's own, and is what the run alone would train."""
    return settings.seed if number == 0 else seed_of(settings.seed, number)


def _fresh(settings: RunSettings, number: int, source: Source) -> Autoencoder:
    generator = torch.Generator().manual_seed(_seed(settings, number))
    return settings.arch.build(source.d_in, generator).to(source.device)


def _member(
    settings: RunSettings, number: int, autoencoder: Autoencoder, source: Source, scale: float, fresh: bool
) -> Learner:
    seed = _seed(settings, number)
    objective, trainer = Objective(with_fisher_measured(settings.loss)), settings.trainer
    if isinstance(trainer, FitSettings):
        assert isinstance(autoencoder, LocalPCA | PCA)
        return FittedLearner(autoencoder, objective, trainer, scale, seed)
    assert isinstance(autoencoder, SparseAutoencoder)
    assert isinstance(trainer, AdamSettings)
    if fresh:
        initialise_from(autoencoder, source.first_vectors(), scale)
    if isinstance(trainer, PamSettings):
        return PamLearner(autoencoder, objective, trainer, scale, seed)
    return GradientLearner(autoencoder, objective, trainer, scale, seed)


def fitting(existing: dict[Run, Autoencoder], source: Source) -> list[TrainedRun]:
    """Those of the autoencoders that read vectors of the source's width; the runs of the others end."""
    made: list[TrainedRun] = []
    for run, autoencoder in existing.items():
        with run.alone():
            if autoencoder.d_in != source.d_in:
                raise ValueError(
                    f"the autoencoder in {run.settings.sae.path} reads vectors of width {autoencoder.d_in}, but "
                    f"{_described(run.settings)} has width {source.d_in}; choose what it was made for"
                )
            made.append(TrainedRun(run, [autoencoder.to(source.device)], 0, 0))
    return made


def _described(settings: RunSettings) -> str:
    """Where the vectors come from, in words."""
    if settings.model is None:
        return "the source"
    return f"{settings.site} of {settings.model.name} in {str(dtype_of(settings.model)).removeprefix('torch.')}"
