"""Compare runs: python -m fsae.report FOLDER... or --mlflow URI. Writes one HTML page, its pictures and a table."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fsae.analysis.report import write_report
from fsae.analysis.runs import collect_folders, collect_mlflow
from fsae.console import console
from fsae.wording import counted


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report that the command line asks for; returns 0, 1 if MLflow is unreachable, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m fsae.report",
        description="Compare runs: tables, Pareto fronts and paired differences at matched l0, on one HTML page.",
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="runs, sweeps, or folders above them")
    parser.add_argument(
        "--mlflow", metavar="URI", help="collect the runs from this tracking server or database instead"
    )
    parser.add_argument("--experiment", default="fsae", metavar="NAME", help="MLflow's experiment (default: fsae)")
    parser.add_argument("--sweep", metavar="TAG", help="only the runs of one sweep, such as 2026-11-21/14-00-00")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="output folder (default: FOLDER/report or ./report)")
    options = parser.parse_args(arguments)
    if bool(options.folders) == bool(options.mlflow):
        parser.error("name folders of runs, or a tracking server with --mlflow, and not both")
    if options.sweep and not options.mlflow:
        parser.error("--sweep chooses runs in MLflow (--mlflow); name the sweep's folder instead")
    try:
        if options.mlflow:
            runs = collect_mlflow(options.mlflow, options.experiment, options.sweep)
        else:
            runs = collect_folders(options.folders)
        alone = options.folders[0] if len(options.folders) == 1 else Path()
        page = write_report(runs, options.out or alone / "report")
    except (ValueError, OSError) as error:
        print(f"fsae.report: {error}", file=sys.stderr)
        return 1 if isinstance(error, ConnectionError) else 2
    finished = runs["state"].to_list().count("finished")
    print(f"{counted(len(runs), 'run')}, {finished} finished: {page}")
    return 0
