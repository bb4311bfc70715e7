"""The proof itself: every planted bug must be seen by at least one of the proofs.

Each bug is put into a forked process, in which proofs then run with few tries. What an undisturbed run leaves is made
with the bug too, so only what goes wrong by kills, damage and failures counts.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path

import bugs
import damage
import forks
import killed
import power_cut
import small_runs
import stopping
import storage
import two_at_once
from promises import Line
from small_runs import Case

Look = Callable[[dict[str, Case], Path], list[str]]


def kill(kind: str, every: int = 9, only: str = "") -> Look:
    """Kills at points of a run of this kind."""

    def look(cases: dict[str, Case], where: Path) -> list[str]:
        line = killed.point_kills(kind, cases[kind], where, every, only)
        return [line.detail] if line.failures else []

    return look


def cut_power(plant: Callable[[], None]) -> Look:
    """The model of the disk. The bug is planted after the checkpoints that are there already."""

    def look(cases: dict[str, Case], where: Path) -> list[str]:
        saving = power_cut.checkpoint_saving(cases["plain"])
        return forks.value_of(lambda: power_cut.states_of(saving, where, plant, most=1))[1]

    return look


def harm(cases: dict[str, Case], where: Path) -> list[str]:
    """Damaged files."""
    line = damage.damaged(where, cases["plain"].with_steps(4), {"flipped bits": 24})
    return [line.detail] if line.failures else []


def fail(cases: dict[str, Case], where: Path) -> list[str]:
    """Failing storage."""
    judge = storage.Judge(cases["plain"].with_steps(storage.STEPS), where)
    faults = [fault for number in range(3) for fault in storage.fail_to_sync(judge, where, number)]
    points = [place for place, name in storage.file_points(judge.case, where) if "half of write" in name]
    return faults + [f for place in points[-3:] for f in storage.fail_at(judge, where, place, errno.ENOSPC, False)]


def start_together(cases: dict[str, Case], where: Path) -> list[str]:
    """Starts at the same time."""
    line = two_at_once.starts(two_at_once.Runs(cases["plain"], where), where, 4, "resumed,one folder")
    return [line.detail] if line.failures else []


def stop(cases: dict[str, Case], where: Path) -> list[str]:
    """Signals."""
    stopped = stopping.Stopping(cases["plain"], where)
    return [fault for number in range(6) for fault in stopped.once(number)]


def start_again(cases: dict[str, Case], where: Path) -> list[str]:
    """Starts that are killed again and again."""
    return stopping.crash_loop(cases["plain"], where)


BUGS: dict[Callable[[], None], Look] = {
    bugs.removed_first: kill("plain"),
    bugs.in_place: kill("plain"),
    bugs.overwritten: kill("plain"),
    bugs.manifest_last: kill("plain", every=2, only="fsync"),
    bugs.reported_early: kill("plain"),
    bugs.run_is_not_whole: kill("plain", every=1, only="run.json (x)"),
    bugs.no_sync_of_data: cut_power(bugs.no_sync_of_data),
    bugs.no_sync_of_folders: cut_power(bugs.no_sync_of_folders),
    bugs.no_sync: cut_power(bugs.no_sync),
    bugs.no_sync_no_manifest: cut_power(bugs.no_sync_no_manifest),
    bugs.no_manifest: harm,
    bugs.failure_unnoticed: fail,
    bugs.leftovers_stay: start_again,
    bugs.chance_not_seeded: kill("idea"),
    bugs.optimizer_lost: kill("idea"),
    bugs.optimizer_step_lost: kill("plain"),
    bugs.second_moment_lost: kill("plain"),
    bugs.weights_in_bf16: kill("top"),
    bugs.step_repeated: kill("plain"),
    bugs.step_left_out: kill("plain"),
    bugs.data_starts_again: kill("plain"),
    bugs.schedule_starts_again: kill("top"),
    bugs.metrics_not_cut: kill("plain", every=1, only="half of row"),
    bugs.metrics_cut_too_short: kill("plain"),
    bugs.folder_not_locked: start_together,
    bugs.signal_forgotten: stop,
    bugs.interrupted_is_success: stop,
}
PLANTED_LATER = ("cut_power",)
QUICK = (bugs.removed_first, bugs.no_sync, bugs.chance_not_seeded, bugs.no_manifest)


def faults_of(bug: Callable[[], None], cases: dict[str, Case], where: Path) -> list[str]:
    """What the proof sees of a planted bug; it runs in a child, so the bug stays there."""

    def work() -> list[str]:
        forks.WORKERS = 1
        look = BUGS[bug]
        if not look.__qualname__.startswith(PLANTED_LATER):
            bug()
        return look(cases, Path(tempfile.mkdtemp(dir=where)))

    return forks.value_of(work)


def seen(chosen: list[Callable[[], None]], cases: dict[str, Case], where: Path) -> Line:
    """The line of planted bugs."""

    def look_for(bug: Callable[[], None]) -> list[str]:
        return [] if faults_of(bug, cases, where) else [f"{bug.__name__} is not seen"]

    return forks.over("planted bugs", look_for, chosen, "all seen")


def check(quick: bool) -> list[Line]:
    """All lines. quick: four bugs."""
    with small_runs.place(warm=("plain", "idea", "top")) as (where, cases):
        return [seen(list(QUICK if quick else BUGS), cases, where)]
