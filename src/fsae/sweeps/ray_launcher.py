"""`launcher=ray`: jobs as tasks of a Ray cluster, or of a cluster that is started on this machine for the sweep."""

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
    """Settings of `launcher=ray`.

    Attributes:
        address: address of a running cluster, such as "ray://host:10001" or "auto"; null starts one on this machine.
        num_cpus: cores of a cluster started here; null for all cores.
        cpus_per_job: logical cores per job.
        gpus_per_job: logical devices per job; jobs with fractions share a device.
    """

    _target_: str = "hydra_plugins.fsae.RayLauncher"
    address: str | None = None
    num_cpus: int | None = None
    cpus_per_job: float = 1.0
    gpus_per_job: float = 0.0


def check_ray() -> None:
    """Raise ValueError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError(
            "launcher=ray: Ray is not installed; install the extra (pip install 'fsae[ray]'), or use launcher=joblib "
            "for processes of this machine"
        )


class RayLauncher(WorkerLauncher):
    """A launcher of each job as a Ray task; see `RaySettings` for the arguments."""

    def __init__(self, address: str | None, num_cpus: int | None, cpus_per_job: float, gpus_per_job: float):
        self.address = address
        self.num_cpus = num_cpus
        self.cpus_per_job = cpus_per_job
        self.gpus_per_job = gpus_per_job

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; returns their records in their order."""
        # Ray sends usage reports by default.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray.exceptions import RayError

        if self.address:
            # Workers of an existing cluster lack the variables that locate outputs, models and MLflow.
            needed = {name: value for name, value in os.environ.items() if name.startswith(("FSAE_", "HF_", "MLFLOW_"))}
            # Ray stores the environment that it is given, so secrets are passed with the job instead.
            public = {name: value for name, value in needed.items() if concealed(value) == value}
            secret = dict(needed.items() - public.items())
            ray.init(address=self.address, runtime_env={"env_vars": public})
        else:
            secret = {}
            ray.init(num_cpus=self.num_cpus, include_dashboard=False)
        try:
            # By default Ray restarts a killed job three times, which the sweep would not see.
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
    # Relative paths refer to the directory in which the sweep was started.
    os.chdir(directory)
    return worker(overrides, number)
