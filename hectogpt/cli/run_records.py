"""What a run's folder tells without loading the package that wrote it: for `hectogpt list` and `hectogpt show`.

Reads run.json, summary.json and metrics.jsonl with the standard library alone. A folder may be another program's,
damaged or hostile: every value is checked before it is used.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import is_locked
from hectogpt.json_files import finite_or_none, read_json_object

RUN, METRICS, SUMMARY = "run.json", "metrics.jsonl", "summary.json"
PICTURE, IDEA = "losses_and_grad_norms.png", "idea.py"
FIX = "name a folder that `hectogpt train` wrote; `hectogpt list runs` shows those here"
RUNNING = "running"  # a process holds the folder
UNFINISHED = "unfinished"  # there is no summary of all its steps: it was killed, or cannot be seen to be running
LOCK = ".lock"


@dataclass(frozen=True)
class RunRecord:
    """A run's folder in numbers. None where the folder does not say.

    state: done, interrupted, diverged or unscored as the summary has it, else UNFINISHED. steps: taken, of `planned`.
    seconds: of building and training. size: bytes on disk. modified: when a file of the folder was last written, in
    seconds since 1970. run: the fields of the Run as they are in run.json. summary: summary.json, {} without one.
    last_row: the last row of metrics.jsonl that has a step, {} without one.
    """

    folder: Path
    recipe: str
    changed: bool
    state: str
    steps: int | None
    planned: int | None
    dev_loss: float | None
    seconds: float | None
    size: int
    modified: float
    run: dict[str, Any]
    summary: dict[str, Any]
    last_row: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """What `hectogpt list --json` prints of the run."""
        from datetime import UTC, datetime

        return {
            "folder": str(self.folder),
            "recipe": self.recipe,
            "modified": self.changed,
            "state": self.state,
            "steps": self.steps,
            "planned_steps": self.planned,
            "dev_loss": self.dev_loss,
            "seconds": self.seconds,
            "bytes": self.size,
            "written": datetime.fromtimestamp(self.modified, UTC).isoformat(timespec="seconds"),
        }


def read_record(folder: Path) -> RunRecord:
    """The record of a run's folder. Raises UserError (CHECKPOINT) naming the file that is not as a run leaves it."""
    record = read_object(folder / RUN)
    run = record.get("run")
    if not isinstance(run, dict):
        raise _unreadable(folder / RUN, 'it has no object "run"')
    summary = read_object(folder / SUMMARY) if os.path.lexists(folder / SUMMARY) else {}
    state = text_of(summary.get("state")) or ("done" if summary else UNFINISHED)
    if state == "done" and count_of(run.get("steps")) not in (None, count_of(summary.get("steps"))):
        state = UNFINISHED  # it is being extended
    if is_locked(folder / LOCK):
        state = RUNNING
    under_way = state in (UNFINISHED, RUNNING)
    size, modified = measure(folder)
    last_row = read_last_row(folder / METRICS)
    return RunRecord(
        folder=folder,
        recipe=text_of(summary.get("recipe")) or text_of(run.get("recipe")) or "?",
        changed=record.get("modified") is True,
        state=state,
        steps=count_of(last_row.get("step") if under_way else summary.get("steps")),
        planned=count_of(run.get("steps")),
        dev_loss=None if under_way else number_of(summary.get("dev_loss")),
        seconds=None if under_way else number_of(summary.get("seconds")),
        size=size,
        modified=modified,
        run=run,
        summary=summary,
        last_row=last_row,
    )


def find_runs(root: Path) -> tuple[list[RunRecord], list[str]]:
    """The runs below `root`, the oldest first, and a note for each folder directly below it that holds none, or that
    cannot be read."""
    found: list[RunRecord] = []
    notes: list[str] = []
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"cannot read {root}: {error.strerror or error}"]
    for top in folders:
        below = [top] if (top / RUN).exists() else sorted(path.parent for path in top.rglob(RUN))
        if not below and top.name != "ideas":  # where `hectogpt compare` keeps the sources of ideas
            notes.append(f"{top} holds no run: it has no {RUN}")
        for folder in below:
            try:
                found.append(read_record(folder))
            except UserError as error:
                notes.append(f"{folder} is left out: {error.what}: {error.why}")
    return sorted(found, key=lambda record: (record.modified, str(record.folder))), notes


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a run's folder; nan and infinity, which JSON lacks, are None. Raises UserError (CHECKPOINT)."""
    return read_json_object(path, nan_as_none=True, fix=FIX)


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(f"cannot read {path}", why=why, fix=FIX, code=errors.CHECKPOINT)


def text_of(value: Any) -> str | None:
    """The value if it is a string that is not empty."""
    return value if isinstance(value, str) and value else None


def number_of(value: Any) -> float | None:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def count_of(value: Any) -> int | None:
    """The value if it is a whole number from 0 to 10^15."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10**15 else None


def read_last_row(path: Path) -> dict[str, Any]:
    """The last row of metrics.jsonl that has a step; {} without one."""
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (64 << 10)))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines[:-1]):  # what follows the last line end is a row that is being written
        try:
            row = json.loads(line, parse_constant=lambda name: None, parse_float=finite_or_none)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and count_of(row.get("step")) is not None:
            return row
    return {}


def measure(folder: Path) -> tuple[int, float]:
    """Bytes of all files below a folder, and when the newest of them was written. Links are not followed."""
    size, newest = 0, 0.0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(parent, name))
            except OSError:
                continue  # removed since
            size, newest = size + status.st_size, max(newest, status.st_mtime)
    return size, newest


def bytes_text(size: int) -> str:
    """ "12.3 MB": a size in decimal units."""
    if size < 1000:
        return f"{size} bytes"
    amount, units = size / 1000, ["kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.0f} {units[0]}" if amount >= 100 else f"{amount:.1f} {units[0]}"
