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
from torch import Tensor
from two_at_once import Started

from hectogpt import files, signals
from hectogpt.training import checkpoint, events, loop, run_folder
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.run import Run


def nothing(*_: Any, **__: Any) -> None:
    """Takes the place of what is left out."""


def everywhere(old: Any, new: Any) -> None:
    """Put a function in the place of another, in all modules of the package that have it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("hectogpt"):
            for own in [own for own, value in vars(module).items() if value is old]:
                setattr(module, own, new)


# --- what is planted --------------------------------------------------------------------------------------------------

save, take = Checkpoints.save, checkpoint.take_state


def save_after_removing(self: Checkpoints, new: Checkpoint) -> None:
    for step in self.steps():
        files.remove_folder(self.path(step))
    save(self, new)


def save_or_not(self: Checkpoints, new: Checkpoint) -> None:
    with contextlib.suppress(Exception):
        save(self, new)


def take_without_counts(*arguments: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, values = take(*arguments)
    return {n: t * 0 if n.endswith(".step") else t for n, t in tensors.items()}, values


def leave_leftovers() -> None:
    Checkpoints.remove_leftovers = run_folder._remove_leftovers = nothing


@contextlib.contextmanager
def raising(**_: Any) -> Iterator[list[int]]:
    with signals.raise_on_signal():
        yield []


# --- who must see it --------------------------------------------------------------------------------------------------


class Looks:
    """Proofs with few tries; each returns how much it finds."""

    def __init__(self, cases: dict[str, Run], where: Path) -> None:
        self.cases, self.where = cases, where

    def run_of(self, kind: str, steps: int = killed.FEW_STEPS, train: runs.Train = runs.train_unscored) -> Undisturbed:
        return Undisturbed(replace(self.cases[kind], steps=steps), self.where, train)

    def kills(self, kind: str = "plain") -> int:
        return len(killed.point_kills(self.run_of(kind), every=9).faults)

    def power_cut(self) -> int:
        return len(power_cut.states_of(power_cut.checkpoint_saving(self.cases["plain"]), self.where / "cut")[1])

    def storage(self) -> int:
        run = self.run_of("plain")
        halves = [one for one in killed.points_of(run, steps=False) if one[1] == "half of write tensors"]
        return sum(len(killed.fail_at(run, (*one, False))) for one in halves[-3:])

    def signals(self) -> int:
        return len(killed.line("", self.run_of("plain", 40, killed.train_by_time), killed.stopped, range(6)).faults)

    def damage(self) -> int:
        return len(damage.damaged(self.where, replace(self.cases["plain"], steps=4), 96).faults)

    def starts(self) -> int:
        ways = (Started.resumed, Started.with_one_folder)
        return len(two_at_once.starts(self.cases["plain"], self.where, 4, ways).faults)


def replaced(owner: Any, name: str, new: Any) -> Callable[[], object]:
    """Plants `new` in the place of a method or a module's function."""
    return lambda: setattr(owner, name, new)


# what is planted -> what plants it, and what a proof then sees
BUGS: dict[str, tuple[Callable[[], object], Callable[[Looks], int]]] = {
    "old checkpoints are removed before the new one": (replaced(Checkpoints, "save", save_after_removing), Looks.kills),
    "files are not synced": (lambda: [everywhere(f, nothing) for f in (files.sync_file, files.sync)], Looks.power_cut),
    "hashes are not checked": (lambda: everywhere(files.damage, lambda *_, **__: {}), Looks.damage),
    "dropout is not seeded": (
        lambda: everywhere(loop.seeded, lambda *_: contextlib.nullcontext()),
        lambda looks: looks.kills("idea"),
    ),
    "AdamW's count of steps is not saved": (lambda: everywhere(take, take_without_counts), Looks.kills),
    "names in folders are not synced": (lambda: everywhere(files.sync_folder, nothing), Looks.power_cut),
    "what cannot be written counts as saved": (replaced(Checkpoints, "save", save_or_not), Looks.storage),
    "what killed processes were writing stays": (leave_leftovers, Looks.kills),
    "two processes may train in one folder": (
        replaced(files, "lock", lambda *_: contextlib.nullcontext(True)),
        Looks.starts,
    ),
    "a signal ends a run without a checkpoint": (replaced(events, "stop_on_signal", raising), Looks.signals),
}


def check(quick: bool) -> list[forks.Line]:
    """The line of planted bugs. quick: four of them."""
    with runs.place(warm=("plain", "idea")) as (where, cases):

        def seen(name: str) -> int:
            forks.WORKERS = 1
            plant, look = BUGS[name]
            plant()
            return look(Looks(cases, Path(tempfile.mkdtemp(dir=where))))

        def look_for(name: str) -> list[str]:  # in a child, where the bug stays
            return [] if forks.value_of(lambda: seen(name)) else ["not seen"]

        return [forks.over("planted bugs", look_for, list(BUGS)[: 4 if quick else None])]
