"""Packs: one or several runs on the same text, whose streams share one harvest, from settings to results."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.configuration.origin import Origin
from fsae.configuration.refusal import record_refusal, report_error
from fsae.configuration.schema import RunSettings, Task
from fsae.evaluation.subject import Examined
from fsae.export.dictionary_files import load_members
from fsae.language_models.settings import ModelSettings
from fsae.memory import freed_memory_kept
from fsae.outputs.run_log import run_name_prefixes
from fsae.progress import working
from fsae.runs.build import (
    check_memory,
    existing_of,
    open_sources,
    request_of,
    start_identity,
    trained_of,
    training_of,
    warn_of_slow_products,
)
from fsae.runs.finished import FinishedRun
from fsae.runs.outcome import Outcome, conclude, finish
from fsae.runs.run import Run, going
from fsae.sources.identity import data_identity, other_model_identity
from fsae.sources.source import Source
from fsae.tracking.uploader import Uploader
from fsae.training.interruption import Interrupted, Interruption
from fsae.training.loop import Training, train
from fsae.training.scaling import scaling_of

log = logging.getLogger(__name__)


def run_experiment(settings: RunSettings, origin: Origin) -> dict[str, Any]:
    """Run one experiment and write all its files into `origin.folder`.

    Returns:
        The evaluation's numbers, by name.

    Raises:
        Interrupted: a signal arrived. The state is saved, and the same command resumes the run.
        Exception: the error that ended the run. `status.json` holds it, and earlier results are kept.
    """
    (outcome,) = run_pack([(settings, origin)])
    if outcome.error is not None:
        raise outcome.error
    assert outcome.results is not None
    return outcome.results


def pack_key(settings: RunSettings) -> tuple[object, ...]:
    """Return the settings that the runs of a pack share, so that they can read the same shards and held-out text."""
    # The text of `eval` keeps the order of the evaluations, which affects rounding.
    common = settings.task, repr(settings.eval), settings.tracking, settings.paths
    return settings.source.pack_key(request_of(settings)), settings.trainer.batch_size, *common


def stream_key(settings: RunSettings) -> object:
    """Return the settings that runs of a pack share if they are on one stream, and see the same batches."""
    return settings.source.stream_key(request_of(settings))


def run_pack(jobs: Sequence[tuple[RunSettings, Origin]]) -> list[Outcome]:
    """Run several jobs on one language model with one harvest and one MLflow process; those at one site on one stream.

    Each run has its own folder, and the same numbers as a run of its own. An error in one run does not end the others.

    Args:
        jobs: settings and origins with the same `pack_key`.

    Returns:
        The outcome of each job, in their order; the error of every run that a signal stopped is Interrupted.
    """
    settings = jobs[0][0]
    try:
        # Missing data are refused like wrong settings, before any run takes its folder.
        of_data = settings.task in (Task.train, Task.reevaluate)
        data = data_identity(settings.model, settings.dataset, settings.source) if of_data else {}
    except ValueError as missing:
        return [_refused(each, origin, missing) for each, origin in jobs]
    # Runs of one pack may have other second models.
    others, missing = _other_models([each for each, _ in jobs]) if of_data else ({}, {})
    refused = {
        place: _refused(each, origin, missing[each.layout.model])
        for place, (each, origin) in enumerate(jobs)
        if each.layout.model in missing
    }
    kind = FinishedRun if settings.task is Task.reevaluate else Run
    runs = {
        place: kind(each, origin, data | others.get(each.layout.model, {}) | start_identity(each.arch))
        for place, (each, origin) in enumerate(jobs)
        if place not in refused
    }
    if runs:
        _run(list(runs.values()))
    ended = refused | {place: Outcome(run.results, run.error) for place, run in runs.items()}
    return [ended[place] for place in range(len(jobs))]


def _other_models(
    jobs: Sequence[RunSettings],
) -> tuple[dict[ModelSettings | None, dict[str, str]], dict[ModelSettings | None, ValueError]]:
    """Return the identities of the jobs' second models, and the errors of those that do not exist."""
    identities, missing = {}, {}
    for model in dict.fromkeys(each.layout.model for each in jobs):
        try:
            identities[model] = other_model_identity(model)
        except ValueError as error:
            missing[model] = error
    return identities, missing


def _run(runs: Sequence[Run]) -> None:
    """Train or load the autoencoders of runs, and measure them; each run has its results or its error then."""
    settings = runs[0].settings
    assert all(pack_key(run.settings) == pack_key(settings) for run in runs)
    with run_name_prefixes() if len(runs) > 1 else nullcontext(), Interruption() as interruption:
        for run in runs:
            with run.alone():
                _claim(run)
        # This block exits after the outcome is written: it waits until MLflow has received it.
        with _uploader(runs[0]) if going(runs) else nullcontext() as uploader:
            try:
                for run in going(runs):
                    with run.alone():
                        run.begin(uploader)
                _work(runs, interruption)
            except BaseException as error:
                under_way = going(runs)
                if isinstance(error, KeyboardInterrupt):
                    error = Interrupted("SIGINT", saved=False)
                if isinstance(error, Exception) and not isinstance(error, Interrupted):
                    # The error concerns all runs: it is reported once and stands in every log.
                    report_error(error, (under_way or runs)[0].folder.path)
                for run in under_way:
                    run.end(error)
                if not isinstance(error, Exception):
                    raise


def _claim(run: Run) -> None:
    try:
        run.claim()
    except ValueError as error:
        record_refusal(error, Path(run.settings.paths.outputs), run.folder.path)
        raise


def _refused(settings: RunSettings, origin: Origin, error: ValueError) -> Outcome:
    report_error(error, origin.folder)
    record_refusal(error, Path(settings.paths.outputs), origin.folder)
    return Outcome(None, error)


@contextmanager
def _uploader(run: Run) -> Iterator[Uploader | None]:
    """Yield the uploader that runs with this run's settings share; None without MLflow."""
    tracking = run.settings.tracking
    if not tracking.mlflow:
        yield None
        return
    uploader = Uploader(run.tracking_uri, tracking.flush_seconds)
    try:
        yield uploader
    finally:
        try:
            with working("waiting until MLflow has everything"):
                uploader.finish()
        except KeyboardInterrupt:
            log.warning("no longer waiting for MLflow; the remaining data are sent in the background")


def _work(runs: Sequence[Run], interruption: Interruption) -> None:
    """Open the source, train or load the autoencoders, and measure them."""
    task = runs[0].settings.task
    # Existing autoencoders are read before anything heavy is opened.
    loaded = _loaded(going(runs)) if task in (Task.eval, Task.reevaluate) else {}
    runs = going(runs)
    if not runs:
        return
    began = time.monotonic()
    with ExitStack() as stack:
        with interruption.at_once():
            opened = stack.enter_context(open_sources([run.settings for run in runs], interruption.check))
        sources = dict(zip(runs, opened, strict=True))
        if task is Task.harvest:
            _harvest(runs, opened[0])
            return
        began_training = time.monotonic()
        made = _trained(sources, interruption) if task is Task.train else _existing(loaded, sources)
        done = time.monotonic()
        waited = _costs(sources).get("waiting", 0.0)
        conclude(made, sources, interruption.check)
        _log_shares(
            {
                "opening the source": began_training - began,
                "waiting for it": waited,
                "training": done - began_training - waited,
                "evaluating": time.monotonic() - done,
            }
        )


def _harvest(runs: Sequence[Run], source: Source) -> None:
    """Fill the stores of all sites, which any source of the pack does."""
    assert source.store is not None
    results = source.store.fill_store()
    for run in runs:
        with run.alone():
            run.write_results(results)
            finish(run, None)


def _trained(sources: Mapping[Run, Source], interruption: Interruption) -> dict[Run, Examined]:
    """Train each run on its source's stream; a run that fails ends and is not returned."""
    began = time.monotonic()
    scaling = cache(scaling_of)
    trainings: dict[Training, Run] = {}
    made: dict[Run, Examined] = {}
    with freed_memory_kept():
        with interruption.at_once():
            fresh = [(run.settings, source) for run, source in sources.items() if run.state is None]
            check_memory(fresh)
            warn_of_slow_products(fresh)
            for run, source in sources.items():
                with run.alone():
                    measured = partial(scaling, source)
                    trainings[training_of(run.settings, source, measured, run.state, run.tracker, run.checkpoints)] = (
                        run
                    )
                    run.state = None
        # `pop` releases the finished training, and with it the optimiser's moments.
        for training, error in train(list(trainings), interruption):
            run = trainings.pop(training)
            if error is not None:
                run.end(error)
                continue
            with run.alone():
                made[run] = trained_of(training, run.settings)
    costs = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in _costs(sources).items())
    log.info("trained in %.0f s%s", time.monotonic() - began, f"; the sources so far: {costs}" if costs else "")
    return made


def _costs(sources: Mapping[Run, Source]) -> dict[str, float]:
    """Return the seconds that the sources of a pack spent: each waits for itself, and they share all other work."""
    each = [source.costs() for source in dict.fromkeys(sources.values())]
    return each[0] | {"waiting": sum(costs["waiting"] for costs in each)} if each[0] else {}


def _loaded(runs: Sequence[Run]) -> dict[Run, list[Autoencoder]]:
    """Read the existing autoencoders of each run; a run whose autoencoders cannot be read ends and is not returned."""
    loaded: dict[Run, list[Autoencoder]] = {}
    for run in runs:
        with run.alone():
            loaded[run] = load_members(run.exported)
    return loaded


def _existing(loaded: Mapping[Run, Sequence[Autoencoder]], sources: Mapping[Run, Source]) -> dict[Run, Examined]:
    """Return the runs whose autoencoders read vectors of their source's width; the other runs end."""
    made: dict[Run, Examined] = {}
    for run, autoencoders in loaded.items():
        with run.alone():
            made[run] = existing_of(autoencoders, run.exported, run.best, run.settings, sources[run])
    return made


def _log_shares(seconds: dict[str, float]) -> None:
    total = sum(seconds.values())
    shares = ", ".join(f"{name} {each / total:.0%}" for name, each in seconds.items())
    log.info("total %.0f s: %s", total, shares)
