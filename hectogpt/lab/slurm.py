"""Slurm as the engine of a comparison: the tasks of an array share the trials among themselves.

There is no scheduler of ours between them. Each task runs the same comparison over the same file of records: it claims
a trial by a lock, runs it, appends its record, and takes the next. The lock of a task that dies is free again, and the
trial goes on from its last checkpoint in another task. slurm.schedmd.com: "Job array support", "squeue".
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.engines import News

TASK = "SLURM_ARRAY_TASK_ID"  # Slurm sets it in a task of an array
POLL_SECONDS = 1.0
QUEUE_SECONDS = 10.0  # between two questions to Slurm's controller, which serves everybody
QUIET_POLLS = 3  # without a claimed trial or a queued array, after which the array is taken to have ended


def is_task() -> bool:
    """Whether this process is a task of an array."""
    return bool(os.environ.get(TASK))


def script_path(out: Path) -> Path:
    """Where the script for a file of records is."""
    return out.with_suffix(".sbatch.sh")


def job_name(out: Path) -> str:
    """The array's name, one for each file of records, by which Slurm's queue is asked for it."""
    return f"hectogpt-{hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:10]}"


def is_queued(out: Path) -> bool:
    """Whether Slurm has the array for a file of records, waiting or running; False where Slurm does not answer."""
    command = ["squeue", "-h", "-o", "%i", "-n", job_name(out)]
    try:
        return bool(subprocess.run(command, capture_output=True, check=True, timeout=QUEUE_SECONDS).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return False


def is_under_way(comparison: Comparison, trials: Sequence[Trial]) -> bool:
    """Whether an array waits for its turn, or anybody runs one of the trials."""
    return any(map(comparison.is_claimed, trials)) or is_queued(comparison.out)


def follow(comparison: Comparison, trials: Sequence[Trial]) -> Generator[News, None, None]:
    """What becomes of trials that an array runs, until all are recorded, or nobody will run those that are left."""
    left, seen, quiet = list(trials), set[tuple[str, int]](), 0
    asked, queued = float("-inf"), False
    while left and quiet < QUIET_POLLS:
        comparison.refresh()
        for trial in list(left):
            record = comparison.find(trial)
            if record is not None:
                left.remove(trial)
                yield News(trial, record=record)
        running = [trial for trial in left if comparison.is_claimed(trial)]
        for trial in running:
            if trial.name not in seen:
                seen.add(trial.name)
                yield News(trial)
        if not running and time.monotonic() - asked > QUEUE_SECONDS:
            asked, queued = time.monotonic(), is_queued(comparison.out)
        quiet = 0 if running or queued else quiet + 1
        if left:
            time.sleep(POLL_SECONDS)
