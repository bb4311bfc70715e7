"""The reader of run folders. It does not need the version of the package that wrote them.

It reads run.json, summary.json, metrics.jsonl and the names of checkpoints, using only the
standard library. A folder may come from a different program, or be damaged or hostile, so every
value is checked before it is used.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from hectogpt.errors import CheckpointError, Setting, SetTo, UserError
from hectogpt.files import (
    MANIFEST,
    check_hashes,
    damage,
    is_locked,
    open_regular,
    parse_json_object,
    read_json_object,
    read_manifest,
)

RUN = "run.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
LOCK = ".lock"
PICTURE = "losses_and_grad_norms.png"
IDEA = "idea.py"
CHECKPOINTS = "checkpoints"
STATE = "state.safetensors"  # the tensors of a checkpoint, next to its manifest
# Checkpoints to keep: the newest one, one in case that is damaged, and one in case a step went
# wrong unnoticed.
KEEP = 3
STATE_MODEL = "model."  # prefix of the names of weights in STATE
HASH = "weights_hash"  # of the weights after a step; in the step's row or, for step 0, in run.json
OWN = "own/"  # prefix of the names of an idea's own numbers in metrics.jsonl
MOST_STATE_TENSORS = 50_000  # in STATE; 500 layers with AdamW have 26,000
STEP_FOLDER = re.compile(r"step-(\d{8,})")
FORMAT = 1  # version of the checkpoint format
LONGEST_ROW = 100_000
LARGEST_METRICS = 1 << 30  # bytes; a usual row has about 200
FIX = "name a folder that `hectogpt train` wrote; `hectogpt show` lists those here"
RUNNING = "running"  # a process holds the folder
# There is no valid summary: the run was killed, or its process cannot be seen.
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Habits:
    """How a run is trained in its folder. No setting changes a single bit of the result."""

    out: Path | None = None
    """Run folder (default: runs/RECIPE, RECIPE-2 ...)."""
    save_every: int | None = None
    """Steps between checkpoints; 0: none (default: by time, and deleted when the run is done)."""
    keep_checkpoints: int = KEEP
    """Keep only this many checkpoints, the newest."""
    eval_every: int = 0
    """Steps between held-out scores during training; 0: none."""
    prompt: str | None = None
    """Text for the trained model to continue."""
    track: Literal["none", "tensorboard"] = "none"
    """Also send metrics to TensorBoard."""

    def __post_init__(self) -> None:
        for name, least in (("save_every", 0), ("eval_every", 0), ("keep_checkpoints", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                why = f"it must be at least {least}"
                raise UserError(Setting(name, value), why=why, fix=SetTo(name, least))


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run's folder. A value is None if the folder does not have it.

    Attributes:
        folder: the folder.
        recipe: the name of the recipe.
        modified: True if fields of the recipe were overridden.
        state: RUNNING while a process holds the folder, otherwise the summary's: "done",
            "interrupted", "diverged" or "unscored". UNFINISHED if there is no summary, if the
            manifest does not name it, or if it says "done" but run.json plans a different number
            of steps.
        steps: steps taken.
        planned_steps: steps that run.json plans.
        dev_loss: held-out loss, nats per token.
        seconds: time of building and training.
        written: the local time at which a file of the folder was last written.
        has_hashes: True if there is a manifest. Unless the run is in progress, run.json and
            summary.json have been compared with it.
        run: the fields of the Run, as in run.json.
        summary: the contents of summary.json; {} without it.
        last_row: the last row of metrics.jsonl that has a step; {} without one.
    """

    folder: Path
    recipe: str
    modified: bool
    state: str
    steps: int | None
    planned_steps: int | None
    dev_loss: float | None
    seconds: float | None
    written: str
    has_hashes: bool
    run: dict[str, Any]
    summary: dict[str, Any]
    last_row: dict[str, Any]

    @property
    def hashes_lost(self) -> str:
        """A sentence if the run has ended but has no manifest to check its files against.

        It is "" for all other runs.
        """
        if self.has_hashes or self.state in (RUNNING, UNFINISHED):
            return ""
        return f"its hashes are lost: there is no {MANIFEST} to compare its files with"

    @property
    def is_complete(self) -> bool:
        """True if the run is trained and scored, and its files have hashes: nothing is left."""
        return self.state == "done" and not self.hashes_lost

    @property
    def n_vocab(self) -> int | None:
        """Number of token ids of the model.

        Runs that differ in it split the text into different tokens, so their losses per token
        cannot be compared.
        """
        return count_of(object_of(self.run.get("model")).get("vocab_size"))

    def as_json(self) -> dict[str, Any]:
        """The JSON of the run that `hectogpt show --json` prints."""
        names = [
            f.name for f in fields(self) if f.name not in ("folder", "run", "summary", "last_row")
        ]
        return {"folder": str(self.folder)} | {name: getattr(self, name) for name in names}

    def samples(self) -> dict[str, str]:
        """The continuations in the summary, by how they were drawn."""
        samples = object_of(self.summary.get("samples"))
        return {how: text for how, text in samples.items() if isinstance(text, str)}

    def ngrams(self) -> dict[str, float]:
        """Held-out losses of the n-gram models."""
        losses = object_of(self.summary.get("ngrams"))
        return {key: loss for key, loss in losses.items() if number_of(loss) is not None}


def read_record(folder: Path) -> RunRecord:
    """Read the record of a run's folder.

    Raises UserError (CHECKPOINT), naming a file that is invalid or whose hash does not match.
    """
    record = read_object(folder / RUN)
    summary = read_summary(folder)
    is_running = is_locked(folder / LOCK)
    run = run_of(folder, record)
    planned = count_of(run.get("steps"))
    taken = count_of(summary.get("steps"))
    state = text_of(summary.get("state")) or ("done" if summary else UNFINISHED)
    has_hashes = os.path.lexists(folder / MANIFEST)
    # The files of a run in progress may change between two reads.
    is_named = not has_hashes or is_running or check_hashes(folder, RUN, SUMMARY) == {RUN, SUMMARY}
    if not is_named or (state == "done" and planned not in (None, taken)):
        state = UNFINISHED
    if is_running:
        state = RUNNING
    under_way = state in (UNFINISHED, RUNNING)
    newest = 0.0
    with suppress(OSError):  # a file may have been deleted since
        newest = max(path.lstat().st_mtime for path in folder.iterdir())
    last_row: dict[str, Any] = [{}, *read_rows(folder / METRICS, LONGEST_ROW)][-1]
    return RunRecord(
        folder=folder,
        recipe=text_of(summary.get("recipe")) or text_of(run.get("recipe")) or "?",
        modified=record.get("modified") is True,
        state=state,
        steps=count_of(last_row.get("step")) if under_way else taken,
        planned_steps=planned,
        dev_loss=None if under_way else number_of(summary.get("dev_loss")),
        seconds=None if under_way else number_of(summary.get("seconds")),
        written=datetime.fromtimestamp(min(newest, 2**32)).astimezone().isoformat(" ", "seconds"),
        has_hashes=has_hashes,
        run=run,
        summary=summary,
        last_row=last_row,
    )


def nearest_run(name: str) -> str:
    """The fix for an unknown run: the run below runs/ with the most similar name, else FIX."""
    known = [path.parent.name for path in Path("runs").glob(f"*/{RUN}")]
    near = difflib.get_close_matches(Path(name).name, known, 1)
    return f"did you mean runs/{near[0]}?" if near else FIX


def locate_run(name: str) -> Path:
    """Find the folder of a run by its path or by its name below runs/.

    Raises UserError (CHECKPOINT) if there is none.
    """
    for folder in (Path(name).expanduser(), Path("runs", name)):
        if folder.is_dir():
            return folder
    why = "there is no such folder"
    raise CheckpointError(f"no run in {name}", why=why, fix=nearest_run(name))


def run_of(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The fields of the Run in the contents of run.json.

    Raises UserError (CHECKPOINT) if there are none.
    """
    run = record.get("run")
    if not isinstance(run, dict):
        why = 'it is not a run\'s record: it has no object "run"'
        raise CheckpointError(f"cannot read {folder / RUN}", why=why, fix=FIX)
    return run


def read_summary(folder: Path) -> dict[str, Any]:
    """The contents of summary.json; {} without it. Raises UserError (CHECKPOINT)."""
    return read_object(folder / SUMMARY) if os.path.lexists(folder / SUMMARY) else {}


def find_runs(root: Path) -> tuple[list[RunRecord], list[str]]:
    """The runs below `root`, the oldest first, and a note for each one that cannot be read."""
    runs: list[RunRecord] = []
    notes: list[str] = []
    for path in root.rglob(RUN):
        try:
            runs.append(read_record(path.parent))
        except UserError as error:
            notes.append(f"{path.parent} is left out: {error.line}")
    return sorted(runs, key=lambda record: (record.written, str(record.folder))), sorted(notes)


# --- metrics.jsonl ---


def read_rows(path: Path, last: int = LARGEST_METRICS) -> Iterator[dict[str, Any]]:
    """Yield the intact rows of a metrics.jsonl that have a step, in order.

    Yields nothing if the file cannot be read. nan and infinity become None.

    Args:
        path: the file.
        last: read only this many bytes, at the end of the file.
    """
    with suppress(OSError), open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - last))
        while line := file.readline(LONGEST_ROW):
            with suppress(ValueError):
                row = parse_json_object(line, nan_as_none=True)
                if line.endswith(b"\n") and count_of(row.get("step")) is not None:
                    yield row


def read_scores(path: Path) -> list[tuple[int, float]]:
    """The (step, held-out loss) of each score in a metrics.jsonl, in order."""
    rows = read_rows(path)
    return [(row["step"], loss) for row in rows if (loss := score_of(row)) is not None]


def score_of(row: dict[str, Any]) -> float | None:
    """The held-out loss of a row, nats per token; None for a row without a score."""
    return number_of(row.get("dev/loss"))


# --- checkpoints ---


class SavedCheckpoints:
    """The checkpoints in a folder RUN/checkpoints, and whether their files are intact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """The steps whose checkpoint has a folder, valid or not, in ascending order.

        Links are ignored.
        """
        if self.folder.is_symlink() or not self.folder.is_dir():
            return []
        found = [
            STEP_FOLDER.fullmatch(path.name)
            for path in self.folder.iterdir()
            if not path.is_symlink()
        ]
        return sorted(int(match[1]) for match in found if match)

    def problem(self, step: int) -> str:
        """Describe what is wrong with a step's checkpoint; "" if it is valid."""
        path = self.path(step)
        try:
            manifest = read_manifest(path)
        except UserError as error:
            return error.line
        if (manifest.get("format"), manifest.get("step")) != (FORMAT, step):
            return f"{path}: its manifest is for a different format or step"
        if STATE not in manifest["files"]:
            return f"{path}: its manifest does not name {STATE}"
        faults = damage(path, manifest).items()
        return next((f"{path / name}: {fault}" for name, fault in faults if fault), "")


# --- values ---


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run's folder. nan and infinity, which JSON lacks, become None.

    Raises UserError (CHECKPOINT).
    """
    return read_json_object(path, nan_as_none=True, fix=FIX)


def object_of(value: Any) -> dict[str, Any]:
    """The value if it is a JSON object, else {}."""
    return value if isinstance(value, dict) else {}


def text_of(value: Any) -> str | None:
    """The value if it is a non-empty string, else None."""
    return value if isinstance(value, str) and value else None


def number_of(value: Any) -> float | None:
    """The value if it is a number from -10^15 to 10^15, which can be drawn; else None."""
    return value if type(value) in (int, float) and abs(value) <= 1e15 else None


def count_of(value: Any) -> int | None:
    """The value if it is an integer from 0 to 10^15, else None."""
    return value if type(value) is int and 0 <= value <= 10**15 else None
