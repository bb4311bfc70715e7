"""What a run's folder says, read without the package that wrote it: the one reader of runs.

Reads run.json, summary.json, metrics.jsonl and the names of checkpoints with the standard library
alone. A folder may be another program's, damaged or hostile: every value is checked before it is
used."""

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

from hectogpt import errors
from hectogpt.errors import UserError, set_to
from hectogpt.files import is_locked, open_regular
from hectogpt.json_files import (
    MANIFEST,
    check_hashes,
    damage,
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
STATE = "state.safetensors"  # of a checkpoint: its tensors, beside its manifest
# checkpoints that stay: the newest, one for damage to it, one for a step that went wrong unnoticed
KEEP = 3
STATE_MODEL = "model."  # before the names of weights in it
OWN = "own/"  # before the names of an idea's own numbers in metrics.jsonl
MOST_STATE_TENSORS = 50_000  # of it; 500 layers with AdamW have 26,000
STEP_FOLDER = re.compile(r"step-(\d{8,})")
FORMAT = 1  # of a checkpoint
LONGEST_ROW = 100_000
LARGEST_METRICS = 1 << 30  # bytes; a row of ours has about 200
FIX = "name a folder that `hectogpt train` wrote; `hectogpt show` lists those here"
RUNNING = "running"  # a process holds the folder
# there is no summary of all its steps: it was killed, or cannot be seen to be running
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Habits:
    """How a run is trained in its folder. None of it changes a bit of the result."""

    out: Path | None = None
    """The run's folder (default runs/RECIPE, RECIPE-2 ...)."""
    save_every: int | None = None
    """Steps between checkpoints; 0 for none (default: by time, and none stays in the end)."""
    keep_checkpoints: int = KEEP
    """How many checkpoints stay, the newest."""
    eval_every: int = 0
    """Steps between held-out scores; 0 for none."""
    prompt: str | None = None
    """What the trained model continues at the end."""
    track: Literal["none", "tensorboard"] = "none"
    """Send metrics to TensorBoard too."""

    def __post_init__(self) -> None:
        for name, least in (("save_every", 0), ("eval_every", 0), ("keep_checkpoints", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                why = f"it must be at least {least}"
                raise UserError(f"{name} = {value}", why=why, fix=set_to(name, least))


@dataclass(frozen=True)
class RunRecord:
    """A run's folder in numbers. None where the folder does not say.

    modified: whether fields of the recipe were overridden.
    state: "done", "interrupted", "diverged" or "unscored" as the summary says, RUNNING while a
        process holds the
        folder, else UNFINISHED, also with fewer steps than run.json plans, and where a kill came
        between the summary
        and the manifest that names it.
    steps: taken, of `planned_steps`. seconds: of building and training. written: when a file of
        the
        folder was last
        written, local time.
    has_hashes: whether there is a manifest. What it says of run.json and summary.json was
        compared.
    run: the fields of the Run as they are in run.json. summary: summary.json, and last_row: the
        last row of
        metrics.jsonl that has a step; {} without one.
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
        """A sentence if the run has ended and nothing tells any more whether its files are as it
        left them, else "".
        """
        if self.has_hashes or self.state in (RUNNING, UNFINISHED):
            return ""
        return f"its hashes are lost: there is no {MANIFEST} to compare its files with"

    @property
    def is_complete(self) -> bool:
        """True if the run is trained and scored, and its files have hashes: there is nothing left
        to do.
        """
        return self.state == "done" and not self.hashes_lost

    @property
    def n_vocab(self) -> int | None:
        """Number of ids of the model. Losses per token of runs in which it differs are of
        different tokens."""
        model = self.run.get("model")
        return count_of(model.get("vocab_size")) if isinstance(model, dict) else None

    def as_json(self) -> dict[str, Any]:
        """What `hectogpt show --json` prints of the run."""
        names = [
            f.name for f in fields(self) if f.name not in ("folder", "run", "summary", "last_row")
        ]
        return {"folder": str(self.folder)} | {name: getattr(self, name) for name in names}

    def samples(self) -> dict[str, str]:
        """The continuations in the summary: how -> text."""
        samples = self.summary.get("samples")
        return (
            {how: s for how, s in samples.items() if isinstance(s, str)}
            if isinstance(samples, dict)
            else {}
        )

    def ngrams(self) -> dict[str, float]:
        """Held-out losses of the n-gram models."""
        losses = self.summary.get("ngrams")
        values = (
            {key: number_of(value) for key, value in losses.items()}
            if isinstance(losses, dict)
            else {}
        )
        return {key: value for key, value in values.items() if value is not None}


def read_record(folder: Path) -> RunRecord:
    """The record of a run's folder. Raises UserError (CHECKPOINT) naming the file that is not as a
    run leaves it, or whose hash is another one."""
    record = read_object(folder / RUN)
    summary = read_summary(folder)
    is_running = is_locked(folder / LOCK)
    run = run_of(folder, record)
    planned = count_of(run.get("steps"))
    taken = count_of(summary.get("steps"))
    state = text_of(summary.get("state")) or ("done" if summary else UNFINISHED)
    has_hashes = os.path.lexists(folder / MANIFEST)
    # The files of a run that is under way change between two looks.
    is_named = not has_hashes or is_running or check_hashes(folder, RUN, SUMMARY) == {RUN, SUMMARY}
    if not is_named or (state == "done" and planned not in (None, taken)):
        state = UNFINISHED
    if is_running:
        state = RUNNING
    under_way = state in (UNFINISHED, RUNNING)
    newest = 0.0
    with suppress(OSError):  # of a file that has gone since
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
    """The fix for a name that no run has: the run below ./runs whose name is most like it."""
    known = [path.parent.name for path in Path("runs").glob(f"*/{RUN}")]
    near = difflib.get_close_matches(Path(name).name, known, 1)
    return f"did you mean runs/{near[0]}?" if near else FIX


def locate_run(name: str) -> Path:
    """The folder of that name, as a path or below runs/. Raises UserError (CHECKPOINT) if there is
    none."""
    places = [Path(name).expanduser(), Path("runs", name)]
    folder = next((path for path in places if path.is_dir()), None)
    if folder is None:
        why = "there is no such folder"
        fix = nearest_run(name)
        raise UserError(f"no run in {name}", why=why, fix=fix, code=errors.CHECKPOINT)
    return folder


def run_of(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The fields of the Run in what run.json holds. Raises UserError (CHECKPOINT) if there are
    none.
    """
    run = record.get("run")
    if not isinstance(run, dict):
        why = 'it is not a run\'s record: it has no object "run"'
        raise UserError(f"cannot read {folder / RUN}", why=why, fix=FIX, code=errors.CHECKPOINT)
    return run


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json, {} without one. Raises UserError (CHECKPOINT)."""
    return read_object(folder / SUMMARY) if os.path.lexists(folder / SUMMARY) else {}


def find_runs(root: Path) -> tuple[list[RunRecord], list[str]]:
    """The runs below `root`, the oldest first, and a note for each one that cannot be read."""
    runs: list[RunRecord] = []
    notes: list[str] = []
    for path in root.rglob(RUN):
        try:
            runs.append(read_record(path.parent))
        except UserError as error:
            notes.append(f"{path.parent} is left out: {error.what}: {error.why}")
    return sorted(runs, key=lambda record: (record.written, str(record.folder))), sorted(notes)


# --- metrics.jsonl
# ---


def read_rows(path: Path, last: int = LARGEST_METRICS) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl that are whole and have a step, in its order, of its last so
    many bytes; none of a file that cannot be read. nan and infinity are None."""
    with suppress(OSError), open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - last))
        while line := file.readline(LONGEST_ROW):
            with suppress(ValueError):
                row = parse_json_object(line, nan_as_none=True)
                if line.endswith(b"\n") and count_of(row.get("step")) is not None:
                    yield row


def read_scores(path: Path) -> list[tuple[int, float]]:
    """(step, held-out loss) of the scores in a metrics.jsonl, in its order."""
    scores = [(row["step"], score_of(row)) for row in read_rows(path)]
    return [(step, loss) for step, loss in scores if loss is not None]


def score_of(row: dict[str, Any]) -> float | None:
    """The held-out loss of a row, nats per token; None for a row of a step."""
    return number_of(row.get("dev/loss"))


# --- checkpoints
# ---


class SavedCheckpoints:
    """The checkpoints in a folder, RUN/checkpoints, by the names and hashes of their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """The steps of which there are folders, whether valid or not; ascending. Links are
        none.
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
        """What is wrong with a step's checkpoint, "" if it is whole."""
        path = self.path(step)
        try:
            manifest = read_manifest(path)
        except UserError as error:
            return f"{error.what}: {error.why}"
        if (manifest.get("format"), manifest.get("step")) != (FORMAT, step):
            return f"{path}: its manifest is of another format or step"
        if STATE not in manifest["files"]:
            return f"{path}: its manifest does not name {STATE}"
        faults = damage(path, manifest).items()
        return next((f"{path / name}: {fault}" for name, fault in faults if fault), "")


# --- values
# ---


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a run's folder; nan and infinity, which JSON lacks, are None. Raises
    UserError (CHECKPOINT).
    """
    return read_json_object(path, nan_as_none=True, fix=FIX)


def text_of(value: Any) -> str | None:
    """The value if it is a string that is not empty."""
    return value if isinstance(value, str) and value else None


def number_of(value: Any) -> float | None:
    """The value if it is a number from -10^15 to 10^15, which can be drawn."""
    return value if type(value) in (int, float) and abs(value) <= 1e15 else None


def count_of(value: Any) -> int | None:
    """The value if it is a whole number from 0 to 10^15."""
    return value if type(value) is int and 0 <= value <= 10**15 else None
