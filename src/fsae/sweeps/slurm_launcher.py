"""`launcher=slurm`: jobs as one array of Slurm, submitted and requeued by submitit."""

import importlib.util
import logging
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, filter_overrides
from omegaconf import DictConfig, OmegaConf

from fsae.outputs.slurm_queue import QueueUnknown, end_state, note_slurm_job, queued_states
from fsae.sweeps.worker import WorkerLauncher

if TYPE_CHECKING:
    from submitit import Job

log = logging.getLogger(__name__)

# Pauses between two queries of the queue: short at first, so that a small sweep is not delayed.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 15.0
# On a shared file system, a result written by another machine appears here with a delay.
RESULT_SECONDS = 20.0


@dataclass
class SlurmSettings:
    """Settings of `launcher=slurm`. For null the cluster's own default applies.

    Attributes:
        partition: where the jobs run; account, qos, constraint, exclude and gres are also passed to sbatch.
        timeout_min: time limit of one attempt of a job, in minutes. At the limit a job saves its state and is requeued.
        signal_delay_s: seconds before the time limit at which a job is signalled to save its state.
        max_num_timeout: the largest number of requeues. Attempts of at most ten minutes count preemptions too.
        array_parallelism: jobs at a time.
        setup: shell commands before the job.
        additional_parameters: any other option of sbatch, as in {"mail-user": "me"}.
    """

    _target_: str = "hydra_plugins.fsae.SlurmLauncher"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    timeout_min: int = 240
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    signal_delay_s: int = 120
    max_num_timeout: int = 100
    array_parallelism: int = 256
    setup: list[str] | None = None
    additional_parameters: dict[str, Any] = field(default_factory=dict)


def check_slurm(launcher: DictConfig) -> None:
    """Raise ValueError if a sweep with these `SlurmSettings` cannot be submitted here."""
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("launcher=slurm: submitit is not installed; install the extra (pip install 'fsae[sweeps]')")
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        raise ValueError(
            "launcher=slurm: there is no sbatch on PATH, so this machine submits to no Slurm; start the sweep on the "
            "cluster's login node, or use launcher=joblib for processes of this machine"
        )
    answer = subprocess.run(["sinfo", "--noheader", "--format=%R"], capture_output=True, text=True)
    if answer.returncode != 0:
        raise ValueError(f"launcher=slurm: Slurm does not answer ({answer.stderr.strip()}); is its controller up?")
    partitions = sorted(set(answer.stdout.split()))
    asked = launcher.partition.split(",") if launcher.partition else []
    unknown = [name for name in asked if name not in partitions]
    if unknown:
        raise ValueError(f"hydra.launcher.partition={unknown[0]}: this Slurm has {', '.join(partitions)}")


class SlurmLauncher(WorkerLauncher):
    """A launcher that submits the jobs as one array and waits for it; see `SlurmSettings` for the arguments.

    It waits by `squeue`: submitit's own method queries the accounting database, which some clusters lack, and gives up
    all jobs if one of them was killed.
    """

    def __init__(self, *, max_num_timeout: int, **parameters: Any):
        self.max_num_timeout = max_num_timeout
        self.parameters = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in parameters.items()
        }

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs and wait for them; returns their records in their order."""
        from submitit import AutoExecutor

        numbered = list(enumerate(job_overrides, initial_job_idx))
        # Each folder is created and recorded before the array starts: the state of a job is looked up by its folder.
        folders = [self.worker.folder(overrides, number) for number, overrides in numbered]
        executor = AutoExecutor(
            Path(self.config.hydra.sweep.dir) / ".submitit" / "%j",
            cluster="slurm",
            slurm_max_num_timeout=self.max_num_timeout,
        )
        shared = ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")
        executor.update_parameters(
            name="fsae",
            **{name if name in shared else f"slurm_{name}": value for name, value in self.parameters.items()},
        )
        try:
            jobs = executor.map_array(
                self.worker, [list(overrides) for _, overrides in numbered], [number for number, _ in numbered]
            )
        except Exception as error:
            refusal = _sbatch_refusal(error)
            if refusal is None:
                raise
            raise ValueError(f"launcher=slurm: sbatch refuses the jobs: {refusal}") from error
        for (number, overrides), folder, job in zip(numbered, folders, jobs, strict=True):
            note_slurm_job(folder, job.job_id)
            log.info("\t#%d is Slurm job %s : %s", number, job.job_id, " ".join(filter_overrides(overrides)))
        self._wait([job.job_id for job in jobs])
        return [self._result(job, overrides, number) for (number, overrides), job in zip(numbered, jobs, strict=True)]

    def _wait(self, job_ids: list[str]) -> None:
        """Wait until none of the jobs is in the queue or will return to it."""
        pause, counts_before, silent = FIRST_PAUSE, None, False
        while True:
            try:
                states = queued_states(job_ids)
            except QueueUnknown as error:
                if not silent:
                    log.warning("Slurm does not answer (%s); its jobs continue, and so does the wait", error)
                silent = True
            else:
                silent = False
                counts = {state: list(states.values()).count(state) for state in sorted(set(states.values()))}
                if counts != counts_before:
                    queue = ", ".join(f"{count} {state.lower()}" for state, count in counts.items())
                    log.info(
                        "%d of %d jobs are over%s", len(job_ids) - len(states), len(job_ids), queue and f"; {queue}"
                    )
                    counts_before = counts
                if not states:
                    return
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)

    def _result(self, job: "Job[JobReturn]", overrides: Sequence[str], number: int) -> JobReturn:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        deadline = time.monotonic() + RESULT_SECONDS
        state = "" if job.paths.result_pickle.exists() else end_state(job.job_id)
        # A job that Slurm itself ended leaves no result, so there is nothing to wait for.
        while state in ("", "COMPLETED") and not job.paths.result_pickle.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        if not job.paths.result_pickle.exists():
            reason = f"Slurm job {job.job_id} is {state or 'gone'}, its output is in {job.paths.stderr}"
            return self.worker.lost(overrides, number, reason)
        try:
            return job.result()
        except (FailedJobError, UncompletedJobError) as error:
            return self.worker.lost(overrides, number, str(error).strip().splitlines()[-1])


def _sbatch_refusal(error: Exception) -> str | None:
    """Return sbatch's message if the error is a refusal by sbatch."""
    text = str(error)
    lines = [line.partition("error:")[2].strip() for line in text.splitlines() if "sbatch: error:" in line]
    return "; ".join(lines) or None
