"""Runs from settings to results: builds the parts in order, for one run or for several on one stream of vectors."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.configuration.accept import Origin
from fsae.configuration.refusal import record_refusal, report_error
from fsae.configuration.schema import RunSettings, Task
from fsae.export.saelens import load_members
from fsae.outputs.run_log import run_name_prefixes
from fsae.progress import working
from fsae.runs.build import existing, open_source, request_of, trained
from fsae.runs.finished import FinishedRun
from fsae.runs.outcome import conclude, finish
from fsae.runs.run import Run, for_each, going
from fsae.sources.identity import data_identity
from fsae.tracking.server import resolve_uri
from fsae.tracking.uploader import Uploader
from fsae.training.interruption import Interrupted, Interruption

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
    # As text, which has their order: numbers are rounded by it.
    common = settings.task, repr(settings.eval), settings.tracking, settings.paths
    return settings.source.stream_key(request_of(settings)), settings.trainer.batch_size, *common


def run_pack(jobs: Sequence[tuple[RunSettings, Origin]]) -> list[Outcome]:
    """Run several as one: vectors are read once for all, the language model and MLflow's process are there once.

    Each has its own folder and ends as it would alone, with the same numbers. What ends one leaves the others alone.

    Args:
        jobs: of one `pack_key`.

    Returns:
        What became of each, in their order; Interrupted is the error of all that a signal stopped.
    """
    settings = jobs[0][0]
    try:
        # Before a folder is taken: what cannot be found is refused as wrong settings are.
        of_data = settings.task in (Task.train, Task.reevaluate)
        data = data_identity(settings.model, settings.dataset, settings.source) if of_data else {}
    except ValueError as missing:
        return [_refused(each, origin, missing) for each, origin in jobs]
    kind = FinishedRun if settings.task is Task.reevaluate else Run
    runs = [kind(each, origin, data) for each, origin in jobs]
    assert all(pack_key(run.settings) == pack_key(settings) for run in runs)
    with run_name_prefixes() if len(runs) > 1 else nullcontext(), Interruption() as interruption:
        for_each(runs, _claim)
        # Left after the outcome is written: it waits until MLflow has it.
        with _uploader(settings) if going(runs) else nullcontext() as uploader:
            try:
                for_each(runs, lambda run: run.begin(uploader))
                _work(runs, interruption)
            except BaseException as error:
                under_way = going(runs)
                if isinstance(error, KeyboardInterrupt):
                    error = Interrupted("SIGINT", saved=False)
                if isinstance(error, Exception) and not isinstance(error, Interrupted):
                    # It concerns all of them, so it is told once and heard in every log.
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
            log.warning("MLflow is not waited for; what it has not taken yet goes on being sent")


def _work(runs: Sequence[Run], interruption: Interruption) -> None:
    """Do what is between the beginning and the end of the runs: open the source, train or load, conclude."""
    task = runs[0].settings.task
    # Read before anything heavy is opened.
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
