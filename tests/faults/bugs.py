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
from hectogpt.training import checkpoint, full_run, loop, run_folder, session, setup
from hectogpt.training.checkpoint import Checkpoint, Checkpoints, State
from hectogpt.training.run_folder import RunFolder

Save = Callable[[], None]


def nothing(*_: Any, **__: Any) -> None:
    """Takes the place of what is left out."""


def everywhere(old: Any, new: Any) -> None:
    """Put a function in the place of another, in all modules of the package that have it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("hectogpt"):
            for own in [own for own, value in vars(module).items() if value is old]:
                setattr(module, own, new)


# --- what is written --------------------------------------------------------------------------------------------------


def saving_by(change: Callable[[Save, Checkpoints], object]) -> None:
    """Save checkpoints in another way: `change` is given what saves, and the checkpoints."""
    save = Checkpoints.save
    Checkpoints.save = lambda self, new: change(lambda: save(self, new), self)


def remove_first(save: Save, checkpoints: Checkpoints) -> None:
    for step in checkpoints.steps():
        files.remove_folder(checkpoints.path(step))
    save()


def save_later(save: Save, _: Checkpoints) -> None:
    for thread in [thread for thread in threading.enumerate() if thread.name == "late"]:
        thread.join()
    threading.Thread(target=save, name="late").start()


def save_or_not(save: Save, _: Checkpoints) -> None:
    with contextlib.suppress(Exception):
        save()


def write_manifest_last() -> None:
    write, rename, waiting = checkpoint.write_manifest, files.replace_folder, list[tuple[Any, ...]]()

    def renamed(new: Path, folder: Path) -> None:
        rename(new, folder)
        write(folder, *waiting[-1][1:])

    checkpoint.write_manifest = lambda *arguments: waiting.append(arguments)
    files.replace_folder = renamed


def leave_leftovers() -> None:
    Checkpoints.remove_leftovers = run_folder._remove_leftovers = nothing


@contextlib.contextmanager
def write_in_place(path: Path) -> Iterator[Path]:
    path.touch()
    yield path


# --- what is saved and put back ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def unseeded(*_: Any) -> Iterator[None]:
    yield


def change_tensors(change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    take = checkpoint.take_state

    def taken(*arguments: Any) -> State:
        found = take(*arguments)
        return State({name: change(name, tensor) for name, tensor in found.tensors.items()}, found.values)

    everywhere(take, taken)


def start_data_again() -> None:
    go_on, make = session.Session._go_on_from, setup.make_batches

    def going(self: session.Session, found: Checkpoint) -> None:
        go_on(self, found)
        done = len(self.done)

        def batches(*arguments: Any) -> Any:
            whole = make(*arguments)
            return SimpleNamespace(at=lambda step: whole.at(step - done))

        everywhere(make, batches)

    session.Session._go_on_from = going


def keep_later_rows() -> None:
    begin = RunFolder._open_metrics

    def opened(self: RunFolder, rows: Sequence[dict[str, Any]]) -> None:
        later = [row for row in read_rows(self.path / METRICS) if row["step"] > len(rows)] if rows else []
        begin(self, [*rows, *later])

    RunFolder._open_metrics = opened


@contextlib.contextmanager
def raising(**_: Any) -> Iterator[list[int]]:
    with full_run.raise_on_signal():
        yield []


# --- who must see them ------------------------------------------------------------------------------------------------

Plant = Callable[[], object]
Look = Callable[[Plant, dict[str, Case], Path], Sequence[str] | Line]  # plants the bug, and what a proof then sees


def by_kills(kind: str, every: int = 9, only: str = "") -> Look:
    """Kills at points of a run of this kind."""
    return after_planting(lambda cases, where: killed.point_kills(kind, cases[kind], where, every, only))


def after_planting(look: Callable[[dict[str, Case], Path], Sequence[str] | Line]) -> Look:
    """Plants the bug first."""

    def both(plant: Plant, cases: dict[str, Case], where: Path) -> Sequence[str] | Line:
        plant()
        return look(cases, where)

    return both


def by_power_cut(plant: Plant, cases: dict[str, Case], where: Path) -> list[str]:
    """The model of the disk. The bug is planted after the checkpoints that are there already."""
    return power_cut.states_of(power_cut.checkpoint_saving(cases["plain"]), where, plant, most=1)[1]


@after_planting
def by_storage(cases: dict[str, Case], where: Path) -> list[str]:
    """Failing storage."""
    run = Undisturbed(cases["plain"].with_steps(storage.STEPS), where, runs.train_unscored)
    halves = [(point, name) for point, name in killed.points_of(run, steps=False) if name == "half of write tensors"]
    return [fault for point, name in halves[-3:] for fault in storage.fail_at(run, point, name, 1, False)]


@after_planting
def by_signals(cases: dict[str, Case], where: Path) -> list[str]:
    """Signals."""
    run = Undisturbed(cases["plain"].with_steps(40), where, killed.train_by_time)
    return [fault for number in range(6) for fault in run.faults(killed.one_signal(run, number))]


by_damage = after_planting(lambda cases, where: damage.damaged(where, cases["plain"].with_steps(4), 96))
by_starts = after_planting(lambda cases, where: two_at_once.starts(cases["plain"], where, 4, ("resumed", "one folder")))
by_crashes = after_planting(lambda cases, where: killed.crash_loop(cases["plain"], where))

BUGS: dict[str, tuple[Plant, Look]] = {
    "old checkpoints are removed before the new one is saved": (lambda: saving_by(remove_first), by_kills("plain")),
    "files are not synced": (
        lambda: [everywhere(sync, nothing) for sync in (files.sync_file, files.sync)],
        by_power_cut,
    ),
    "hashes are not checked": (lambda: everywhere(json_files.damage, lambda *_, **__: []), by_damage),
    "dropout draws from what no step seeds": (lambda: everywhere(loop.seeded, unseeded), by_kills("idea")),
    "a checkpoint gets its name before its manifest": (write_manifest_last, by_kills("plain", 2, "fsync")),
    "a checkpoint is reported as saved when its writing begins": (lambda: saving_by(save_later), by_kills("plain")),
    "a checkpoint that cannot be written counts as saved": (lambda: saving_by(save_or_not), by_storage),
    "files are written in the place of the old ones": (
        lambda: everywhere(files.replacing, write_in_place),
        by_kills("plain", 1, "run.json"),
    ),
    "names in folders are not synced": (lambda: everywhere(files.sync_folder, nothing), by_power_cut),
    "what killed processes were writing stays": (leave_leftovers, by_crashes),
    "AdamW's count of steps is not saved": (
        lambda: change_tensors(lambda name, t: t * 0 if name.endswith(".step") else t),
        by_kills("plain"),
    ),
    "weights are saved in bf16": (
        lambda: change_tensors(
            lambda name, t: t.bfloat16().float() if name.startswith("model.") and t.is_floating_point() else t
        ),
        by_kills("top"),
    ),
    "a resumed run reads the text from its beginning": (start_data_again, by_kills("plain")),
    "rows of steps taken again stay in metrics.jsonl": (keep_later_rows, by_kills("plain", 1, "half of write tensors")),
    "two processes may train in one folder": (lambda: setattr(run_folder, "_lock", lambda *_: True), by_starts),
    "a signal ends the run without a checkpoint": (lambda: setattr(full_run, "stop_on_signal", raising), by_signals),
}
QUICK = 4  # the first ones


def check(quick: bool) -> list[Line]:
    """The line of planted bugs. quick: four of them."""
    with runs.place(warm=("plain", "idea", "top")) as (where, cases):

        def seen(name: str) -> bool:
            forks.WORKERS = 1
            plant, look = BUGS[name]
            found = look(plant, cases, Path(tempfile.mkdtemp(dir=where)))
            return bool(found.failures if isinstance(found, Line) else found)

        def look_for(name: str) -> list[str]:  # in a child, where the bug stays
            return [] if forks.value_of(lambda: seen(name)) else ["not seen"]

        return [forks.over("planted bugs", look_for, list(BUGS)[: QUICK if quick else None], "all seen")]
