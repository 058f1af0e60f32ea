"""Slurm's queue: the state of a job by `squeue`, which needs no accounting database."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fsae.files import write_json

# Long enough for a controller that is restarting.
ANSWER_SECONDS = 30.0


class QueueUnknown(Exception):  # noqa: N818 (it may answer a moment later)
    """Slurm did not answer."""


def note_slurm_job(folder: Path, job_id: str) -> None:
    """Write Slurm's id of the job, such as "12_3", into the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "slurm.json", {"job_id": job_id})


def is_queued(folder: Path) -> bool | None:
    """Return whether Slurm runs this folder's job or will; None if it is no Slurm job or Slurm does not answer."""
    path = folder / "slurm.json"
    if not path.exists() or shutil.which("squeue") is None:
        return None
    job_id = json.loads(path.read_text(encoding="utf-8"))["job_id"]
    try:
        return job_id in queued_states([job_id])
    except QueueUnknown:
        return None


def queued_states(job_ids: Sequence[str]) -> dict[str, str]:
    """Return Slurm's state ("PENDING", "RUNNING") of each of these jobs that has not ended.

    Args:
        job_ids: ids such as "12" or "12_3".

    Raises:
        QueueUnknown: Slurm does not answer.
    """
    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids})
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={','.join(arrays)}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QueueUnknown(str(error)) from error
    # Slurm forgets jobs that ended long ago.
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
        raise QueueUnknown(answer.stderr.strip())
    states = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if line.strip())
    return {job_id: states[job_id] for job_id in job_ids if job_id in states}


def end_state(job_id: str) -> str:
    """Return Slurm's state of an ended job ("OUT_OF_MEMORY", "CANCELLED"), or an empty text if Slurm does not know."""
    for command, state in (
        (["scontrol", "--oneliner", "show", "job", job_id], r"\bJobState=(\w+)"),
        (["sacct", "--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={job_id}"], r"^(\w+)"),
    ):
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        # scontrol prints "Job 12_3 not found" for a part of an array that was cancelled before it started.
        if (found := re.search(state, answer)) is not None:
            return found[1]
    return ""
