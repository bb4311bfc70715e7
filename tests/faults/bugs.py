"""Planted bugs: each puts a mistake into the package that runs in this process. The proofs must see every one.

They are what a change could break without any other test's notice, or what other programs do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hectogpt import files, manifest
from hectogpt.model import weights
from hectogpt.training import checkpoint, full_run, loop, run_folder, session
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.state import State


def nothing(*_: Any, **__: Any) -> None:
    """Takes the place of what is left out."""


def everywhere(name: str, new: Any, owner: Any) -> None:
    """Replace owner.name, and the name in the modules that have imported it."""
    for module in (owner, checkpoint, manifest, weights, run_folder, session, full_run, loop, files):
        if hasattr(module, name):
            setattr(module, name, new)


# --- what is written, and when it is on disk --------------------------------------------------------------------------


def no_sync_of_data() -> None:
    """The content of files is not synced."""
    everywhere("sync_file", nothing, files)
    everywhere("sync", nothing, files)


def no_sync_of_folders() -> None:
    """Names in folders are not synced."""
    everywhere("sync_folder", nothing, files)


def no_sync() -> None:
    """Nothing is synced."""
    no_sync_of_data()
    no_sync_of_folders()


def no_manifest() -> None:
    """Checkpoints and weights are trusted if they can be read."""
    everywhere("damage", lambda *_, **__: [], manifest)


def no_sync_no_manifest() -> None:
    """Nothing is synced, and the hashes are not looked at."""
    no_sync()
    no_manifest()


def removed_first() -> None:
    """Old checkpoints are removed before the new one is saved."""
    save = Checkpoints.save

    def saved(self: Checkpoints, new: Checkpoint) -> None:
        for step in self.steps():
            files.remove_folder(self.path(step))
        files.sync_folder(self.folder)
        save(self, new)

    Checkpoints.save = saved


def in_place() -> None:
    """A checkpoint is written under its final name."""
    everywhere("temporary_folder", lambda folder: folder, files)
    everywhere("replace_folder", nothing, files)
    checkpoint.shutil = _Without(shutil, rmtree=nothing)  # it cleans up at the end


def overwritten() -> None:
    """There is one checkpoint, and the next one is written over it."""
    in_place()
    save = Checkpoints.save

    def saved(self: Checkpoints, new: Checkpoint) -> None:
        old = self.steps()
        for step in old[:-1]:
            shutil.rmtree(self.path(step))
        if old:
            self.path(old[-1]).rename(self.path(new.step))
            (self.path(new.step) / "manifest.json").unlink(missing_ok=True)
        make = Path.mkdir
        Path.mkdir = lambda path, *a, **k: make(path, *a, **(k | {"exist_ok": True}))
        save(self, new)

    Checkpoints.save = saved


def manifest_last() -> None:
    """A checkpoint gets its name before it has its manifest."""
    original, rename = checkpoint.write_manifest, checkpoint.replace_folder
    waiting: list[Any] = []

    def later(*arguments: Any) -> None:
        waiting[:] = arguments

    def renamed(new: Path, folder: Path) -> None:
        rename(new, folder)
        original(folder, *waiting[1:])

    checkpoint.write_manifest, checkpoint.replace_folder = later, renamed


def reported_early() -> None:
    """A checkpoint is reported as saved when its writing begins."""
    save = Checkpoints.save

    def saved(self: Checkpoints, new: Checkpoint) -> None:
        before = [thread for thread in threading.enumerate() if thread.name == "late"]
        for thread in before:
            thread.join()
        threading.Thread(target=save, args=(self, new), name="late").start()

    Checkpoints.save = saved


def failure_unnoticed() -> None:
    """A checkpoint that cannot be written counts as saved."""
    save = Checkpoints.save

    def saved(self: Checkpoints, new: Checkpoint) -> None:
        with contextlib.suppress(Exception):
            save(self, new)

    Checkpoints.save = saved


def leftovers_stay() -> None:
    """What killed processes were writing is never removed."""
    Checkpoints.remove_leftovers = nothing
    run_folder._remove_leftovers = nothing


class _Without:
    """A module with some of its functions replaced."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        self.__dict__.update(vars(module) | replaced)


# --- what is saved and put back ---------------------------------------------------------------------------------------


def chance_not_seeded() -> None:
    """Dropout draws from random numbers that no step seeds and no checkpoint keeps."""

    @contextlib.contextmanager
    def unseeded(*_: Any) -> Iterator[None]:
        yield

    loop.seeded = unseeded


def optimizer_lost() -> None:
    """The optimizer starts anew."""
    session.put_state = lambda model, optimizer, state: weights.load_tensors(
        model, {n.removeprefix("model."): t for n, t in state.tensors.items() if n.startswith("model.")}
    )


def _change_tensors(change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    take = session.take_state

    def taken(*arguments: Any) -> State:
        state = take(*arguments)
        return State({name: change(name, tensor) for name, tensor in state.tensors.items()}, state.values)

    session.take_state = taken


def optimizer_step_lost() -> None:
    """AdamW's count of its steps is not saved."""
    _change_tensors(lambda name, tensor: tensor * 0 if name.endswith(".step") else tensor)


def second_moment_lost() -> None:
    """AdamW's mean of squared gradients is not saved."""
    _change_tensors(lambda name, tensor: tensor * 0 if name.endswith(".exp_avg_sq") else tensor)


def weights_in_bf16() -> None:
    """Weights are saved with 8 bits of precision."""
    _change_tensors(
        lambda name, tensor: (
            tensor.bfloat16().float() if name.startswith("model.") and tensor.is_floating_point() else tensor
        )
    )


def _after_resume(change: Callable[[session.Session], None]) -> None:
    go_on = session.Session._go_on_from

    def going(self: session.Session, found: Checkpoint) -> None:
        go_on(self, found)
        change(self)

    session.Session._go_on_from = going


def step_repeated() -> None:
    """A resumed run takes the last step again."""
    _after_resume(lambda self: self.done.pop())


def step_left_out() -> None:
    """A resumed run leaves the next batch out."""
    make = session.setup.make_batches

    def batches(*arguments: Any) -> Any:
        found = make(*arguments)
        return _Batches(found, 1)

    _after_resume(lambda self: setattr(session.setup, "make_batches", batches))


class _Batches:
    """Batches that are `late` steps ahead."""

    def __init__(self, batches: Any, late: int) -> None:
        self.batches, self.late = batches, late

    def at(self, step: int) -> Any:
        """The batch of another step."""
        return self.batches.at(step + self.late)


def data_starts_again() -> None:
    """A resumed run reads the text from its beginning."""
    make = session.setup.make_batches

    def change(self: session.Session) -> None:
        done = len(self.done)
        session.setup.make_batches = lambda *arguments: _Batches(make(*arguments), -done)

    _after_resume(change)


def schedule_starts_again() -> None:
    """A resumed run begins with the learning rate of the first step."""

    def change(self: session.Session) -> None:
        done, kind = len(self.done), type(self.run.schedule)
        factor = kind.factor
        kind.factor = lambda schedule, step, steps: factor(schedule, step - done, steps)

    _after_resume(change)


def metrics_not_cut() -> None:
    """Rows of steps that are taken again stay in metrics.jsonl."""
    run_folder._rows_of = lambda metrics, done, steps: metrics.decode()


def metrics_cut_too_short() -> None:
    """The row of the last step of a checkpoint is lost."""
    rows = run_folder._rows_of

    def fewer(metrics: bytes, done: Sequence[Any], steps: int) -> str | None:
        kept = rows(metrics, done, steps)
        return kept if kept is None else "".join(kept.splitlines(keepends=True)[:-1])

    run_folder._rows_of = fewer


# --- locks, signals ---------------------------------------------------------------------------------------------------


def folder_not_locked() -> None:
    """Two processes may train in one folder."""
    run_folder._lock = nothing


def signal_forgotten() -> None:
    """A signal ends the run at once, without a checkpoint."""

    @contextlib.contextmanager
    def raising() -> Iterator[list[int]]:
        with full_run.raise_on_signal():
            yield []

    full_run.stop_on_signal = raising


def interrupted_is_success() -> None:
    """A run that a signal has stopped ends with exit code 0."""
    full_run.exit_code = lambda number: 0


def run_is_not_whole() -> None:
    """run.json is created empty, then filled."""

    def create(path: Path, content: str) -> None:
        with open(path, "x", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    files.create = create
