"""Checks of a run that is on disk: its hashes, one of its steps computed again, and where its numbers went wrong."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hectogpt import errors
from hectogpt.api.progress import Progress
from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.lab import ideas
from hectogpt.manifest import MANIFEST, damage, read_manifest
from hectogpt.training import checkpoint, diagnose
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.diagnose import Finding
from hectogpt.training.loop import Step
from hectogpt.training.run_folder import read_run, read_steps
from hectogpt.training.session import Session


@dataclass(frozen=True)
class Check:
    """A file or folder of a run that was checked. problem: "" if it is as it was written."""

    path: Path
    problem: str

    def as_json(self) -> dict[str, str]:
        """The check in plain values."""
        return {"path": str(self.path), "problem": self.problem}


def verify_run(folder: Path) -> list[Check]:
    """Check every hash of a run's folder: its files, if its manifest is there, and its checkpoints. [] if there is
    nothing to check against."""
    found: list[Check] = []
    if (folder / MANIFEST).exists():
        try:
            manifest = read_manifest(folder)
        except UserError as error:
            found.append(Check(folder / MANIFEST, f"{error.what}: {error.why}"))
        else:
            for name in manifest["files"]:
                problems = damage(folder, manifest, [name])
                found.append(Check(folder / name, problems[0].partition(": ")[2] if problems else ""))
    checkpoints = Checkpoints(folder / checkpoint.FOLDER)
    found += [Check(checkpoints.path(step), checkpoints.problem(step)) for step in checkpoints.steps()]
    return found


def open_at(
    folder: Path, step: int | None, own_files: Sequence[Path], progress: Progress
) -> tuple[Session, Checkpoint]:
    """A session where a checkpoint of a run has it. step: how many steps are done; None for the newest that is whole.
    own_files: the user's own files that made the run, which are imported. Raises UserError."""
    ideas.load_files(own_files)
    run = read_run(folder)
    ideas.check_loaded(run, folder)
    checkpoints = Checkpoints(folder / checkpoint.FOLDER)
    at = checkpoints.newest(progress.line) if step is None else checkpoints.load(step)
    if at is None:
        raise UserError(
            f"{folder} has no checkpoint",
            why="its process ended before the first one, or it was to save none",
            fix="train it with checkpoints: set save_every to 10",
            code=errors.CHECKPOINT,
        )
    return Session.open(run, open_corpus(run.corpus), at), at


def diagnose_run(folder: Path, step: int | None, own_files: Sequence[Path], progress: Progress) -> Finding:
    """Compute the step after a checkpoint again and tell where its numbers stop being finite. Raises UserError."""
    session, at = open_at(folder, step, own_files, progress)
    if at.step >= session.run.steps:
        known = [str(s) for s in Checkpoints(folder / checkpoint.FOLDER).steps() if s < session.run.steps]
        raise UserError(
            f"{folder} has taken all its {session.run.steps} steps",
            why="there is none to compute after its last checkpoint",
            fix=f"set step to {known[-1]}" if known else "",
        )
    return diagnose.diagnose(session)


@dataclass(frozen=True)
class Replay:
    """A step computed again.

    step: its number, from 1. before, again: loss and gradient norm as they were and as they are now. weights: whether
    weights and optimizer are those of the next checkpoint, None if there is none. differences: what differs in machine
    and program from where the checkpoint was made.
    """

    step: int
    before: tuple[float, float]
    again: tuple[float, float]
    weights: bool | None
    differences: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether every bit that can be compared is the same."""
        return self.before == self.again and self.weights is not False

    def as_json(self) -> dict[str, Any]:
        """The replay in plain values."""
        (loss, norm), (loss_again, norm_again) = self.before, self.again
        return {
            "step": self.step,
            "equal": self.equal,
            "loss": loss,
            "loss_again": loss_again,
            "grad_norm": norm,
            "grad_norm_again": norm_again,
            "weights_equal": self.weights,
            "differences": list(self.differences),
        }


def replay_step(folder: Path, step: int | None, own_files: Sequence[Path], progress: Progress) -> Replay:
    """Compute the step after a checkpoint again and compare it with what the run has recorded, bit by bit.

    step: how many steps the checkpoint has done; None for the newest one whose next step is recorded. Raises UserError.
    """
    checkpoints, recorded = Checkpoints(folder / checkpoint.FOLDER), read_steps(folder)
    usable = [s for s in checkpoints.steps() if s < len(recorded)]
    if step is None and usable:
        step = usable[-1]
    if step is None or step >= len(recorded):
        raise UserError(
            f"{folder} has no step to compute again" if step is None else f"step {step} of {folder} has no next step",
            why=f"it takes a checkpoint and the step after it; {len(recorded)} steps are recorded",
            fix=f"set step to {usable[-1]}" if usable else "train with checkpoints on the way: set save_every to 10",
            code=errors.CHECKPOINT,
        )
    session, at = open_at(folder, step, own_files, progress)
    again = next(itertools.islice(session.steps(), 1))
    weights = None
    if step + 1 in checkpoints.steps():
        weights = _same(checkpoints.load(step + 1), session.checkpoint())
    return Replay(step + 1, _numbers(recorded[step]), _numbers(again), weights, tuple(session.differences(at.facts)))


def _numbers(step: Step) -> tuple[float, float]:
    return step.loss, step.grad_norm


def _same(before: Checkpoint, again: Checkpoint) -> bool:
    one, two = before.state.tensors, again.state.tensors
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
