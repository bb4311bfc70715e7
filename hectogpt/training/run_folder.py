"""The folder that a training run leaves behind, readable without this program.

run.json (what was asked and what the machine chose), metrics.jsonl (a line a step, written as it
happens), checkpoints/ (the state to go on from), losses_and_grad_norms.png, model.safetensors with
config.json, summary.json (its presence means that the run came to an end), manifest.json (hashes
of all these, written last). A run on a text with a vocabulary of its own has it in merges.txt. A
run that comes from the user's own file has a copy of it, idea.py, which nothing ever imports
unasked.

One process at a time holds the folder, by a lock on .lock that the kernel frees when the process
ends, however it does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from hectogpt import errors, files
from hectogpt.data import Tokenizer
from hectogpt.data.tokenizer import MERGES
from hectogpt.errors import UserError, set_to
from hectogpt.files import write_atomic
from hectogpt.idea_file import IdeaFile
from hectogpt.json_files import MANIFEST, check_hashes, read_json_object, write_manifest
from hectogpt.model.weights import save_config
from hectogpt.run_records import (
    CHECKPOINTS,
    FIX,
    LOCK,
    METRICS,
    PICTURE,
    RUN,
    SUMMARY,
    read_object,
    read_rows,
    read_summary,
    run_of,
)
from hectogpt.serialization import dump
from hectogpt.training.checkpoint import Checkpoints
from hectogpt.training.loop import Step
from hectogpt.training.precision import Machine
from hectogpt.training.run import Run, load_run

TRAINED = (RUN, "config.json", "model.safetensors", MERGES)  # as they stay once a run is trained
OURS = (*TRAINED, METRICS, SUMMARY, PICTURE)  # which scoring still changes
WRITABLE = "free some space there, or choose a folder that you may write to"


@dataclass(eq=False)
class RunFolder:
    """A run folder that this process holds. Use as a context manager.

    facts: what its summary says beside the result's numbers. processes: how many share the run.
    saving: which checkpoints its first command asked for, for run.json. locked: False where the
    file system has no locks.
    """

    path: Path
    run: Run
    modified: bool
    held: ExitStack
    locked: bool
    processes: int = 1
    saving: dict[str, Any] = field(default_factory=dict)
    _metrics: TextIO | None = None

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.path / CHECKPOINTS)
        self.facts: dict[str, Any] = {"modified": self.modified, "folder": str(self.path)}

    @classmethod
    def create(cls, run: Run, modified: bool, name: str, out: Path | None = None) -> RunFolder:
        """Take a folder for a new run: `out`, or runs/name, runs/name-2 ...

        The folder is locked, and its run.json written if there is none: two runs that start
        together never share one where the file system has locks. Raises UserError for a folder
        that holds a run (LOCKED if that is under way) or cannot be written (STORAGE)."""
        if out is None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise UserError(f"{name!r} cannot be a folder's name", fix=set_to("out", "a folder"))
        names = [name, *(f"{name}-{n}" for n in range(2, 10000))]
        for path in [out] if out is not None else [Path("runs", name) for name in names]:
            with ExitStack() as held:
                try:
                    path.mkdir(parents=True, exist_ok=out is not None or _is_abandoned(path))
                    locked = _take(path, held)
                    if not (path / RUN).exists():
                        with files.replacing(path / RUN) as new:
                            new.write_text(
                                _render({"run": dump(run), "modified": modified}), encoding="utf-8"
                            )
                        files.sync_folder(path.parent)
                        return cls(path, run, modified, held.pop_all(), locked)
                except OSError as error:
                    if out is not None or not isinstance(
                        error, FileExistsError
                    ):  # the next name then
                        raise errors.unwritable(path, error, fix=WRITABLE) from None
                except UserError as error:
                    if out is not None or error.code != errors.LOCKED:
                        raise
        path = out or Path("runs", name)
        raise UserError(
            f"{path} already holds a run",
            why=f"it has a {RUN}",
            fix=f"{set_to('resume', path)}, or {set_to('out', f'{path}-2')}",
            kept="the old run, untouched",
        )

    @classmethod
    def reopen(cls, path: Path, run: Run) -> RunFolder:
        """Take the folder of a run that is there, to resume it as `run`. Raises UserError: LOCKED
        if it is under way, STORAGE for a folder that cannot be written, CHECKPOINT for one with
        links in the place of its files."""
        with ExitStack() as held:
            with errors.writing(path, fix=WRITABLE):
                locked = _take(path, held)
            modified = read_object(path / RUN).get("modified") is True
            folder = cls(path, run, modified, held.pop_all(), locked)
        folder.checkpoints.remove_leftovers()
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.held.close()

    def begin(self, machine: Machine, ideas: Sequence[IdeaFile], tokenizer: Tokenizer) -> None:
        """Write what the run is made of: what the machine chose, copies of the user's own files,
        and the vocabulary of the text if it is not GPT-2's, so that the folder's model can be used
        without it. Take away how the run ended before, if it did, and open metrics.jsonl. Raises
        UserError (STORAGE)."""
        self.unseal()
        (self.path / SUMMARY).unlink(missing_ok=True)
        copies = self._write_sources(ideas, tokenizer)
        record = {"modified": self.modified, "machine": machine.describe(), "saving": self.saving}
        record |= {"ideas": copies} if copies else {}
        self._write_record(record)
        self._open_metrics([])

    def _write_sources(
        self, ideas: Sequence[IdeaFile], tokenizer: Tokenizer
    ) -> list[dict[str, str]]:
        """Write copies of the user's own files, and the vocabulary. Returns what run.json says of
        the copies."""
        copies = []
        for number, idea in enumerate(ideas, start=1):
            name = "idea.py" if number == 1 else f"idea_{number}.py"
            idea.keep(self.path / name)
            copies.append({"file": name, "path": str(idea.path), "sha256": idea.sha256})
        if not tokenizer.is_gpt2:
            write_atomic(self.path / MERGES, tokenizer.merges + b"\n")
        return copies

    def restore(
        self, damaged: Iterable[Path], ideas: Sequence[IdeaFile], tokenizer: Tokenizer
    ) -> None:
        """Remove damaged files, and write again those that the run itself gives: config.json, the
        vocabulary, copies of the user's own files, and the rows of metrics.jsonl that are whole.
        The manifest goes. Raises UserError (STORAGE)."""
        with errors.writing(self.path, fix=WRITABLE):
            for path in damaged:
                if path.parent != self.path:  # a checkpoint
                    files.remove_folder(path)
                elif path.name not in (RUN, METRICS):
                    path.unlink(missing_ok=True)
            (self.path / MANIFEST).unlink(missing_ok=True)
        copies = self._write_sources(ideas, tokenizer)
        if copies:
            self._write_record(read_object(self.path / RUN) | {"ideas": copies})
        save_config(self.run.model, self.path)
        self._open_metrics(list(read_rows(self.path / METRICS)))

    def begin_again(self, done: Sequence[Step], differences: Sequence[str]) -> None:
        """Resume after the steps `done`. Their rows in metrics.jsonl are written again as the
        checkpoint has them, and those of later steps go. run.json gets what differs from the
        machine on which the run began. A summary stays only if it is of the end of these steps."""
        record = read_object(self.path / RUN)
        summary = read_summary(self.path)
        self.unseal()
        if (summary.get("state", "done"), summary.get("steps")) != ("done", len(done)):
            (self.path / SUMMARY).unlink(missing_ok=True)
        again = record.get("resumed")
        resumed = [
            *(again if isinstance(again, list) else []),
            {"step": len(done), "differences": list(differences)},
        ]
        self._write_record(record | {"resumed": resumed})
        old = list(read_rows(self.path / METRICS))
        scores = [
            row
            for row in old
            if "train/loss" not in row and row["step"] < min(len(done) + 1, self.run.steps)
        ]
        taken = {
            row["step"]: row for row in old if "train/loss" in row
        }  # which have an idea's own numbers, too
        rows = [taken.get(step.number, {}) | self._names() | step_row(step) for step in done]
        self._open_metrics(
            sorted(rows + scores, key=lambda row: row["step"])
        )  # a score follows the row of its step

    def _write_record(self, record: dict[str, Any]) -> None:
        record |= {"run": dump(self.run), "sharing": {"processes": self.processes}}
        write_atomic(self.path / RUN, _render(record))

    def _open_metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        write_atomic(
            self.path / METRICS, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        )
        self.held.enter_context(
            suppress(OSError)
        )  # of closing: what could not be written has been raised already
        with errors.writing(self.path, fix=WRITABLE):
            metrics = open(  # noqa: SIM115
                self.path / METRICS, "a", encoding="utf-8", buffering=1, opener=files.regular
            )
            self._metrics = self.held.enter_context(metrics)

    def sync_metrics(self) -> None:
        """Wait until the rows written so far are on disk. Raises OSError."""
        if self._metrics is not None:
            files.sync(self._metrics.fileno())

    def add(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        assert self._metrics is not None, "begin() first"
        with errors.writing(self.path / METRICS, fix=WRITABLE):
            self._metrics.write(json.dumps(self._names() | row, allow_nan=False) + "\n")

    def _names(self) -> dict[str, Any]:
        """What every row of metrics.jsonl begins with."""
        return {"run": self.path.name, "recipe": self.run.recipe, "seed": self.run.seed}

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, with what else is known of the run, then the manifest of all
        files.
        """
        write_atomic(self.path / SUMMARY, _render(summary | self.facts))
        self.seal(OURS)

    def seal(self, kinds: Sequence[str]) -> None:
        """Write the manifest: the hashes of the files of these names that are there, and of the
        user's own files. Checkpoints have manifests of their own."""
        names = [name for name in kinds if (self.path / name).is_file()]
        with errors.writing(self.path, fix=WRITABLE):
            self.sync_metrics()
            write_manifest(self.path, sorted([*names, *copies_in(self.path)]), {})

    def unseal(self, *kept: str) -> None:
        """Remove the manifest: a file that it names is about to be replaced.

        kept: names of files that are not. They are as the manifest has them, or a new one would
        hide the damage; so are run.json, the vocabulary and the user's own files. Raises UserError
        (CHECKPOINT, STORAGE)."""
        if (self.path / MANIFEST).exists():
            check_hashes(self.path, RUN, MERGES, *copies_in(self.path), *kept)
        with errors.writing(self.path, fix=WRITABLE):
            (self.path / MANIFEST).unlink(missing_ok=True)


def step_row(step: Step) -> dict[str, Any]:
    """A step as a row of metrics.jsonl."""
    return {
        "step": step.number,
        "tokens": step.tokens,
        "train/loss": step.loss,
        "train/grad_norm": step.grad_norm,
        "train/lr": step.lr,
        "train/dt": step.seconds,
        "train/tok_per_sec": step.own_tokens / step.seconds,
    }


def read_run(folder: Path) -> Run:
    """The Run of a run folder, from its run.json. Raises UserError (CHECKPOINT) that names what
    does not fit.
    """
    fields = run_of(folder, read_json_object(folder / RUN, fix=FIX))
    try:
        return load_run(fields)
    except UserError as error:
        what = f"{folder / RUN}: {error.what}"
        raise UserError(what, why=error.why, fix=error.fix, code=errors.CHECKPOINT) from None


def read_steps(folder: Path) -> list[Step]:
    """The steps that metrics.jsonl has, from the first up to one that is missing or damaged. []
    without the file.
    """
    found: list[Step] = []
    for row in read_rows(folder / METRICS):
        if "train/loss" not in row:
            continue
        loss, norm, lr, seconds = (
            row.get(f"train/{name}") for name in ("loss", "grad_norm", "lr", "dt")
        )
        sound = all(isinstance(number, float) for number in (loss, norm, lr, seconds))
        if not sound or not isinstance(row.get("tokens"), int) or row["step"] != len(found) + 1:
            break
        own = row["tokens"] - (found[-1].tokens if found else 0)
        found.append(Step(len(found) + 1, row["tokens"], loss, norm, lr, seconds, own))  # type: ignore[arg-type]
    return found


def copies_in(folder: Path) -> list[str]:
    """The names of the copies of the user's own files."""
    return [path.name for path in folder.glob("idea*.py")]


def _take(path: Path, held: ExitStack) -> bool:
    """Lock a run's folder for as long as `held` is open. Returns whether the file system has
    locks.

    Links are refused, and files that a killed process was writing are removed. Raises UserError
    (LOCKED, CHECKPOINT)."""
    with errors.writing(path / LOCK, fix=WRITABLE):
        locked = held.enter_context(files.lock(path / LOCK, path, "training in it"))
    for odd, why in files.odd_entries(path).items():
        fix = f"remove {odd}, or put the file or folder itself in its place"
        raise UserError(f"cannot use {odd}", why=why, fix=fix, code=errors.CHECKPOINT)
    _remove_leftovers(path)
    return locked


def _is_abandoned(path: Path) -> bool:
    """True for a folder in which a process was killed before it could write the run's first
    file.
    """
    return path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir())


def _remove_leftovers(path: Path) -> None:
    """Remove the files that a killed process was writing. Call it under the folder's lock."""
    ours = r"\.[A-Za-z0-9_.]+\.(json|jsonl|png|safetensors|py|txt)\.\d+"
    of_safetensors = r"\.tmp[A-Za-z0-9]{6}"
    for leftover in path.glob(".*"):
        if re.fullmatch(f"{ours}|{of_safetensors}", leftover.name) and not leftover.is_dir():
            leftover.unlink(missing_ok=True)


def _render(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2, allow_nan=False) + "\n"
