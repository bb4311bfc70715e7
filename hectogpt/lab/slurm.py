"""Slurm as the engine of a comparison: the tasks of an array share the trials among themselves.

There is no scheduler of ours between them. Each task runs the same comparison over the same file of records: it claims
a trial by a lock, runs it, appends its record, and takes the next. The lock of a task that dies is free again, and the
trial goes on from its last checkpoint in another task. slurm.schedmd.com: "Job array support".
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.engines import News

TASK = "SLURM_ARRAY_TASK_ID"  # Slurm sets it in a task of an array
POLL_SECONDS = 1.0
QUIET_POLLS = 3  # without a claimed trial, after which the array is taken to have ended


def is_task() -> bool:
    """Whether this process is a task of an array."""
    return bool(os.environ.get(TASK))


def script_path(out: Path) -> Path:
    """Where the script for a file of records is."""
    return out.with_suffix(".sbatch.sh")


def follow(comparison: Comparison, trials: Sequence[Trial]) -> Generator[News, None, None]:
    """What becomes of trials that an array runs, until all are recorded, or nobody runs any of those that are left."""
    left, seen, quiet = list(trials), set[tuple[str, int]](), 0
    while left and quiet < QUIET_POLLS:
        comparison.refresh()
        for trial in list(left):
            record = comparison.find(trial)
            if record is not None:
                left.remove(trial)
                yield News(trial, record=record)
        under_way = [trial for trial in left if comparison.is_claimed(trial)]
        for trial in under_way:
            if trial.name not in seen:
                seen.add(trial.name)
                yield News(trial)
        quiet = 0 if under_way else quiet + 1
        if left:
            time.sleep(POLL_SECONDS)
