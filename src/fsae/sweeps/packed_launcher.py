"""`launcher=packed`: jobs that read the same text, all at once in this process."""

import gc
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from fsae.configuration.accept import accept
from fsae.configuration.origin import Origin
from fsae.configuration.refusal import report_error
from fsae.configuration.schema import RunSettings, Task
from fsae.outputs.run_log import run_log
from fsae.sweeps.reevaluation import START_AGAIN
from fsae.sweeps.worker import WorkerLauncher
from fsae.training.interruption import Interrupted
from fsae.wording import counted

log = logging.getLogger(__name__)


@dataclass
class PackedSettings:
    """Settings of `launcher=packed`.

    Attributes:
        max_jobs: jobs at a time. Each autoencoder of each job holds its weights, their gradients and two moments: 32
            bytes x d_in x d_sae, and briefly twice that when it resumes from a checkpoint. Each site of a pack has two
            shards in memory.
    """

    _target_: str = "hydra_plugins.fsae.PackedLauncher"
    max_jobs: int = 32


@dataclass
class _Job:
    """A job that can be run, and Hydra's record of it, which is completed at the job's end."""

    record: JobReturn
    settings: RunSettings
    origin: Origin


class PackedLauncher(WorkerLauncher):
    """A launcher of jobs in packs, one pack after the other: a whole pack shares what is read, harvested and measured.

    Jobs fit into one pack if they have the same model, data set, source and batch size. Those at one site see the same
    batches, and those at different sites have activations of the same forward passes.

    Args:
        max_jobs: see `PackedSettings`.

    Raises:
        ValueError: it is less than 1.
    """

    def __init__(self, max_jobs: int):
        if max_jobs < 1:
            raise ValueError(f"hydra.launcher.max_jobs is {max_jobs}; a pack has at least one job")
        self.max_jobs = max_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context of the sweep."""
        # The worker only checks whether a job can be run, so callbacks must not take that for the job.
        quiet = HydraContext(config_loader=hydra_context.config_loader, callbacks=Callbacks())
        super().setup(hydra_context=quiet, task_function=_accepted, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; returns their records in their order.

        Raises:
            SystemExit: a signal arrived; the states are saved.
        """
        numbered = list(enumerate(job_overrides, initial_job_idx))
        for number, overrides in numbered:
            log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
        records = [self.worker(overrides, number) for number, overrides in numbered]
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [_Job(each, *each.return_value) for each in records if each.status is JobStatus.COMPLETED]
        packs = self._packs(jobs)
        if packs:
            self._log_packs(packs, jobs)
        for pack in packs:
            _run(pack)
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
            # Reference cycles hold the language model, and the next pack needs its memory.
            gc.collect()
        return records

    def _packs(self, jobs: Sequence[_Job]) -> list[list[_Job]]:
        """Return the jobs in packs, ordered by each pack's first job."""
        from fsae.runs.pack import pack_key, stream_key

        groups: list[tuple[object, list[_Job]]] = []
        for job in jobs:
            key = pack_key(job.settings)
            group = next((group for known, group in groups if known == key), None)
            if group is None:
                groups.append((key, [job]))
            else:
                group.append(job)
        packs, size = [], self.max_jobs
        for _, group in groups:
            # Jobs on one stream are side by side, so that packs of a limited size have as few streams as possible.
            keys = [stream_key(job.settings) for job in group]
            ordered = sorted(range(len(group)), key=lambda place, keys=keys: keys.index(keys[place]))
            packs += [[group[place] for place in ordered[begin : begin + size]] for begin in range(0, len(group), size)]
        return packs

    def _log_packs(self, packs: Sequence[Sequence[_Job]], jobs: Sequence[_Job]) -> None:
        log.info("%s in packs of %s", counted(len(jobs), "job"), ", ".join(str(len(pack)) for pack in packs))
        for setting, why in (
            (
                "seed",
                "the seed also shuffles the training; a constant, as in source.seed=0, is shared by all seeds",
            ),
            ("tokens", "without it, the number of activations follows from trainer.samples"),
        ):
            if not all(hasattr(job.settings.source, setting) for job in jobs):
                continue
            alike = [
                replace(job, settings=replace(job.settings, source=replace(job.settings.source, **{setting: 1})))
                for job in jobs
            ]
            fewer = len(self._packs(alike))
            if fewer < len(packs):
                log.warning("packs could be as few as %d if source.%s did not differ: %s", fewer, setting, why)


def _accepted(config: DictConfig) -> tuple[RunSettings, Origin]:
    """Return a job's settings and their origin, instead of running it."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    with run_log(folder):
        try:
            return accept(config, folder, hydra_config.overrides.task)
        except Exception as error:
            report_error(error, folder)
            raise


def _run(pack: Sequence[_Job]) -> None:
    """Run a pack and complete the records of its jobs.

    Raises:
        SystemExit: a signal arrived; the states are saved.
    """
    # Imported only now: this takes seconds, and wrong settings should be reported at once.
    from fsae.runs.pack import run_pack

    hydra = pack[0].record.hydra_cfg
    assert hydra is not None
    configure_log(hydra.hydra.job_logging, hydra.hydra.verbose)
    with ExitStack() as logs:
        for job in pack:
            logs.enter_context(run_log(job.origin.folder))
        outcomes = run_pack([(job.settings, job.origin) for job in pack])
        stopped = next((each.error for each in outcomes if isinstance(each.error, Interrupted)), None)
        if stopped is not None:
            again = pack[0].settings.task is Task.reevaluate
            remedy = START_AGAIN if again else "fsae.resume resumes from the saved states"
            log.warning("%s; %s", stopped, remedy)
            sys.exit(128 + signal.Signals[stopped.signal_name])
    for job, outcome in zip(pack, outcomes, strict=True):
        record = job.record
        if outcome.error is None:
            assert outcome.results is not None
            record.return_value = job.settings.search_value(outcome.results)
        else:
            record.return_value, record.status = outcome.error, JobStatus.FAILED
