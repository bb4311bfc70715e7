"""The proof itself: planted bugs, what a change could break. Every proof must see those that it looks for.

Each bug is put into a forked process, in which a proof then runs with few tries. What an undisturbed run leaves is made
with the bug too, so only what goes wrong by kills, damage and failures counts.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import damage
import forks
import killed
import power_cut
import runs
import two_at_once
from runs import Undisturbed
from two_at_once import Started

from hectogpt import files, json_files
from hectogpt.training import checkpoint, full_run, loop, run_folder
from hectogpt.training.checkpoint import Checkpoint, Checkpoints, State
from hectogpt.training.run import Run

Cases = dict[str, Run]


def nothing(*_: Any, **__: Any) -> None:
    """Takes the place of what is left out."""


def everywhere(old: Any, new: Any) -> None:
    """Put a function in the place of another, in all modules of the package that have it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("hectogpt"):
            for own in [own for own, value in vars(module).items() if value is old]:
                setattr(module, own, new)


# --- what is planted --------------------------------------------------------------------------------------------------


def save_after_removing() -> None:
    save = Checkpoints.save

    def saved(self: Checkpoints, new: Checkpoint) -> None:
        for step in self.steps():
            files.remove_folder(self.path(step))
        save(self, new)

    Checkpoints.save = saved


def save_or_not() -> None:
    save = Checkpoints.save

    def saved(self: Checkpoints, new: Checkpoint) -> None:
        with contextlib.suppress(Exception):
            save(self, new)

    Checkpoints.save = saved


def forget_steps() -> None:
    take = checkpoint.take_state

    def taken(*arguments: Any) -> State:
        found = take(*arguments)
        return State({n: t * 0 if n.endswith(".step") else t for n, t in found.tensors.items()}, found.values)

    everywhere(take, taken)


def leave_leftovers() -> None:
    Checkpoints.remove_leftovers = run_folder._remove_leftovers = nothing


@contextlib.contextmanager
def unseeded(*_: Any) -> Iterator[None]:
    yield


@contextlib.contextmanager
def raising(**_: Any) -> Iterator[list[int]]:
    with full_run.raise_on_signal():
        yield []


# --- who must see it --------------------------------------------------------------------------------------------------


def by_kills(cases: Cases, where: Path, kind: str = "plain") -> int:
    """Kills at points of a run of this kind."""
    run = Undisturbed(replace(cases[kind], steps=killed.FEW_STEPS), where, runs.train_unscored)
    return killed.point_kills(run, every=9).failures


def by_power_cut(cases: Cases, where: Path) -> int:
    """The model of the disk, on which is all that was written before."""
    return len(power_cut.states_of(power_cut.checkpoint_saving(cases["plain"]), where)[1])


def by_storage(cases: Cases, where: Path) -> int:
    """Failing storage."""
    run = Undisturbed(replace(cases["plain"], steps=killed.FEW_STEPS), where, runs.train_unscored)
    halves = [one for one in killed.points_of(run, steps=False) if one[1] == "half of write tensors"]
    return sum(len(killed.fail_at(run, (*one, False))) for one in halves[-3:])


def by_signals(cases: Cases, where: Path) -> int:
    """Signals."""
    run = Undisturbed(replace(cases["plain"], steps=40), where, killed.train_by_time)
    return killed.line("", run, killed.stopped, range(6)).failures


def by_damage(cases: Cases, where: Path) -> int:
    """Damaged files."""
    return damage.damaged(where, replace(cases["plain"], steps=4), 96).failures


def by_starts(cases: Cases, where: Path) -> int:
    """Starts of several processes."""
    return two_at_once.starts(cases["plain"], where, 4, (Started.resumed, Started.with_one_folder)).failures


# name -> what plants it, and what a proof then sees
BUGS: dict[str, tuple[Callable[[], object], Callable[[Cases, Path], int]]] = {
    "old checkpoints are removed before the new one is saved": (save_after_removing, by_kills),
    "files are not synced": (
        lambda: [everywhere(sync, nothing) for sync in (files.sync_file, files.sync)],
        by_power_cut,
    ),
    "hashes are not checked": (lambda: everywhere(json_files.damage, lambda *_, **__: {}), by_damage),
    "dropout draws from what no step seeds": (
        lambda: everywhere(loop.seeded, unseeded),
        lambda cases, where: by_kills(cases, where, "idea"),
    ),
    "AdamW's count of steps is not saved": (forget_steps, by_kills),
    "names in folders are not synced": (lambda: everywhere(files.sync_folder, nothing), by_power_cut),
    "a checkpoint that cannot be written counts as saved": (save_or_not, by_storage),
    "what killed processes were writing stays": (leave_leftovers, by_kills),
    "two processes may train in one folder": (lambda: setattr(run_folder, "_lock", lambda *_: True), by_starts),
    "a signal ends the run without a checkpoint": (lambda: setattr(full_run, "stop_on_signal", raising), by_signals),
}
QUICK = 4  # the first ones


def check(quick: bool) -> list[forks.Line]:
    """The line of planted bugs. quick: four of them."""
    with runs.place(warm=("plain", "idea")) as (where, cases):

        def seen(name: str) -> int:
            forks.WORKERS = 1
            plant, look = BUGS[name]
            plant()
            return look(cases, Path(tempfile.mkdtemp(dir=where)))

        def look_for(name: str) -> list[str]:  # in a child, where the bug stays
            return [] if forks.value_of(lambda: seen(name)) else ["not seen"]

        return [forks.over("planted bugs", look_for, list(BUGS)[: QUICK if quick else None], "all seen")]
