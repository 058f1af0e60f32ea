"""The launching of a sweep, from its claim on a folder to what is said at its end, however that comes."""

import logging
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fsae.configuration.overrides import check_jobs
from fsae.configuration.refusal import MENDABLE, refuse
from fsae.sweeps.ray_launcher import check_ray
from fsae.sweeps.slurm_launcher import check_slurm
from fsae.tracking.mlflow_upload import describe_run
from fsae.tracking.run_folder import RunFolder
from fsae.tracking.store import python_command, resolve_uri, ui_command, without_password
from fsae.tracking.sweep_folder import Job, JobState, Sweep, lock, read_sweep, sweep_tags
from fsae.tracking.sweep_run import SweepRun
from fsae.tracking.tags import run_tags

log = logging.getLogger(__name__)


class Launch:
    """A sweep that this process launches.

    Args:
        sweep: described in its folder.
        held: the lock on that folder.
        run: its summary in MLflow, None for no MLflow.
        uri: the MLflow store.
        experiment: MLflow's experiment.
    """

    def __init__(self, sweep: Sweep, held: FileLock, run: SweepRun | None, uri: str, experiment: str) -> None:
        self.sweep = sweep
        self._experiment = experiment
        self._held = held
        self._run = run
        self._uri = uri

    def end(self) -> bool:
        """Say what became of the jobs, write the report, tell MLflow; returns whether every job finished."""
        jobs = [(job, job.state()) for job in self.sweep.all_jobs()]
        counts = Counter(state.value for _, state in jobs)
        finished = bool(jobs) and counts[JobState.finished.value] == len(jobs)
        print(f"\n{self._words(jobs, counts)}")
        report = self._report() if any((job.folder / "status.json").exists() for job, _ in jobs) else None
        if self._run:
            self._tell_mlflow(self._run, jobs, counts, report)
        self._held.release()
        return finished

    def _words(self, jobs: list[tuple[Job, JobState]], counts: Counter[str]) -> str:
        lines = [
            f"sweep {self.sweep.tag}: {len(jobs)} jobs, " + ", ".join(f"{n} {state}" for state, n in counts.items())
        ]
        for job, state in jobs:
            if state is JobState.finished:
                continue
            failure = job.failure()
            reason = f": {failure.kind}: {failure.message.splitlines()[0]}" if failure and failure.message else ""
            lines += [f"  {job.folder.name}  {job.name}  {state.value}{reason}", f"     {job.folder}"]
        lines.append(f"folder:      {self.sweep.folder}")
        if any(state is not JobState.finished for _, state in jobs):
            lines.append(f"finish it:   {python_command()} -m fsae.resume {self.sweep.folder}")
        return "\n".join(lines)

    def _report(self) -> Path | None:
        folder = self.sweep.folder / "report"
        try:
            from fsae.analysis.report import write_report
            from fsae.analysis.runs import collect_folders

            page = write_report(collect_folders([self.sweep.folder]), folder)
        except Exception:
            # The jobs' results stand, and the report can be written again from them.
            log.exception("no report; try again with: %s -m fsae.report %s", python_command(), self.sweep.folder)
            return None
        print(f"report:      {page}")
        return folder

    def _tell_mlflow(
        self, run: SweepRun, jobs: list[tuple[Job, JobState]], counts: Counter[str], report: Path | None
    ) -> None:
        for job, state in jobs:
            if state is JobState.refused:
                self._describe_refused(job)
        over = [job.folder for job, state in jobs if not state.is_going and RunFolder(job.folder).tracking.exists()]
        try:
            run.close(
                finished=counts[JobState.finished.value] == len(jobs),
                # Zeros too: they replace what was counted before the sweep was resumed.
                counts={state.name: counts[state.value] for state in JobState},
                note="```\n" + self._words(jobs, counts)[:7000] + "\n```",
                report=report,
            )
            run.deliver(over)
        except ConnectionError as error:
            log.warning(
                "MLflow (%s) does not take all of the sweep: %s. Its folder has everything; send the jobs' runs with: "
                "%s -m fsae.sync %s",
                without_password(self._uri), error, python_command(), " ".join(map(str, over)),
            )  # fmt: skip
        if run.compare_link:
            print(f"MLflow UI:   {ui_command(self._uri)}\ncompare:     {run.compare_link}")

    def _describe_refused(self, job: Job) -> None:
        """Make a run of MLflow's out of a job that never became one, so that it is not missing there."""
        overrides = (override.lstrip("+").partition("=") for override in job.overrides)
        params = {key: value for key, _, value in overrides}
        describe_run(
            job.folder,
            uri=self._uri,
            outputs=Path(self.sweep.outputs),
            experiment=self._experiment,
            run_name=job.name or job.folder.name,
            params=params,
            tags=run_tags(job.overrides)
            | {"fsae.kind": params.get("task", "train")}
            | sweep_tags(job.folder, self.sweep),
        )


_launching: list[Launch] = []


def is_launching() -> bool:
    """Whether this process launches a sweep, rather than being one of its workers."""
    return bool(_launching)


@contextmanager
def sweep_told() -> Iterator[None]:
    """Around a command: whatever ends the launching of its sweep, the end is told.

    Raises:
        SystemExit: with status 1 where not every job finished, unless something else is raised already.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not _launching:
            raise
        _end()
        sys.exit(128 + signal.SIGINT)
    except BaseException:
        _end()
        raise
    if not _end():
        sys.exit(1)


def _end() -> bool:
    return _launching.pop().end() if _launching else True


class SweepCallback(Callback):
    """Hydra's word that a command is a sweep.

    Args:
        resumed: whether its folder holds the sweep already.
        max_jobs: how many jobs a sweep may have.
    """

    def __init__(self, resumed: bool = False, max_jobs: int = 10_000) -> None:
        self.resumed, self.max_jobs = resumed, max_jobs

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Warn where a launcher was chosen for what is no sweep."""
        launcher = config.hydra.runtime.choices.get("launcher", "local")
        if launcher != "local":
            log.warning("launcher=%s is for sweeps: without -m the run goes on here, in this process", launcher)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Claim the folder and open MLflow's store, before any job can."""
        # Hydra makes a warning of whatever a callback raises; leaving is the only way to refuse.
        try:
            check_jobs(config, self.max_jobs)
            _launching.append(_begin(config, self.resumed))
        except MENDABLE as error:
            refuse(error)
        # As an exception, so that the end is told. A job under way in this process listens by itself.
        signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _begin(config: DictConfig, resumed: bool) -> Launch:
    let_the_command_line_win(config)
    # Names such as the sweep's folder are only resolved with Hydra's config in place.
    HydraConfig.instance().set_config(config)
    folder = Path(config.hydra.sweep.dir).absolute()
    uri = resolve_uri(config.tracking.uri, Path(config.paths.outputs))
    _check_launcher(config)
    held = lock(folder)
    if resumed:
        sweep = read_sweep(folder)
    else:
        if (folder / "sweep.json").exists():
            raise ValueError(
                f"{folder} holds a sweep already: finish it with {python_command()} -m fsae.resume {folder}, or choose "
                "another hydra.sweep.dir"
            )
        as_written = OmegaConf.to_container(config.hydra.sweep)
        assert isinstance(as_written, dict)
        if as_written["subdir"] != "${hydra.job.num}":
            raise ValueError("hydra.sweep.subdir cannot be changed: a sweep finds its jobs again by their numbers")
        sweep = _described(config, folder)
        sweep.write()
    run = None
    if config.tracking.mlflow:
        run = SweepRun(
            uri=uri,
            outputs=Path(config.paths.outputs),
            experiment=config.tracking.experiment,
            sweep=sweep.tag,
            seconds=config.tracking.flush_seconds,
        )
        try:
            run.open()
        except ConnectionError as error:
            log.warning("MLflow (%s) is away: %s. The sweep goes on and keeps its values", without_password(uri), error)
    return Launch(sweep, held, run, uri, config.tracking.experiment)


def let_the_command_line_win(config: DictConfig) -> None:
    """Take what the command line sets out of the grid that an experiment's file asks for.

    Hydra would have both, and run each job as often as the replaced list is long.
    """
    given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    grid = config.hydra.sweeper.get("params") or {}
    with read_write(config.hydra), open_dict(config.hydra):
        for override in given:
            grid.pop(override.get_key_element().lstrip("+"), None)


def _check_launcher(config: DictConfig) -> None:
    launcher = config.hydra.runtime.choices["hydra/launcher"]
    if launcher == "fsae_slurm":
        check_slurm(config.hydra.launcher)
    elif launcher == "fsae_ray":
        check_ray()


def _described(config: DictConfig, folder: Path) -> Sweep:
    hydra = config.hydra
    sweeps = Path(config.paths.sweeps)
    parameters = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*parameters, *hydra.overrides.task])
    varied = [override.get_key_element() for override in overrides if override.is_sweep_override()]
    decided_beforehand = hydra.runtime.choices["hydra/sweeper"] == "basic"
    return Sweep(
        folder=folder,
        tag=str(folder.relative_to(sweeps) if folder.is_relative_to(sweeps) else folder),
        started=datetime.now(UTC).isoformat(),
        command=sys.argv[1:],
        working_directory=str(Path.cwd()),
        outputs=config.paths.outputs,
        config_dirs=[source.path for source in hydra.runtime.config_sources if source.provider == "command-line"],
        hydra_overrides=list(hydra.overrides.hydra),
        constant=[o.input_line for o in overrides if not o.is_sweep_override() and o.input_line],
        varied=list(dict.fromkeys(varied)),
        jobs=BasicSweeper.split_arguments(overrides, None)[0] if decided_beforehand else None,
    )
