"""A process that only logs, as a run does: python -m tests.cluster.writer FOLDER URI"""

import sys
import time
from pathlib import Path

from fsae.outputs.status import RunState, mark
from fsae.tracking.mlflow_upload import describe_run
from fsae.tracking.uploader import Uploader
from tests.tracking.trackers import tracking

STEPS, NAMES, SECONDS = 200, 10, 8.0


def main(folder: Path, uri: str) -> None:
    """Log 2,000 values within some seconds, and wait for their upload."""
    folder.mkdir(parents=True)
    describe_run(folder, uri=uri, outputs=folder.parent, experiment="writers", run_name=folder.name, params={}, tags={})
    mark(folder, RunState.running)
    with Uploader(uri, flush_seconds=60) as uploader, tracking(folder, uploader) as tracker:
        for step in range(STEPS):
            tracker.log({f"train/metric_{name}": step + name / NAMES for name in range(NAMES)}, step)
            time.sleep(SECONDS / STEPS)
        mark(folder, RunState.finished)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
