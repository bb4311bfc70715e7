"""Checkpoints on disk: each a folder step-N with state.safetensors, or with a file of each process that shared the run
(sharded_checkpoint.py writes those), and a manifest of hashes.

Saving writes a temporary folder beside the others, waits until it is on disk, and gives it its name by one rename;
only then are old ones removed. Loading takes the newest one whose hashes are right. A kill, a loss of power or a full
disk at any moment therefore leaves the checkpoint before or the new one. No file is unpickled.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import (
    allow_others,
    free_bytes,
    remove_folder,
    remove_leftovers,
    replace_folder,
    sync_file,
    sync_folder,
    temporary_folder,
)
from hectogpt.manifest import damage, read_manifest, write_manifest
from hectogpt.model.safetensors_header import check_header
from hectogpt.training.checkpoint_parts import MOST_TENSORS, PartFiles
from hectogpt.training.state import State

FOLDER, STATE = "checkpoints", "state.safetensors"
FORMAT, SHARDED = 1, 2  # of the manifest: of one file, and of several with parts
KEEP = 3  # the newest, one spare for damage to it, one for a step that went wrong unnoticed
NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps. step: how many are done. history: float64 [step, columns], a row for every step. facts:
    what it was made with, plain values. path: its folder, if it was read from one. parts: its files, if what optimizers
    keep for each parameter is to be read from them by all processes, and its state has only the forms of that."""

    step: int
    state: State
    history: Tensor
    facts: dict[str, Any]
    path: Path | None = None
    parts: PartFiles | None = None


def describe(checkpoint: Checkpoint, form: int) -> dict[str, Any]:
    """What the manifest of a checkpoint holds, hashes aside: names, dtypes and shapes of tensors, values and facts."""
    tensors = checkpoint.state.tensors | {"history": checkpoint.history}
    described = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}
    content = {"format": form, "step": checkpoint.step, "tensors": described}
    return content | {"values": checkpoint.state.values, "facts": checkpoint.facts}


class Checkpoints:
    """The checkpoints in a folder, which only one process at a time may write: the caller holds a lock on it."""

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """The steps of which there are folders, whether valid or not; ascending."""
        found = [NAME.fullmatch(path.name) for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, on disk when this returns, then remove the oldest of more than `keep`.

        A valid one of this step stays as it is. Raises UserError (STORAGE); what was there before is then still there,
        and nothing of the new one.
        """
        tensors = checkpoint.state.tensors | {"history": checkpoint.history}
        with self.replacing(checkpoint.step, sum(t.nbytes for t in tensors.values())) as new:
            if new is not None:
                save_file(tensors, new / STATE)
                allow_others(new / STATE)
                sync_file(new / STATE)
                write_manifest(new, [STATE], describe(checkpoint, FORMAT))

    @contextmanager
    def replacing(self, step: int, needed: int) -> Iterator[Path | None]:
        """A temporary folder, in which the caller writes and syncs a step's checkpoint of `needed` bytes; at the end it
        gets its name, and the oldest of more than `keep` are removed. None if there is a valid one of this step.

        Raises UserError (STORAGE), also for what the caller raises of OSError, SafetensorError and UserError, but for
        one of another process or of memory.
        """
        path = self.path(step)
        new = temporary_folder(path)
        try:
            if path.exists() and not self.problem(step):
                sync_folder(self.folder)  # an attempt that failed or was killed may have left it so
                self._prune(step)
                yield None
                return
            self.remove_leftovers()
            new.mkdir(parents=True)
            sync_folder(self.folder.parent)
            yield new
            replace_folder(new, path)
            self._prune(step)
        except (OSError, SafetensorError) as error:
            raise self._not_saved(step, needed, str(error)) from None
        except UserError as error:
            if error.code in (errors.PEER, errors.MEMORY):  # not the disk
                raise
            raise self._not_saved(step, needed, error.why) from None
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _not_saved(self, step: int, needed: int, why: str) -> UserError:
        free = ""
        with suppress(OSError):
            free = f", {free_bytes(self.folder):,} are free"
        before = [other for other in self.steps() if other != step]
        return UserError(
            f"the checkpoint of step {step} could not be saved in {self.folder}",
            why=f"{why}: it takes {needed:,} bytes{free}",
            fix="free some space on that disk, or another folder for the run",
            kept=f"the checkpoint of step {before[-1]}" if before else "",
            code=errors.STORAGE,
        )

    def _prune(self, step: int) -> None:
        """Remove all but the newest `keep` up to this step, and those of later steps: they were damaged, or the run was
        taken back to an earlier step."""
        steps = self.steps()
        kept = [known for known in steps if known <= step][-self.keep :]
        for other in [other for other in steps if other not in kept]:
            remove_folder(self.path(other))

    def remove_leftovers(self) -> None:
        """Remove what killed processes have left of saving and removing."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                match = re.fullmatch(r"\.(step-\d{8,})\.(new|old)-\d+", path.name)
                if match:
                    remove_leftovers(self.folder / match[1])

    def keep_newest(self, count: int) -> None:
        """Remove all but the newest `count`."""
        self.keep = count
        if steps := self.steps():
            with suppress(OSError):
                self._prune(steps[-1])

    def problem(self, step: int) -> str:
        """What is wrong with a step's checkpoint, "" if it is whole."""
        path = self.path(step)
        try:
            manifest = read_manifest(path)
            if manifest.get("format") not in (FORMAT, SHARDED) or manifest.get("step") != step:
                return f"{path}: its manifest is of format {manifest.get('format')}, step {manifest.get('step')}"
            found = damage(path, manifest)
            if not found and manifest["format"] == FORMAT and STATE not in manifest["files"]:
                found = [f"{path}: its manifest does not name {STATE}"]
            return found[0] if found else ""
        except UserError as error:
            return f"{error.what}: {error.why}"

    def load(self, step: int, forms: bool = False) -> Checkpoint:
        """Read a step's checkpoint after all its hashes are checked. forms: whether of one in parts only the forms of
        what optimizers keep for each parameter are enough. Raises UserError (CHECKPOINT)."""
        path = self.path(step)
        if problem := self.problem(step):
            raise UserError(
                f"the checkpoint of step {step} is damaged", why=problem, fix=self._advice(step), code=errors.CHECKPOINT
            )
        manifest = read_manifest(path)
        try:
            parts = PartFiles(path, manifest, sound=True) if manifest["format"] == SHARDED else None
            tensors = _read_file(path / STATE, manifest["tensors"]) if parts is None else parts.read_all(forms)
            history = tensors.pop("history")
            if history.shape[0] != step:
                raise ValueError(f"it tells of {history.shape[0]} steps, and there should be {step}")
            state, facts = State(tensors, dict(manifest["values"])), dict(manifest["facts"])
            return Checkpoint(step, state, history, facts, path, parts if forms else None)
        except (OSError, SafetensorError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UserError(
                f"the checkpoint of step {step} cannot be read", why=why, fix=self._advice(step), code=errors.CHECKPOINT
            ) from None

    def _advice(self, step: int) -> str:
        others = [str(other) for other in self.steps() if other != step and not self.problem(other)]
        return f"valid are those of steps {', '.join(others)}" if others else ""

    def newest(self, warn: Callable[[str], None], forms: bool = False) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there never was one. forms: as in `load`.

        warn: is told of each newer one that is damaged, and how many steps are recomputed. Raises UserError
        (CHECKPOINT) if there are checkpoints and all are damaged: starting again unasked would look like going on.
        """
        steps = self.steps()
        problems = []
        for step in reversed(steps):
            try:
                found = self.load(step, forms)
            except UserError as error:
                problems.append(f"{error.what}: {error.why}")
                continue
            if problems:
                lost = steps[-1] - step
                again = "1 step is" if lost == 1 else f"{lost} steps are"
                warn(f"{problems[0]}; going on from step {step}, so {again} computed again")
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


def _read_file(path: Path, described: Any) -> dict[str, Tensor]:
    """All tensors of a checkpoint's one file. Raises ValueError unless they are as described."""
    header = check_header(path, MOST_TENSORS)
    tensors = load_file(path)
    found = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}
    if found != described or header.keys() != tensors.keys():
        raise ValueError("its tensors are not those that its manifest names")
    return tensors
