"""Checkpoints on disk: each a folder step-N with state.safetensors and a manifest of hashes and facts.

Saving writes a temporary folder beside the others, waits until it is on disk, and gives it its name by one rename;
only then are old ones removed. Loading takes the newest one whose hashes are right. A kill, a loss of power or a full
disk at any moment therefore leaves the checkpoint before or the new one. No file is unpickled.

The facts name run, text and machine, which are compared with what is here.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hectogpt import errors, files
from hectogpt.errors import UserError
from hectogpt.json_files import read_manifest, write_manifest
from hectogpt.model.weights import check_header
from hectogpt.run_records import (
    FORMAT,
    KEEP,
    MOST_STATE_TENSORS,
    STATE,
    checkpoint_folder,
    checkpoint_problem,
    checkpoint_steps,
)
from hectogpt.training.run import PARTS, Run, changes, load_run
from hectogpt.training.state import State


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps. step: how many are done. history: float64 [step, columns], a row for every step. facts:
    what it was made with, plain values. path: its folder, if it was read from one."""

    step: int
    state: State
    history: Tensor
    facts: dict[str, Any]
    path: Path | None = None


def _describe(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Name -> dtype and shape, as a manifest has them."""
    return {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}


class Checkpoints:
    """The checkpoints in a folder, which only one process at a time may write: the caller holds a lock on it."""

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """The steps of which there are folders, whether valid or not; ascending."""
        return checkpoint_steps(self.folder)

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return checkpoint_folder(self.folder, step)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, on disk when this returns, then remove the oldest of more than `keep`.

        A valid one of this step stays as it is. Raises UserError (STORAGE); what was there before is then still there,
        and nothing of the new one.
        """
        tensors, step = checkpoint.state.tensors | {"history": checkpoint.history}, checkpoint.step
        path = self.path(step)
        new = files.temporary_folder(path)
        try:
            if path.exists() and not self.problem(step):
                files.sync_folder(self.folder)  # an attempt that failed or was killed may have left it so
            else:
                self.remove_leftovers()
                new.mkdir(parents=True)
                files.sync_folder(self.folder.parent)
                save_file(tensors, new / STATE)
                files.allow_others(new / STATE)
                files.sync_file(new / STATE)
                content = {"format": FORMAT, "step": step, "tensors": _describe(tensors)}
                content |= {"values": checkpoint.state.values, "facts": checkpoint.facts}
                write_manifest(new, [STATE], content)
                files.replace_folder(new, path)
            self._prune(step)
        except (OSError, SafetensorError, UserError) as error:
            needed, why = sum(t.nbytes for t in tensors.values()), error.why if isinstance(error, UserError) else error
            before = [other for other in self.steps() if other != step]
            with suppress(OSError):
                why = f"{why}: it takes {needed:,} bytes, {files.free_bytes(self.folder):,} are free"
            raise UserError(
                f"the checkpoint of step {step} could not be saved in {self.folder}",
                why=str(why),
                fix="free some space on that disk, or another folder for the run",
                kept=f"the checkpoint of step {before[-1]}" if before else "",
                code=errors.STORAGE,
            ) from None
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _prune(self, step: int) -> None:
        """Remove all but the newest `keep` up to this step, and those of later steps: they were damaged, or the run was
        taken back to an earlier step."""
        steps = self.steps()
        kept = [known for known in steps if known <= step][-self.keep :]
        for other in [other for other in steps if other not in kept]:
            files.remove_folder(self.path(other))

    def remove_leftovers(self) -> None:
        """Remove what killed processes have left of saving and removing."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                match = re.fullmatch(r"\.(step-\d{8,})\.(new|old)-\d+", path.name)
                if match:
                    files.remove_leftovers(self.folder / match[1])

    def remove(self) -> None:
        """Remove all, and their folder."""
        with suppress(OSError):
            for step in self.steps():
                files.remove_folder(self.path(step))
            self.folder.rmdir()

    def problem(self, step: int) -> str:
        """What is wrong with a step's checkpoint, "" if it is whole."""
        return checkpoint_problem(self.folder, step)

    def load(self, step: int) -> Checkpoint:
        """Read a step's checkpoint after all its hashes are checked. Raises UserError (CHECKPOINT)."""
        path = self.path(step)
        if problem := self.problem(step):
            what = f"the checkpoint of step {step} is damaged"
            raise UserError(what, why=problem, fix=self._advice(step), code=errors.CHECKPOINT)
        manifest = read_manifest(path)
        try:
            header, tensors = check_header(path / STATE, MOST_STATE_TENSORS), load_file(path / STATE)
            if _describe(tensors) != manifest["tensors"] or header.keys() != tensors.keys():
                raise ValueError("its tensors are not those that its manifest names")
            history = tensors.pop("history")
            if history.shape[0] != step:
                raise ValueError(f"it holds {history.shape[0]} steps, and there should be {step}")
            state, facts = State(tensors, dict(manifest["values"])), dict(manifest["facts"])
            return Checkpoint(step, state, history, facts, path)
        except (OSError, SafetensorError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            what = f"the checkpoint of step {step} cannot be read"
            raise UserError(what, why=str(error), fix=self._advice(step), code=errors.CHECKPOINT) from None

    def _advice(self, step: int) -> str:
        others = [str(other) for other in self.steps() if other != step and not self.problem(other)]
        return f"valid are those of steps {', '.join(others)}" if others else ""

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there never was one.

        warn: is called with a line if newer ones are damaged. Raises UserError
        (CHECKPOINT) if there are checkpoints and all are damaged: starting again unasked would look like going on.
        """
        steps = self.steps()
        problems = []
        for step in reversed(steps):
            try:
                found = self.load(step)
            except UserError as error:
                problems.append(f"{error.what}: {error.why}")
                continue
            if problems:
                warn(f"{problems[0]}; going on from step {step}, and the steps after it are computed again")
            return found
        if not steps:
            return None
        raise UserError(
            f"every checkpoint in {self.folder} is damaged",
            why="; ".join(problems),
            fix=f"a copy of one of them; to start the run from its first step, remove {self.folder}",
            kept="all files, untouched",
            code=errors.CHECKPOINT,
        )


PACKAGE = Path(__file__).resolve().parents[1]
COMPUTES = ("data", "kernels", "model", "training")  # the layers whose code decides what a step computes


@cache
def code_hash() -> str:
    """The hash of the code that decides what a step computes, as it was when this process first asked."""
    return files.code_hash([PACKAGE / layer for layer in COMPUTES])


def file_hashes() -> dict[str, str]:
    """The beginning of the SHA-256 of each file of that code, by its path in the package."""
    paths = [path for layer in COMPUTES for path in files.code_files(PACKAGE / layer)]
    return {p.relative_to(PACKAGE).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()[:12] for p in paths}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the facts of a checkpoint is not as it is now, so that bits may differ; in words."""
    data = (facts.get("run", {}).get("data", {}) for facts in (then, now))
    parts = ({name: its.get(name) for name in PARTS} for its in data)
    before, here = (facts.get("machine", {}) | its for facts, its in zip((then, now), parts, strict=True))
    return [f"{name} {before.get(name)} -> {value}" for name, value in here.items() if value != before.get(name)]


def check_fits(step: int, run: Run, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse the checkpoint of another run (CHECKPOINT) or of another text (DATA). A run may have more steps than its
    checkpoint says if that is its last one: it is being extended."""
    before, kept = load_run(then.get("run")), "the run, untouched"
    if before.steps != run.steps and not step == before.steps < run.steps:
        raise UserError(
            f"the checkpoint of step {step} is of a run of {before.steps} steps",
            why=f"steps = {run.steps}, and learning rates depend on it",
            fix=f"set steps in run.json to {before.steps}, or go on from the checkpoint of another step",
            kept=kept,
            code=errors.CHECKPOINT,
        )
    if changed := changes(replace(before, steps=run.steps), run):
        what = f"the checkpoint of step {step} is another run's"
        raise UserError(what, why="; ".join(changed[:3]), kept=kept, code=errors.CHECKPOINT)
    texts = ("corpus_sha256", "tokenizer_sha256")
    if changed := [name for name in texts if then.get(name) != now[name]]:
        what = f"the text is not the one that the run has read so far (corpus {now['corpus']})"
        why = f"{' and '.join(changed)} was another one"
        raise UserError(what, why=why, fix="the old text, or a new run", kept=kept, code=errors.DATA)
