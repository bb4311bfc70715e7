"""The folder that a training run leaves behind, readable without this program.

- run.json: the run as requested, and the device, dtypes and threads chosen for it.
- metrics.jsonl: a line for each step, written as it happens.
- checkpoints/: the state to resume from.
- losses_and_grad_norms.png: the picture.
- model.safetensors with config.json: the trained model.
- summary.json: the results; its presence means that the run has ended.
- manifest.json: hashes of all these files, written last.
- merges.txt: the vocabulary, if the text has its own.
- idea.py: a copy of the user's own file, if the run uses one. It is never imported unless the user
  asks for it.

Only one process at a time holds the folder, through a lock on the file .lock. The kernel frees the
lock when the process ends, even if it is killed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from hectogpt import errors, files
from hectogpt.data import Tokenizer
from hectogpt.data.tokenizer import MERGES
from hectogpt.errors import CheckpointError, SetTo, UserError
from hectogpt.files import (
    MANIFEST,
    check_hashes,
    read_json_object,
    write_atomic,
    write_json,
    write_manifest,
)
from hectogpt.idea_file import IdeaFile
from hectogpt.model.weights import save_config
from hectogpt.run_records import (
    CHECKPOINTS,
    FIX,
    HASH,
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
from hectogpt.serialization import dump, load
from hectogpt.training.checkpoint import Checkpoints
from hectogpt.training.loop import Step
from hectogpt.training.run import Run, load_run

TRAINED = (RUN, "config.json", "model.safetensors", MERGES)  # final once a run is trained
OURS = (*TRAINED, METRICS, SUMMARY, PICTURE)  # the last three change with scoring
WRITABLE = "free some space there, or choose a folder that you may write to"


@dataclass(frozen=True)
class Branch:
    """The start of a run that branches off a different one, its trunk.

    Attributes:
        run: the trunk's folder.
        step: the step of the trunk after which the branch begins.
        weights_hash: the hash of the trunk's weights after that step; "" if none is recorded.
    """

    run: str
    step: int
    weights_hash: str = ""


@dataclass(eq=False)
class RunFolder:
    """A run folder that this process holds. Use as a context manager.

    Attributes:
        path: the folder.
        run: the run.
        modified: True if the run differs from its recipe.
        held: the lock and open files, closed on exit.
        locked: False if the file system has no locks.
        processes: how many processes share the run.
        saving: the checkpoint settings of the run's first command, for run.json.
        branch: where the run begins, if it is a branch.
        facts: entries of summary.json in addition to the result's numbers.
    """

    path: Path
    run: Run
    modified: bool
    held: ExitStack
    locked: bool
    processes: int = 1
    saving: dict[str, Any] = field(default_factory=dict)
    branch: Branch | None = None
    _metrics: TextIO | None = None

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.path / CHECKPOINTS)
        self.facts: dict[str, Any] = {"modified": self.modified, "folder": str(self.path)}

    @classmethod
    def create(
        cls,
        run: Run,
        modified: bool,
        name: str,
        out: Path | None = None,
        branch: Branch | None = None,
    ) -> RunFolder:
        """Take a folder for a new run: `out`, or the first free one of runs/name, runs/name-2 ...

        The folder is locked and its run.json is written. So two runs that start together never
        share a folder, provided that the file system has locks.

        Args:
            run: the run.
            modified: True if the run differs from its recipe.
            name: the folder's name below runs/.
            out: the folder to take instead.
            branch: where the run begins, if it is a branch.

        Raises UserError if the folder holds a run (LOCKED if that run is in progress) or other
        files with the names of a run's, or if it cannot be written (STORAGE).
        """
        if out is None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise UserError(f"{name!r} cannot be a folder's name", fix=SetTo("out", "a folder"))
        found = [RUN]
        free = (Path("runs", f"{name}-{n}".removesuffix("-1")) for n in range(1, 10000))
        for path in [out] if out else free:
            with ExitStack() as held:
                try:
                    path.mkdir(parents=True, exist_ok=out is not None or _is_abandoned(path))
                    locked = _take(path, held)
                    found = [one for one in (*OURS, MANIFEST) if (path / one).is_file()]
                    if not found:
                        record = {"run": dump(run), "modified": modified}
                        record |= {"branch": dump(branch)}
                        write_json(path / RUN, record)
                        files.sync_folder(path.parent)
                        return cls(path, run, modified, held.pop_all(), locked, branch=branch)
                except OSError as error:
                    # If the folder exists, the next name is tried.
                    if out is not None or not isinstance(error, FileExistsError):
                        raise errors.unwritable(path, error, fix=WRITABLE) from None
                except UserError as error:
                    if out is not None or error.code != errors.LOCKED:
                        raise
        path = out or Path("runs", name)
        raise UserError(
            f"{path} already holds a run or a model",
            why=f"it has {', '.join(found)}",
            fix=(SetTo("resume", path), ", or ", SetTo("out", f"{path}-2"))[
                2 * (RUN not in found) :
            ],
            kept="what is there, untouched",
        )

    @classmethod
    def reopen(cls, path: Path, run: Run) -> RunFolder:
        """Take the folder of an existing run, to resume it as `run`.

        Raises UserError: LOCKED if the run is in progress, STORAGE if the folder cannot be
        written, CHECKPOINT if links stand in for files.
        """
        with ExitStack() as held:
            with errors.writing(path, fix=WRITABLE):
                locked = _take(path, held)
            modified = read_object(path / RUN).get("modified") is True
            branch = read_branch(path)
            folder = cls(path, run, modified, held.pop_all(), locked, branch=branch)
        folder.checkpoints.remove_leftovers()
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.held.close()

    def start(
        self,
        facts: Mapping[str, Any],
        ideas: Sequence[IdeaFile],
        tokenizer: Tokenizer,
        rows: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Write the files that a run starts with, and open metrics.jsonl.

        They are run.json with the choices made for this machine, copies of the user's own files,
        and the text's vocabulary (unless it is GPT-2's), so that the folder's model can be used
        without the text. A summary from an earlier end of the run is removed.

        Args:
            facts: entries of run.json about the machine and the initial weights.
            ideas: the user's own files that the run uses.
            tokenizer: the text's tokenizer.
            rows: the first rows of metrics.jsonl, which a branch takes from its trunk.

        Raises UserError (STORAGE).
        """
        self.unseal()
        (self.path / SUMMARY).unlink(missing_ok=True)
        copies = self._write_sources(ideas, tokenizer)
        record = {"modified": self.modified, "saving": self.saving, **facts}
        record |= {"ideas": copies} if copies else {}
        self._write_record(record)
        self._open_metrics([row | self._names() for row in rows])

    def _write_sources(
        self, ideas: Sequence[IdeaFile], tokenizer: Tokenizer
    ) -> list[dict[str, str]]:
        """Write copies of the user's own files, and the vocabulary.

        Returns the entries of run.json for the copies.
        """
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
        """Remove damaged files, and rewrite those that follow from the run itself.

        These are config.json, the vocabulary, copies of the user's own files, and the intact rows
        of metrics.jsonl. The manifest is removed.

        Args:
            damaged: the files and checkpoint folders to remove.
            ideas: the user's own files that the run uses.
            tokenizer: the text's tokenizer.

        Raises UserError (STORAGE).
        """
        with errors.writing(self.path, fix=WRITABLE):
            for path in damaged:
                if path.parent != self.path:  # a checkpoint's folder
                    files.remove_folder(path)
                elif path.name not in (RUN, METRICS):
                    path.unlink(missing_ok=True)
            (self.path / MANIFEST).unlink(missing_ok=True)
        copies = self._write_sources(ideas, tokenizer)
        if copies:
            self._write_record(read_object(self.path / RUN) | {"ideas": copies})
        save_config(self.run.model, self.path)
        self._open_metrics(list(read_rows(self.path / METRICS)))

    def resume(
        self,
        done: Sequence[Step],
        differences: Sequence[str],
        hashes: Mapping[int, str] | None = None,
    ) -> None:
        """Resume after the steps `done`.

        The rows of these steps in metrics.jsonl are rewritten from the checkpoint, and rows of
        later steps are removed. A summary is kept only if it says that the run was done after
        exactly these steps.

        Args:
            done: the steps that the checkpoint has.
            differences: how the machine differs from the one on which the run began, for run.json.
            hashes: step -> hash of the weights after it.
        """
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
        # The old rows also have an idea's own numbers.
        taken = {row["step"]: row for row in old if "train/loss" in row}
        known = {step: {HASH: found} for step, found in (hashes or {}).items()}
        rows = [
            taken.get(step.number, {})
            | self._names()
            | step_row(step)
            | known.get(step.number, {})
            for step in done
        ]
        # The sort is stable: a score follows the row of its step.
        self._open_metrics(sorted(rows + scores, key=lambda row: row["step"]))

    def _write_record(self, record: dict[str, Any]) -> None:
        record |= {"run": dump(self.run), "sharing": {"processes": self.processes}}
        record |= {"branch": dump(self.branch)}
        write_json(self.path / RUN, record)

    def _open_metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        write_atomic(
            self.path / METRICS, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        )
        # Errors on closing are ignored: a failed write has already raised.
        self.held.enter_context(suppress(OSError))
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
        assert self._metrics is not None, "start() first"
        with errors.writing(self.path / METRICS, fix=WRITABLE):
            self._metrics.write(json.dumps(self._names() | row, allow_nan=False) + "\n")

    def _names(self) -> dict[str, Any]:
        """The first fields of every row of metrics.jsonl."""
        return {"run": self.path.name, "recipe": self.run.recipe, "seed": self.run.seed}

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, with the collected facts, then the manifest of all files."""
        write_json(self.path / SUMMARY, summary | self.facts)
        self.seal(OURS)

    def seal(self, kinds: Sequence[str]) -> None:
        """Write the manifest: hashes of the `kinds` that exist and of copies of the user's files.

        Checkpoints have manifests of their own.
        """
        names = [name for name in kinds if (self.path / name).is_file()]
        with errors.writing(self.path, fix=WRITABLE):
            self.sync_metrics()
            write_manifest(self.path, sorted([*names, *copies_in(self.path)]), {})

    def unseal(self, *kept: str) -> None:
        """Remove the manifest, because a file that it names is about to be replaced.

        Args:
            kept: names of files that will not be replaced. They must match the manifest, because a
                new manifest would hide damage. So must run.json, the vocabulary and the copies of
                the user's own files.

        Raises UserError (CHECKPOINT, STORAGE).
        """
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
    """The Run of a run folder, from its run.json.

    Raises UserError (CHECKPOINT), which names the field that does not fit.
    """
    fields = run_of(folder, read_json_object(folder / RUN, fix=FIX))
    try:
        return load_run(fields)
    except UserError as error:
        what = f"{folder / RUN}: {error.what}"
        raise CheckpointError(what, why=error.why, fix=error.fix) from None


def read_branch(folder: Path) -> Branch | None:
    """Return where the run in a folder branches off its trunk, or None if it is not a branch.

    Raises UserError (CHECKPOINT).
    """
    record = read_object(folder / RUN).get("branch")
    try:
        branch: Branch | None = load(Branch | None, record, f"{folder / RUN}: branch")
    except UserError as error:
        error.code = errors.CHECKPOINT
        raise
    return branch


def read_steps(folder: Path) -> list[Step]:
    """The steps in metrics.jsonl, up to the first one that is missing or damaged.

    Returns [] if there is no such file.
    """
    found: list[Step] = []
    for row in read_rows(folder / METRICS):
        if "train/loss" not in row:
            continue
        numbers = [row.get(f"train/{name}") for name in ("loss", "grad_norm", "lr", "dt")]
        sound = all(isinstance(number, float) for number in numbers)
        if not sound or not isinstance(row.get("tokens"), int) or row["step"] != len(found) + 1:
            break
        own = row["tokens"] - (found[-1].tokens if found else 0)
        found.append(Step(len(found) + 1, row["tokens"], *numbers, own))  # type: ignore[call-arg,arg-type]
    return found


def copies_in(folder: Path) -> list[str]:
    """The names of the copies of the user's own files in a run folder."""
    return [path.name for path in folder.glob("idea*.py")]


def _take(path: Path, held: ExitStack) -> bool:
    """Lock a run's folder for as long as `held` is open. Return True if the file system has locks.

    Links are refused, and files that a killed process was writing are removed. Raises UserError
    (LOCKED, CHECKPOINT).
    """
    with errors.writing(path / LOCK, fix=WRITABLE):
        locked = held.enter_context(files.lock(path / LOCK, path, "training in it"))
    for odd, why in files.odd_entries(path).items():
        fix = f"remove {odd}, or put the file or folder itself in its place"
        raise CheckpointError(f"cannot use {odd}", why=why, fix=fix)
    _remove_leftovers(path)
    return locked


def _is_abandoned(path: Path) -> bool:
    """True if a process was killed in this folder before it wrote the run's first file."""
    return path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir())


def _remove_leftovers(path: Path) -> None:
    """Remove the files that a killed process was writing. The caller holds the folder's lock."""
    ours = r"\.[A-Za-z0-9_.]+\.(json|jsonl|png|safetensors|py|txt)\.\d+"
    of_safetensors = r"\.tmp[A-Za-z0-9]{6}"
    for leftover in path.glob(".*"):
        if re.fullmatch(f"{ours}|{of_safetensors}", leftover.name) and not leftover.is_dir():
            leftover.unlink(missing_ok=True)
