"""Upload finished, interrupted or running runs to MLflow, which gets what it lacks: python -m fsae.sync RUN_DIR..."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fsae.console import console
from fsae.credentials import with_password, without_password
from fsae.outputs.status import read_status
from fsae.tracking.mlflow_upload import MlflowUpload, read_description, reason_of
from fsae.tracking.server import checked_uri, ui_command
from fsae.wording import counted


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Upload each folder on the command line; returns 0, 1 if MLflow refused or was unreachable, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m fsae.sync", description="Send to MLflow what it lacks of these runs. May be repeated."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="a run's folder")
    parser.add_argument("--tracking-uri", metavar="URI", help="another tracking server or database than the run's own")
    options = parser.parse_args(arguments)
    exit_status = 0
    opened: set[str] = set()
    for folder in options.runs:
        try:
            uri, outcome = _sync(folder, options.tracking_uri)
        except ValueError as error:
            print(f"{folder}: {error}", file=sys.stderr)
            exit_status = 2
        except ConnectionError as error:
            print(f"{folder}: {error}", file=sys.stderr)
            exit_status = exit_status or 1
        else:
            print(f"{folder}: {outcome}")
            opened.add(ui_command(uri))
    for command in sorted(opened):
        print(f"compare: {command}")
    return exit_status


def _sync(folder: Path, tracking_uri: str | None) -> tuple[str, str]:
    if not folder.is_dir():
        raise ValueError("no such folder")
    description = read_description(folder)
    status = read_status(folder)
    uri = with_password(checked_uri(tracking_uri, "--tracking-uri") if tracking_uri else description.uri)
    upload = MlflowUpload(folder, uri, description)
    try:
        sent = upload.send_metrics()
        closed = upload.close()
    except ValueError:
        raise
    except Exception as error:
        raise ConnectionError(
            f"MLflow ({without_password(uri)}) does not accept it: {reason_of(error)}. "
            f"The folder keeps {counted(upload.unsent(), 'value')}; try again later"
        ) from error
    news = f"{counted(sent, 'value')} sent" if sent else "every value was already stored"
    if status is None or status.is_alive():
        rest = "its end will follow, the run is not over"
    else:
        rest = "its end and artifacts sent" if closed else "its end and artifacts were already stored"
    return uri, f"{news}, {rest}: {upload.link}"
