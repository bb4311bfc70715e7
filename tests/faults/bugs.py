"""The proof itself: planted bugs, what a change could break and what other programs do. The proofs must see every one.

Each bug is put into a forked process, in which a proof then runs with few tries. What an undisturbed run leaves is made
with the bug too, so only what goes wrong by kills, damage and failures counts.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import damage
import forks
import killed
import power_cut
import runs
import storage
import torch
import two_at_once
from forks import Line
from runs import Case, Undisturbed

from hectogpt import files, json_files
from hectogpt.run_records import METRICS, read_rows
from hectogpt.training import checkpoint, full_run, loop, run_folder, session, setup, state
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.run_folder import RunFolder
from hectogpt.training.state import State


def nothing(*_: Any, **__: Any) -> None:
    """Takes the place of what is left out."""


def everywhere(old: Any, new: Any) -> None:
    """Put a function in the place of another, in all modules of the package that have it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("hectogpt"):
            for own in [own for own, value in vars(module).items() if value is old]:
                setattr(module, own, new)


# --- what is written, and when it is on disk --------------------------------------------------------------------------


def no_sync_of_data() -> None:
    """The content of files is not synced."""
    everywhere(files.sync_file, nothing)
    everywhere(files.sync, nothing)


def no_sync_of_folders() -> None:
    """Names in folders are not synced."""
    everywhere(files.sync_folder, nothing)


def no_manifest() -> None:
    """Checkpoints and weights are trusted if they can be read."""
    everywhere(json_files.damage, lambda *_, **__: [])


def _around_save(change: Callable[[Callable[[], None], Checkpoints], None]) -> None:
    """Save checkpoints in another way: `change` is given what saves, and the checkpoints."""
    save = Checkpoints.save

    def saved(self: Checkpoints, new: Checkpoint) -> None:
        change(lambda: save(self, new), self)

    Checkpoints.save = saved


def removed_first() -> None:
    """Old checkpoints are removed before the new one is saved."""

    def change(save: Callable[[], None], checkpoints: Checkpoints) -> None:
        for step in checkpoints.steps():
            files.remove_folder(checkpoints.path(step))
        save()

    _around_save(change)


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

    def change(save: Callable[[], None], _: Checkpoints) -> None:
        for thread in [thread for thread in threading.enumerate() if thread.name == "late"]:
            thread.join()
        threading.Thread(target=save, name="late").start()

    _around_save(change)


def failure_unnoticed() -> None:
    """A checkpoint that cannot be written counts as saved."""

    def change(save: Callable[[], None], _: Checkpoints) -> None:
        with contextlib.suppress(Exception):
            save()

    _around_save(change)


def leftovers_stay() -> None:
    """What killed processes were writing is never removed."""
    Checkpoints.remove_leftovers = nothing
    run_folder._remove_leftovers = nothing


def written_in_place() -> None:
    """Files are written in the place of the old ones, not beside them."""

    @contextlib.contextmanager
    def replacing(path: Path) -> Iterator[Path]:
        path.touch()
        yield path

    everywhere(files.replacing, replacing)


# --- what is saved and put back ---------------------------------------------------------------------------------------


def chance_not_seeded() -> None:
    """Dropout draws from random numbers that no step seeds and no checkpoint keeps."""

    @contextlib.contextmanager
    def unseeded(*_: Any) -> Iterator[None]:
        yield

    everywhere(loop.seeded, unseeded)


def _change_tensors(change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    take = state.take_state

    def taken(*arguments: Any) -> State:
        found = take(*arguments)
        return State({name: change(name, tensor) for name, tensor in found.tensors.items()}, found.values)

    everywhere(take, taken)


def optimizer_step_lost() -> None:
    """AdamW's count of its steps is not saved."""
    _change_tensors(lambda name, tensor: tensor * 0 if name.endswith(".step") else tensor)


def weights_in_bf16() -> None:
    """Weights are saved with 8 bits of precision."""
    _change_tensors(lambda name, t: t.bfloat16().float() if name.startswith("model.") and t.is_floating_point() else t)


def _after_resume(change: Callable[[session.Session], None]) -> None:
    go_on = session.Session._go_on_from

    def going(self: session.Session, found: Checkpoint) -> None:
        go_on(self, found)
        change(self)

    session.Session._go_on_from = going


def data_starts_again() -> None:
    """A resumed run reads the text from its beginning."""
    make = setup.make_batches

    def change(self: session.Session) -> None:
        done = len(self.done)

        def batches(*arguments: Any) -> Any:
            found = make(*arguments)
            return SimpleNamespace(at=lambda step: found.at(step - done))

        everywhere(make, batches)

    _after_resume(change)


def metrics_not_cut() -> None:
    """Rows of steps that are taken again stay in metrics.jsonl."""
    begin = RunFolder._open_metrics

    def opened(self: RunFolder, rows: Sequence[dict[str, Any]]) -> None:
        later = [row for row in read_rows(self.path / METRICS) if row["step"] > len(rows)] if rows else []
        begin(self, [*rows, *later])

    RunFolder._open_metrics = opened


# --- locks, signals ---------------------------------------------------------------------------------------------------


def folder_not_locked() -> None:
    """Two processes may train in one folder."""
    run_folder._lock = lambda *_: True


def signal_forgotten() -> None:
    """A signal ends the run at once, without a checkpoint."""

    @contextlib.contextmanager
    def raising(**_: Any) -> Iterator[list[int]]:
        with full_run.raise_on_signal():
            yield []

    full_run.stop_on_signal = raising


# --- who must see them ------------------------------------------------------------------------------------------------

Bug = Callable[[], None]
Look = Callable[[Bug, dict[str, Case], Path], Sequence[str] | Line]  # plants the bug, and what a proof then sees


def by_kills(kind: str, every: int = 9, only: str = "") -> Look:
    """Kills at points of a run of this kind."""

    def look(bug: Bug, cases: dict[str, Case], where: Path) -> Line:
        bug()
        return killed.point_kills(kind, cases[kind], where, every, only)

    return look


def by_power_cut(bug: Bug, cases: dict[str, Case], where: Path) -> list[str]:
    """The model of the disk. The bug is planted after the checkpoints that are there already."""
    return power_cut.states_of(power_cut.checkpoint_saving(cases["plain"]), where, bug, most=1)[1]


def by_damage(bug: Bug, cases: dict[str, Case], where: Path) -> Line:
    """Damaged files."""
    bug()
    return damage.damaged(where, cases["plain"].with_steps(4), 96)


def by_storage(bug: Bug, cases: dict[str, Case], where: Path) -> list[str]:
    """Failing storage."""
    bug()
    run = Undisturbed(cases["plain"].with_steps(storage.STEPS), where, runs.train_unscored)
    halves = [(point, name) for point, name in killed.points_of(run, steps=False) if name == "half of write tensors"]
    return [fault for point, name in halves[-3:] for fault in storage.fail_at(run, point, name, 1, False)]


def by_starts(bug: Bug, cases: dict[str, Case], where: Path) -> Line:
    """Starts at the same time."""
    bug()
    return two_at_once.starts(cases["plain"], where, 4, ("resumed", "one folder"))


def by_signals(bug: Bug, cases: dict[str, Case], where: Path) -> list[str]:
    """Signals."""
    bug()
    run = Undisturbed(cases["plain"].with_steps(40), where, killed.train_by_time)
    return [fault for number in range(6) for fault in run.faults(killed.one_signal(run, number))]


def by_starts_again(bug: Bug, cases: dict[str, Case], where: Path) -> Line:
    """Starts that are killed again and again."""
    bug()
    return killed.crash_loop(cases["plain"], where)


BUGS: dict[Bug, Look] = {
    removed_first: by_kills("plain"),
    manifest_last: by_kills("plain", every=2, only="fsync"),
    reported_early: by_kills("plain"),
    written_in_place: by_kills("plain", every=1, only="run.json"),
    no_sync_of_data: by_power_cut,
    no_sync_of_folders: by_power_cut,
    no_manifest: by_damage,
    failure_unnoticed: by_storage,
    leftovers_stay: by_starts_again,
    chance_not_seeded: by_kills("idea"),
    optimizer_step_lost: by_kills("plain"),
    weights_in_bf16: by_kills("top"),
    data_starts_again: by_kills("plain"),
    metrics_not_cut: by_kills("plain", every=1, only="half of write tensors"),
    folder_not_locked: by_starts,
    signal_forgotten: by_signals,
}
QUICK = (removed_first, no_sync_of_data, chance_not_seeded, no_manifest)


def check(quick: bool) -> list[Line]:
    """The line of planted bugs. quick: four of them."""
    with runs.place(warm=("plain", "idea", "top")) as (where, cases):

        def seen(bug: Bug) -> bool:
            forks.WORKERS = 1
            found = BUGS[bug](bug, cases, Path(tempfile.mkdtemp(dir=where)))
            return bool(found.failures if isinstance(found, Line) else found)

        def look_for(name: str) -> list[str]:  # in a child, where the bug stays
            bug = next(bug for bug in BUGS if bug.__name__ == name)
            return [] if forks.value_of(lambda: seen(bug)) else ["not seen"]

        return [forks.over("planted bugs", look_for, [bug.__name__ for bug in (QUICK if quick else BUGS)], "all seen")]
