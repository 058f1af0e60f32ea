"""The launch of a sweep, from locking its folder to the summary at its end, whatever ends it."""

from __future__ import annotations

import copy
import logging
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from fsae.configuration.accept import checked, keep_password, refuse_reevaluation
from fsae.configuration.folders import check_folder, check_outputs
from fsae.configuration.overrides import check_jobs
from fsae.configuration.refusal import MENDABLE, explain, refuse
from fsae.credentials import refuse_secret, without_password
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.sweep_folder import Job, JobState, Sweep, lock, read_sweep
from fsae.sweeps.ray_launcher import check_ray
from fsae.sweeps.slurm_launcher import check_slurm
from fsae.tracking.mlflow_upload import DeletedExperimentError
from fsae.tracking.server import resolve_uri, shell_command, ui_command
from fsae.tracking.sweep_summary import SweepRun
from fsae.wording import counted

if TYPE_CHECKING:
    from fsae.analysis.job_table import JobTable

log = logging.getLogger(__name__)


class Launch:
    """A sweep that this process launches.

    Args:
        sweep: the sweep, described in its folder.
        held: the lock on that folder.
        run: its summary run in MLflow, None for no MLflow.
        uri: the tracking server or database.
        experiment: MLflow's experiment.
    """

    def __init__(self, sweep: Sweep, held: FileLock, run: SweepRun | None, uri: str, experiment: str) -> None:
        self.sweep = sweep
        self._experiment = experiment
        self._held = held
        self._run = run
        self._uri = uri

    def end(self) -> bool:
        """Print the summary, write the report, and send both to MLflow; returns whether every job finished."""
        jobs = [(job, job.state()) for job in self.sweep.all_jobs()]
        counts = Counter(state.value for _, state in jobs)
        finished = bool(jobs) and counts[JobState.finished.value] == len(jobs)
        began = any((job.folder / "status.json").exists() for job, _ in jobs)
        table = self._table() if began else None
        print(f"\n{self._summary(jobs, counts, table)}")
        report = self._report() if began else None
        if self._run:
            self._send_to_mlflow(self._run, jobs, counts, table, report)
        self._held.release()
        return finished

    def _summary(self, jobs: list[tuple[Job, JobState]], counts: Counter[str], table: JobTable | None) -> str:
        lines = [
            f"sweep {self.sweep.tag}: {counted(len(jobs), 'job')}, "
            + ", ".join(f"{n} {state}" for state, n in counts.items())
        ]
        if table is not None:
            lines += ["", table.text(), ""]
        for job, state in jobs:
            if state is JobState.finished:
                continue
            failure = job.failure()
            reason = f": {failure.kind}: {failure.message.splitlines()[0]}" if failure and failure.message else ""
            lines += [f"  {job.folder.name}  {job.name}  {state.value}{reason}", f"     {job.folder}"]
        lines.append(f"folder:      {self.sweep.folder}")
        if any(state is not JobState.finished for _, state in jobs):
            lines.append(f"finish it:   {shell_command('resume', self.sweep.folder)}")
        return "\n".join(lines)

    def _table(self) -> JobTable | None:
        try:
            from fsae.analysis.job_table import job_table
            from fsae.analysis.runs import collect_folders

            return job_table(collect_folders([self.sweep.folder]))
        except Exception:
            # Each job's results are in its own folder.
            log.exception("no table of the jobs")
            return None

    def _report(self) -> Path | None:
        folder = self.sweep.folder / "report"
        try:
            from fsae.analysis.report import write_report
            from fsae.analysis.runs import collect_folders

            page = write_report(collect_folders([self.sweep.folder]), folder)
        except Exception:
            # The jobs' results are stored, and the report can be written from them later.
            log.exception("no report; try again with: %s", shell_command("report", self.sweep.folder))
            return None
        print(f"report:      {page}")
        return folder

    def _send_to_mlflow(
        self,
        run: SweepRun,
        jobs: list[tuple[Job, JobState]],
        counts: Counter[str],
        table: JobTable | None,
        report: Path | None,
    ) -> None:
        over = [job.folder for job, state in jobs if not state.is_active and RunFolder(job.folder).tracking.exists()]
        note = f"```\n{self._summary(jobs, counts, None)}\n```"
        if table is not None:
            note = f"{table.markdown()}\n\n{note}"
        try:
            run.close(
                finished=counts[JobState.finished.value] == len(jobs),
                # Zeros too: they replace the counts from before the sweep was resumed.
                counts={state.name: counts[state.value] for state in JobState},
                note=note,
                report=report,
            )
            run.deliver(over)
        except (ConnectionError, DeletedExperimentError) as error:
            log.warning(
                "MLflow (%s) does not accept all of the sweep: %s. Its folder has everything; send the jobs' runs "
                "with: %s",
                without_password(self._uri), error, shell_command("sync", *over),
            )  # fmt: skip
        if run.compare_link:
            print(f"MLflow UI:   {ui_command(self._uri)}\ncompare:     {run.compare_link}")
            print(f"table:       {run.table_link}")


_launching: list[Launch] = []
# Commands under way that launch jobs without a sweep's folder.
_commands: list[str] = []


def is_launching() -> bool:
    """Return whether this process launches jobs, rather than being one of their workers."""
    return bool(_launching or _commands)


@contextmanager
def launching(command: str) -> Iterator[None]:
    """Count this process as the launcher of a command's jobs, which a signal stops.

    Raises:
        SystemExit: with status 128 + n: signal n arrived.
    """
    _commands.append(command)
    _let_signals_raise()
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        _commands.pop()


@contextmanager
def sweep_end_reported() -> Iterator[None]:
    """Print the summary of the command's sweep, whatever ends the launch.

    Raises:
        SystemExit: with status 1 if not every job finished, unless something else is raised already.
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
    """Hydra's callback at the start of a run or a sweep.

    Args:
        resumed: whether the folder already holds the sweep.
        max_jobs: the largest number of jobs in a sweep.
    """

    def __init__(self, resumed: bool = False, max_jobs: int = 10_000) -> None:
        self.resumed, self.max_jobs = resumed, max_jobs

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse what cannot be run, before it has a folder; warn of a launcher that was chosen without a sweep."""
        launcher = config.hydra.runtime.choices.get("launcher", "local")
        if launcher != "local":
            log.warning("launcher=%s is for sweeps: without -m the run is done in this process", launcher)
        HydraConfig.instance().set_config(config)
        with _refused(config):
            # The settings first: a name with .. gets the better message.
            _check_job(config)
            check_folder(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Lock the folder and open MLflow, before any job does."""
        with _refused(config):
            check_jobs(config, self.max_jobs)
            _launching.append(_begin(config, self.resumed))
        # So that the summary is printed. A job running in this process has handlers of its own.
        _let_signals_raise()


@contextmanager
def _refused(config: DictConfig) -> Iterator[None]:
    """Print the reason and exit if the command cannot be done: Hydra turns a callback's exception into a warning."""
    try:
        check_outputs(config)
    except MENDABLE as error:
        refuse(error, None)
    try:
        yield
    except MENDABLE as error:
        refuse(error, Path(config.paths.outputs))


def _check_job(config: DictConfig) -> None:
    """Raise ValueError if a job with this config, which includes Hydra's own settings, cannot be run."""
    config = copy.deepcopy(config)
    overrides = list(config.hydra.overrides.task)
    with read_write(config), open_dict(config):
        del config["hydra"]
    checked(config, overrides, in_sweep=True)


def _let_signals_raise() -> None:
    """Let signals that end this process raise KeyboardInterrupt or SystemExit."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _begin(config: DictConfig, resumed: bool) -> Launch:
    drop_overridden_lists(config)
    # Before the config is used further: launchers write it to disk for their workers.
    keep_password(config)
    # Names such as the sweep's folder are resolved only with Hydra's config in place.
    HydraConfig.instance().set_config(config)
    uri = resolve_uri(config.tracking.uri, Path(config.paths.outputs))
    check_launcher(config)
    if not resumed:
        check_folder(config, "hydra.sweep.dir")
    folder = Path(config.hydra.sweep.dir).absolute()
    if resumed:
        held, sweep = lock(folder), read_sweep(folder)
    else:
        if (folder / "sweep.json").exists():
            raise ValueError(
                f"{folder} already holds a sweep: finish it with {shell_command('resume', folder)}, or choose "
                "another hydra.sweep.dir"
            )
        as_written = OmegaConf.to_container(config.hydra.sweep)
        assert isinstance(as_written, dict)
        if as_written["subdir"] != "${hydra.job.num}":
            raise ValueError("hydra.sweep.subdir cannot be changed: a sweep finds its jobs by their numbers")
        sweep = _described(config, folder)
        for override in (*sweep.hydra_overrides, *sweep.constant, *chain.from_iterable(sweep.jobs or [])):
            refuse_secret(override, override.partition("=")[0])
        _check_jobs(config, sweep)
        held = lock(folder)
    run = None
    if config.tracking.mlflow:
        run = SweepRun(
            uri=uri,
            outputs=Path(config.paths.outputs),
            experiment=config.tracking.experiment,
            sweep=sweep.tag,
            varied=sweep.varied,
            seconds=config.tracking.flush_seconds,
        )
        try:
            run.open()
        except ConnectionError as error:
            log.warning("MLflow (%s) is unreachable: %s. The sweep keeps its values", without_password(uri), error)
        except DeletedExperimentError as error:
            # A sweep that has started cannot choose another experiment.
            if not resumed:
                raise
            log.warning("%s. The sweep keeps its values", error)
    if not resumed:
        sweep.write()
    return Launch(sweep, held, run, uri, config.tracking.experiment)


def _check_jobs(config: DictConfig, sweep: Sweep) -> None:
    """Raise ValueError if a job makes a choice or has a task that does not exist, or if none of the jobs can be run.

    If only some jobs cannot be run, the summary at the sweep's end reports them.
    """
    place = next((key for key in sweep.varied if key.startswith(("paths.", "hydra."))), None)
    if place is not None:
        raise ValueError(f"{place} has several values, but a sweep has one folder; give it one")
    loader, seen, reasons = GlobalHydra.instance().config_loader(), set[str](), Counter[str]()
    runnable = not sweep.jobs
    for overrides in sweep.jobs or []:
        # Composing takes a tenth of a second: once one job can be run, only jobs with new overrides are composed.
        if runnable and seen.issuperset(overrides):
            continue
        seen.update(overrides)
        job = loader.load_sweep_config(config, overrides)
        refuse_reevaluation(job)
        if runnable:
            continue
        try:
            _check_job(job)
            runnable = True
        except (ValueError, OmegaConfBaseException) as error:
            reasons[explain(error)] += 1
    if not runnable:
        counts = [f"{reason} ({counted(count, 'job')})" for reason, count in reasons.items()]
        of_each = reasons if len(reasons) == 1 else counts
        raise ValueError("\n".join(of_each))


def drop_overridden_lists(config: DictConfig) -> None:
    """Remove what the command line sets from the grid in an experiment's file.

    Hydra would keep both, and run each job as often as the replaced list is long.
    """
    given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    grid = config.hydra.sweeper.get("params") or {}
    with read_write(config.hydra), open_dict(config.hydra):
        for override in given:
            grid.pop(override.get_key_element().lstrip("+"), None)


def check_launcher(config: DictConfig) -> None:
    """Raise ValueError if the chosen launcher cannot start jobs on this machine."""
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
    jobs = BasicSweeper.split_arguments(overrides, None)[0] if decided_beforehand else None
    return Sweep(
        folder=folder,
        # MLflow's filters can contain only one kind of quotation marks.
        tag=str(folder.relative_to(sweeps) if folder.is_relative_to(sweeps) else folder).replace('"', "%22"),
        started=datetime.now(UTC).isoformat(),
        command=sys.argv[1:],
        working_directory=str(Path.cwd()),
        outputs=config.paths.outputs,
        config_dirs=[source.path for source in hydra.runtime.config_sources if _is_users_folder(source)],
        hydra_overrides=list(hydra.overrides.hydra),
        constant=[o.input_line for o in overrides if not o.is_sweep_override() and o.input_line],
        varied=_differing(list(dict.fromkeys(varied)), jobs),
        jobs=jobs,
    )


def _is_users_folder(source: DictConfig) -> bool:
    """Return whether a source of YAML files is a folder that `--config-dir` or `hydra.searchpath` names."""
    return source.schema == "file" and source.provider in ("command-line", "hydra.searchpath in command-line")


def _differing(varied: list[str], jobs: list[list[str]] | None) -> list[str]:
    """Return the swept keys with several values; all swept keys if the jobs are not known."""
    values = [{key: value for key, _, value in (each.partition("=") for each in job)} for job in jobs or []]
    return [key for key in varied if len({job.get(key) for job in values}) > 1] or varied
