"""What a run's folder says, read without the package that wrote it: for `hectogpt show` and `hectogpt watch`.

Reads run.json, summary.json and metrics.jsonl with the standard library alone. A folder may be another program's,
damaged or hostile: every value is checked before it is used.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import is_locked
from hectogpt.json_files import parse_json_object, read_json_object

RUN, METRICS, SUMMARY, LOCK = "run.json", "metrics.jsonl", "summary.json", ".lock"
FIX = "name a folder that `hectogpt train` wrote; `hectogpt show` lists those here"
RUNNING = "running"  # a process holds the folder
UNFINISHED = "unfinished"  # there is no summary of all its steps: it was killed, or cannot be seen to be running


@dataclass(frozen=True)
class RunRecord:
    """A run's folder in numbers. None where the folder does not say.

    state: done, interrupted, diverged or unscored as the summary has it, else RUNNING or UNFINISHED. steps: taken, of
    `planned`. seconds: of building and training. size: bytes on disk. modified: when a file of the folder was last
    written, in seconds since 1970. run: the fields of the Run as they are in run.json. summary: summary.json, and
    last_row: the last row of metrics.jsonl that has a step; {} without one.
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
        """What `hectogpt show --json` prints of the run."""
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

    def samples(self) -> dict[str, str]:
        """The continuations in the summary: how -> text."""
        samples = self.summary.get("samples")
        return {how: s for how, s in samples.items() if isinstance(s, str)} if isinstance(samples, dict) else {}

    def ngrams(self) -> dict[str, float]:
        """Held-out losses of the n-gram models; an old summary calls them anchors."""
        losses = self.summary.get("ngrams", self.summary.get("anchors"))
        values = {key: number_of(value) for key, value in losses.items()} if isinstance(losses, dict) else {}
        return {key: value for key, value in values.items() if value is not None}


def read_record(folder: Path) -> RunRecord:
    """The record of a run's folder. Raises UserError (CHECKPOINT) naming the file that is not as a run leaves it."""
    record = read_object(folder / RUN)
    run = record.get("run")
    if not isinstance(run, dict):
        why = 'it has no object "run"'
        raise UserError(f"cannot read {folder / RUN}", why=why, fix=FIX, code=errors.CHECKPOINT)
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
    """The runs below `root`, the oldest first, and a note for each one that cannot be read."""
    runs: list[RunRecord] = []
    notes: list[str] = []
    for path in root.rglob(RUN):
        try:
            runs.append(read_record(path.parent))
        except UserError as error:
            notes.append(f"{path.parent} is left out: {error.what}: {error.why}")
    return sorted(runs, key=lambda record: (record.modified, str(record.folder))), sorted(notes)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a run's folder; nan and infinity, which JSON lacks, are None. Raises UserError (CHECKPOINT)."""
    return read_json_object(path, nan_as_none=True, fix=FIX)


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
            row = parse_json_object(line, nan_as_none=True)
        except ValueError:
            continue
        if count_of(row.get("step")) is not None:
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


def bytes_text(size: int | float) -> str:
    """ "12.3 MB": a size in decimal units."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 100 or units[0] == "bytes" else f"{size:.1f} {units[0]}"
