"""`launcher=ray`: jobs as tasks of a Ray cluster, or of one that is started on this machine for the sweep."""

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.utils import JobReturn, filter_overrides

from fsae.credentials import concealed
from fsae.sweeps.worker import Worker, WorkerLauncher

log = logging.getLogger(__name__)


@dataclass
class RaySettings:
    """What a job asks of Ray.

    Attributes:
        address: of a running cluster, as in "ray://host:10001" or "auto"; null starts one on this machine.
        num_cpus: of a cluster started here; null for as many as there are.
        cpus_per_job: logical cores a job takes up.
        gpus_per_job: logical devices a job takes up; fractions share one.
    """

    _target_: str = "hydra_plugins.fsae.RayLauncher"
    address: str | None = None
    num_cpus: int | None = None
    cpus_per_job: float = 1.0
    gpus_per_job: float = 0.0


def check_ray() -> None:
    """Raise ValueError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError(
            "launcher=ray: Ray is not installed; install the extra (pip install 'fsae[ray]'), or use launcher=joblib "
            "for processes of this machine"
        )


class RayLauncher(WorkerLauncher):
    """Runs each job as a Ray task; see `RaySettings` for the arguments."""

    def __init__(self, address: str | None, num_cpus: int | None, cpus_per_job: float, gpus_per_job: float):
        self.address = address
        self.num_cpus = num_cpus
        self.cpus_per_job = cpus_per_job
        self.gpus_per_job = gpus_per_job

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; returns each one's record, in their order."""
        # Ray reports home unless told not to.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray.exceptions import RayError

        if self.address:
            # Workers of a cluster that was there before know nothing of where outputs, models and MLflow are.
            told = {name: value for name, value in os.environ.items() if name.startswith(("FSAE_", "HF_", "MLFLOW_"))}
            # Ray writes down the environment that it is asked for: what is secret goes with the job.
            public = {name: value for name, value in told.items() if concealed(value) == value}
            secret = dict(told.items() - public.items())
            ray.init(address=self.address, runtime_env={"env_vars": public})
        else:
            secret = {}
            ray.init(num_cpus=self.num_cpus, include_dashboard=False)
        try:
            # Ray would start a killed job three times more by itself, unseen by the sweep.
            run = ray.remote(num_cpus=self.cpus_per_job, num_gpus=self.gpus_per_job, max_retries=0)(_run)
            worker = ray.put(self.worker)
            jobs = []
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
                jobs.append((number, overrides, run.remote(worker, Path.cwd(), secret, list(overrides), number)))
            returns = []
            for number, overrides, job in jobs:
                try:
                    returns.append(ray.get(job))
                except RayError as error:
                    reason = str(error).strip().splitlines()[0].removesuffix(".")
                    returns.append(self.worker.lost(overrides, number, reason))
            return returns
        finally:
            ray.shutdown()


def _run(worker: Worker, directory: Path, secret: dict[str, str], overrides: list[str], number: int) -> JobReturn:
    os.environ.update(secret)
    # Relative paths are taken from where the sweep was started.
    os.chdir(directory)
    return worker(overrides, number)
