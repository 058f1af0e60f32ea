"""Packs: one or several runs on one stream of vectors, from settings to results."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.configuration.origin import Origin
from fsae.configuration.refusal import record_refusal, report_error
from fsae.configuration.schema import RunSettings, Task
from fsae.export.saelens import load_members
from fsae.outputs.run_log import run_name_prefixes
from fsae.progress import working
from fsae.runs.build import existing, open_source, request_of, trained
from fsae.runs.finished import FinishedRun
from fsae.runs.outcome import Outcome, conclude, finish
from fsae.runs.run import Run, for_each, going
from fsae.sources.identity import data_identity
from fsae.tracking.server import resolve_uri
from fsae.tracking.uploader import Uploader
from fsae.training.interruption import Interrupted, Interruption

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
    """Return the settings that the runs of a pack share, so that they read the same batches and held-out text."""
    # The text of `eval` keeps the order of the evaluations, which affects rounding.
    common = settings.task, repr(settings.eval), settings.tracking, settings.paths
    return settings.source.stream_key(request_of(settings)), settings.trainer.batch_size, *common


def run_pack(jobs: Sequence[tuple[RunSettings, Origin]]) -> list[Outcome]:
    """Run several jobs on one stream of vectors, one language model and one MLflow process.

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
    kind = FinishedRun if settings.task is Task.reevaluate else Run
    runs = [kind(each, origin, data) for each, origin in jobs]
    assert all(pack_key(run.settings) == pack_key(settings) for run in runs)
    with run_name_prefixes() if len(runs) > 1 else nullcontext(), Interruption() as interruption:
        for_each(runs, _claim)
        # This block exits after the outcome is written: it waits until MLflow has received it.
        with _uploader(settings) if going(runs) else nullcontext() as uploader:
            try:
                for_each(runs, lambda run: run.begin(uploader))
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
    return [Outcome(run.results, run.error) for run in runs]


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
def _uploader(settings: RunSettings) -> Iterator[Uploader | None]:
    if not settings.tracking.mlflow:
        yield None
        return
    uri = resolve_uri(settings.tracking.uri, Path(settings.paths.outputs))
    uploader = Uploader(uri, settings.tracking.flush_seconds)
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
    loaded: dict[Run, list[Autoencoder]] = {}
    if task in (Task.eval, Task.reevaluate):
        for_each(runs, lambda run: loaded.update({run: load_members(run.exported)}))
    under_way = going(runs)
    if not under_way:
        return
    began = time.monotonic()
    with ExitStack() as stack:
        with interruption.at_once():
            source = stack.enter_context(open_source(under_way, interruption.check))
        if task is Task.harvest:
            assert source.store is not None
            results = source.store.fill_store()
            for_each(under_way, lambda run: finish(run, results))
            return
        opened = time.monotonic()
        made = trained(under_way, source, interruption) if task is Task.train else existing(loaded, source)
        done = time.monotonic()
        waited = source.costs().get("waiting", 0.0)
        if made:
            conclude(made, source, interruption.check)
        _log_shares(
            {
                "opening the source": opened - began,
                "waiting for it": waited,
                "training": done - opened - waited,
                "evaluating": time.monotonic() - done,
            }
        )


def _log_shares(seconds: dict[str, float]) -> None:
    total = sum(seconds.values())
    shares = ", ".join(f"{name} {each / total:.0%}" for name, each in seconds.items())
    log.info("total %.0f s: %s", total, shares)
