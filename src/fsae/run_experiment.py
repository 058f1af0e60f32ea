"""Runs from settings to results: builds the parts in order, for one run or for several on one stream of vectors."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsae.analysis.run_plots import plot_firing, plot_training
from fsae.autoencoders.base import Autoencoder
from fsae.autoencoders.initialisation import initialise_from
from fsae.configuration.origin import Origin
from fsae.configuration.refusal import tell
from fsae.configuration.schema import RunSettings, Task
from fsae.evaluation.results import flat_results, results_table
from fsae.evaluation.sparsity import density_histogram
from fsae.evaluation.splice import evaluate_splice
from fsae.evaluation.vectors import evaluate_vectors
from fsae.export.folding import fold
from fsae.export.saelens import Provenance, load_saelens, read_provenance, save_saelens
from fsae.losses.fisher import Fisher
from fsae.losses.objective import Objective
from fsae.open_run import OpenRun
from fsae.sources.activations import ActivationSource, Cache, open_activations, stream_key
from fsae.tracking.run_folder import write_json
from fsae.tracking.run_log import runs_named
from fsae.tracking.store import resolve_uri, ui_command
from fsae.tracking.uploader import Uploader
from fsae.training.interruption import Interrupted, Interruption
from fsae.training.loop import TrainingRun, train
from fsae.training.member import Member
from fsae.training.memory import freed_memory_kept
from fsae.training.scaling import Scale, scale_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its evaluation's numbers by name, or what ended it early."""

    results: dict[str, Any] | None
    error: BaseException | None


def run_experiment(settings: RunSettings, origin: Origin) -> dict[str, Any]:
    """Run it; everything it makes is in `origin.folder`.

    Returns:
        The evaluation's numbers, by name.

    Raises:
        Interrupted: a signal came; the state is saved and the same command goes on.
        Exception: whatever ended it; `status.json` holds it and earlier results stand.
    """
    (outcome,) = run_pack([(settings, origin)])
    if outcome.error is not None:
        raise outcome.error
    assert outcome.results is not None
    return outcome.results


def pack_key(settings: RunSettings) -> tuple[object, ...]:
    """What runs must have in common to be one pack: they see the same batches and are evaluated on the same text."""
    stream = stream_key(
        model=settings.model,
        site=settings.site,
        dataset=settings.dataset,
        source=settings.source,
        training_tokens=settings.trainer.tokens,
        batch_size=settings.trainer.batch_size,
    )
    return settings.task, stream, settings.source.also, settings.eval, settings.tracking, settings.paths


def run_pack(jobs: Sequence[tuple[RunSettings, Origin]]) -> list[Outcome]:
    """Run several as one: vectors are read once for all, the language model and MLflow's process are there once.

    Each has its own folder and ends as it would alone, with the same numbers. What ends one leaves the others alone.

    Args:
        jobs: of one `pack_key`.

    Returns:
        What became of each, in their order; Interrupted is the error of all that a signal stopped.
    """
    runs = [OpenRun(settings, origin) for settings, origin in jobs]
    settings = runs[0].settings
    assert all(pack_key(run.settings) == pack_key(settings) for run in runs)
    with runs_named() if len(runs) > 1 else nullcontext(), Interruption() as interruption:
        _for_each(runs, OpenRun.claim)
        # Left after the outcome is written: it waits until MLflow has it.
        with _uploader(settings) if _going(runs) else nullcontext() as uploader:
            try:
                _for_each(runs, lambda run: run.begin(uploader))
                _work(runs, interruption)
            except BaseException as error:
                going = _going(runs)
                if isinstance(error, Exception) and not isinstance(error, Interrupted):
                    # It concerns all of them, so it is told once and heard in every log.
                    tell(error, (going or runs)[0].folder.path)
                for run in going:
                    run.end(error)
                if not isinstance(error, Exception):
                    raise
    return [Outcome(run.results, run.error) for run in runs]


def _going(runs: Iterable[OpenRun]) -> list[OpenRun]:
    return [run for run in runs if not run.over]


def _for_each(runs: Iterable[OpenRun], action: Callable[[OpenRun], None]) -> None:
    """Do it for every run that has not ended; where it fails that run ends, and no other."""
    for run in _going(runs):
        with run.alone():
            action(run)


def _uploader(settings: RunSettings) -> Uploader | nullcontext[None]:
    if not settings.tracking.mlflow:
        return nullcontext()
    uri = resolve_uri(settings.tracking.uri, Path(settings.paths.outputs))
    return Uploader(uri, settings.tracking.flush_seconds)


@dataclass(frozen=True, eq=False)
class _Made:
    """A run and the autoencoder that it made or read, in raw units; `tokens` is what it was trained on here."""

    run: OpenRun
    autoencoder: Autoencoder
    tokens: int


def _work(runs: Sequence[OpenRun], interruption: Interruption) -> None:
    """All that is between the beginning and the end of the runs."""
    task = runs[0].settings.task
    # Read before anything heavy is opened.
    existing: dict[OpenRun, Autoencoder] = {}
    if task is Task.eval:
        _for_each(runs, lambda run: existing.update({run: _existing(run.settings)}))
    going = _going(runs)
    if not going:
        return
    began = time.monotonic()
    with _open_source(going, interruption.check) as source:
        if task is Task.harvest:
            results = source.fill_store()
            _for_each(going, lambda run: _finish(run, results))
            return
        opened = time.monotonic()
        made = _trained(going, source, interruption) if task is Task.train else _fitting(existing, source)
        trained = time.monotonic()
        waited = source.waited
        if made:
            _evaluate(made, source, interruption.check)
        _say_shares(
            {
                "opening the model and its text": opened - began,
                "waiting for activations": waited,
                "training": trained - opened - waited,
                "evaluating": time.monotonic() - trained,
            }
        )


def _say_shares(seconds: dict[str, float]) -> None:
    total = sum(seconds.values())
    shares = ", ".join(f"{name} {each / total:.0%}" for name, each in seconds.items())
    log.info("of %.0f s: %s", total, shares)


def _open_source(runs: Sequence[OpenRun], heartbeat: Callable[[], None]) -> ActivationSource:
    settings = runs[0].settings
    # A harvest without room for what it harvests has nothing to do.
    harvest = settings.task is Task.harvest
    return open_activations(
        model=settings.model,
        site=settings.site,
        dataset=settings.dataset,
        source=replace(settings.source, cache=Cache.disk) if harvest else settings.source,
        training_tokens=max(run.settings.trainer.tokens for run in runs),
        held_out_tokens=settings.eval.tokens,
        folder=Path(settings.paths.activations),
        heartbeat=heartbeat,
    )


def _trained(runs: Sequence[OpenRun], source: ActivationSource, interruption: Interruption) -> list[_Made]:
    began = time.monotonic()
    scale = cache(lambda kind: scale_of(source.first_vectors(), kind))
    trainings: dict[TrainingRun, OpenRun] = {}
    made: list[_Made] = []
    with freed_memory_kept():
        _for_each(runs, lambda run: trainings.update({_training(run, source, scale): run}))
        # A training that is given back is let go of, and with it the optimiser's moments.
        for training, error in train(list(trainings), source, interruption):
            run = trainings.pop(training)
            if error is not None:
                run.end(error)
                continue
            with run.alone():
                autoencoder = fold(training.members[0].autoencoder, training.scale)
                made.append(_Made(run, autoencoder, training.step * run.settings.trainer.batch_size))
    harvester = source.harvester
    log.info(
        "trained in %.0f s, %.0f s of it waiting for activations; harvest: %.0f s, %.0f s of it waiting for text",
        time.monotonic() - began, source.waited, harvester.seconds, harvester.text_seconds,
    )  # fmt: skip
    return made


def _training(run: OpenRun, source: ActivationSource, scale_by: Callable[[Scale], float]) -> TrainingRun:
    settings, state = run.settings, run.state
    settings.arch.check_width(source.d_in)
    generator = torch.Generator().manual_seed(settings.seed)
    autoencoder = settings.arch.build(source.d_in, generator).to(source.device)
    log.info(
        "%s: d_in %d, d_sae %d, at %s of %s",
        type(autoencoder).__name__, autoencoder.d_in, autoencoder.d_sae, settings.site, settings.model.name,
    )  # fmt: skip
    if state is None:
        scale = scale_by(settings.trainer.activation_scale)
        initialise_from(autoencoder, source.first_vectors(), scale)
    else:
        scale = state["scale"]
    member = Member(autoencoder, Objective(settings.loss), settings.trainer, scale, settings.seed)
    training = TrainingRun([member], source, scale, settings.trainer, run.tracker, run.checkpoints)
    if state is not None:
        training.load(state)
        log.info("going on at step %d of %d", training.step, settings.trainer.steps)
        run.state = None
    return training


def _existing(settings: RunSettings) -> Autoencoder:
    """The autoencoder at `sae.path`.

    Raises:
        ValueError: there is none, or it was made for another site.
    """
    assert settings.sae.path is not None
    path = Path(settings.sae.path).expanduser()
    autoencoder = load_saelens(path)
    made_for = read_provenance(path)
    if made_for.hook_name not in (None, settings.site.hook_name):
        raise ValueError(
            f"the autoencoder in {path} was made for {made_for.hook_name}, but site {settings.site} is "
            f"{settings.site.hook_name}; set site and site.layer to where it belongs"
        )
    if made_for.model_name not in (None, settings.model.name, settings.model.path):
        log.warning(
            "the autoencoder was made for model %s and is evaluated on %s", made_for.model_name, settings.model.name
        )
    return autoencoder


def _fitting(existing: dict[OpenRun, Autoencoder], source: ActivationSource) -> list[_Made]:
    """Those of the autoencoders that read vectors of the source's width; the runs of the others end."""
    made: list[_Made] = []
    for run, autoencoder in existing.items():
        with run.alone():
            if autoencoder.d_in != source.d_in:
                raise ValueError(
                    f"the autoencoder in {run.settings.sae.path} reads vectors of width {autoencoder.d_in}, but "
                    f"{run.settings.site} of {run.settings.model.name} has width {source.d_in}; choose the model and "
                    "site it was made for"
                )
            made.append(_Made(run, autoencoder.to(source.device), 0))
    return made


def _evaluate(made: Sequence[_Made], source: ActivationSource, heartbeat: Callable[[], None]) -> None:
    """Measure all at once, and finish each run with its own numbers; `heartbeat` may raise to stop the measuring."""
    settings = made[0].run.settings
    autoencoders = [each.autoencoder for each in made]
    fishers = [
        next((term for term in each.run.settings.loss.values() if isinstance(term, Fisher)), Fisher()) for each in made
    ]
    batches = _with_heartbeat(source.held_out(settings.eval.tokens, settings.eval.batch_size), heartbeat)
    vectors = evaluate_vectors(autoencoders, batches, fishers)
    spliced: list[dict[str, float]] = [{} for _ in made]
    if settings.eval.splice_tokens > 0:
        log.info("running %s with the reconstruction in place of its activations", settings.model.name)
        tokens, keep = source.held_out_rows(settings.eval.splice_tokens)
        spliced = evaluate_splice(
            source.model,
            settings.site,
            autoencoders,
            tokens,
            keep,
            vectors[0].mean_activation,
            settings.model.batch_size,
            heartbeat,
        )
    for each, measured, replaced in zip(made, vectors, spliced, strict=True):
        with each.run.alone():
            if settings.task is Task.train:
                _export(each, measured.firing_frequency, source.prepends_bos)
            _report(each, measured.scalars | replaced, measured.firing_frequency)


def _with_heartbeat(batches: Iterable[Tensor], heartbeat: Callable[[], None]) -> Iterator[Tensor]:
    for batch in batches:
        heartbeat()
        yield batch


def _export(made: _Made, firing_frequency: Tensor, prepends_bos: bool) -> None:
    settings, folder = made.run.settings, made.run.folder
    provenance = Provenance(
        model_name=settings.model.path or settings.model.name,
        hook_name=settings.site.hook_name,
        context_size=settings.dataset.context,
        prepend_bos=prepends_bos,
        dataset_path=settings.dataset.path or settings.dataset.name,
        exclude_special_tokens=settings.dataset.exclude_special_tokens,
    )
    save_saelens(made.autoencoder, folder.sae, provenance, firing_frequency)
    plot_training(folder.metrics, folder.plots / "training.png")


def _report(made: _Made, metrics: dict[str, float], firing_frequency: Tensor) -> None:
    run = made.run
    histogram = density_histogram(firing_frequency)
    plot_firing(histogram, metrics["dead_share"], run.folder.plots / "firing.png")
    run.tracker.log({f"eval/{name}": value for name, value in metrics.items()}, made.tokens)
    print(f"\n{results_table(metrics)}")
    _finish(run, flat_results(metrics) | {"density_histogram": histogram})


def _finish(run: OpenRun, results: dict[str, Any]) -> None:
    write_json(run.folder.results, results)
    run.results = results
    print(f"\nrun folder:  {run.folder.path}")
    if run.settings.tracking.mlflow:
        uri = resolve_uri(run.settings.tracking.uri, Path(run.settings.paths.outputs))
        print(f"MLflow UI:   {ui_command(uri)}")
    run.end()
