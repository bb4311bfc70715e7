"""Broken runs: killed at random moments and at every point of training, saving and scoring; stopped by signals; on
storage that fails.

After each: no step that was reported as saved is lost, and no checkpoint is found half under its name. In the end
weights, checkpoints, metrics and scores are those of a run that nobody disturbed, bit by bit. A signal ends the run
after the step under way, with a checkpoint of it and the signal's exit code; a second one ends it at once. A run whose
storage fails ends with exit code 7 and a message, or goes on and tells.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import forks
import runs
from forks import Ended, Line
from operations import Points
from runs import Undisturbed

from hectogpt import errors
from hectogpt.run_records import METRICS, RUN, SUMMARY
from hectogpt.signals import CODES
from hectogpt.training.run import Run

Train = Callable[[], None]
Breakage = Callable[[Undisturbed, Any, Path, Train], list[str]]
AT_A_TIME = 4  # random kills of one run, before it is left to end
STEPS = 60  # of runs that are killed or stopped at random moments
FEW_STEPS = 5  # of those that are broken at every point: the first checkpoint is removed at the fourth
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES)
ENOUGH = "64m"  # of a small file system
MAY_DIFFER = ("steps",)  # a run whose last checkpoint could not be saved has others


def check(quick: bool) -> list[Line]:
    """All lines. quick: fewer tries, of one kind of run."""
    with runs.place(warm=("plain", "idea", "top")) as (where, cases):

        def run_of(kind: str, steps: int, train: runs.Train = runs.train) -> Undisturbed:
            return Undisturbed(replace(cases[kind], steps=steps), where, train)

        lines: list[Line] = []
        for kind in ("idea",) if quick else cases:
            times, every = range(6 if quick else 17), 11 if quick else 1 if kind == "plain" else 5
            train = runs.train if kind == "plain" else runs.train_unscored  # one kind is killed while scoring too
            lines.append(line(f"killed anywhere, {kind}", run_of(kind, STEPS), at_random, times, AT_A_TIME))
            lines.append(point_kills(run_of(kind, FEW_STEPS, train), every, kind))
        by_time = run_of("idea", STEPS, train_by_time)
        saving, plain = run_of("idea", STEPS), run_of("plain", FEW_STEPS, runs.train_unscored)
        lines.append(line("stopped by a signal", by_time, stopped, range(6 if quick else 60)))
        lines.append(line("stopped by two signals", saving, stopped_twice, range(3 if quick else 30)))
        tries = [(*point, for_good) for point in points_of(plain, steps=False) for for_good in (False, True)]
        chosen = [one for n, one in enumerate(tries) if not quick or n % 13 == 0 or one[1] == "fsync"]
        lines.append(forks.over("file operation fails (EIO, ENOSPC, EACCES)", partial(fail_at, plain), chosen))
        with small_file_system(where / "probe", "64k") as may_mount:
            pass
        sizes = range(12, 700, 120 if quick else 24) if may_mount else ()
        return lines + ([forks.over("disk full", partial(fill_disk, plain), sizes)] if sizes else [])


def line(promise: str, run: Undisturbed, breakage: Breakage, items: Sequence[Any], times: int = 1) -> Line:
    """The line of a run that is broken in one way, so many times for each item, before it goes on to its end."""
    return forks.over(promise, lambda item: run.faults(*[partial(breakage, run, item)] * times), items)


# --- kills ------------------------------------------------------------------------------------------------------------


def at_random(run: Undisturbed, _: int, folder: Path, train: Train) -> list[str]:
    """A kill at a random moment."""
    ended = forks.run(train, kill_after=random.Random().uniform(0.01, 0.35 * run.seconds))
    return [] if ended.killed or ended.code == 0 else [f"ended with {ended.code}: {ended.said[-2000:]}"]


def killed_at(run: Undisturbed, point: tuple[int, str], folder: Path, train: Train) -> list[str]:
    """A kill at a point."""
    ended = broken_at(folder, train, at=point[0], steps=True)
    return [] if ended.killed else [f"it was not killed but ended with {ended.code}: {ended.said[-2000:]}"]


def broken_at(folder: Path, train: Train, **points: Any) -> Ended:
    """How a training ends that is broken at these points."""

    def work() -> None:
        Points(folder, **points)
        train()

    return forks.run(work)


def points_of(run: Undisturbed, steps: bool) -> list[tuple[int, str]]:
    """Every point that the run passes, and its name. steps: those of passes and updates too."""
    folder = run.new_folder()

    def work() -> list[str]:
        points = Points(folder, steps=steps)
        run.train(run.planned, folder)
        return points.names

    found = list(enumerate(forks.value_of(work)))
    shutil.rmtree(folder.parent)
    return found


def point_kills(run: Undisturbed, every: int, kind: str = "") -> Line:
    """The line of kills at every point of a run, or at one of `every` of them."""
    return line(f"killed at every point, {kind}", run, killed_at, points_of(run, steps=True)[::every])


# --- signals ----------------------------------------------------------------------------------------------------------


def train_by_time(run: Run, folder: Path) -> None:
    """Train with checkpoints saved by time, as by default: a signal's is the only one."""
    runs.train(run, folder, None)


def stopped(run: Undisturbed, number: int, folder: Path, train: Train, again: bool = False) -> list[str]:
    """A signal at a random moment once the run has its folder. again: and another, before or while the first one's
    checkpoint is saved."""
    kind, chance = SIGNALS[number % len(SIGNALS)], random.Random(number)
    child = forks.Child(train)
    while not (folder / RUN).exists():
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.7 * run.seconds))
    child.send(kind)
    if again:
        time.sleep(chance.uniform(0, 0.02))
        child.send(kind)
    ended = child.wait()
    if ended.code not in (0, CODES[kind]) or (ended.code == 0 and "stopped" in ended.said):
        return [f"ended with {ended.code}, not {CODES[kind]}: {ended.said[-1000:]}"]
    if "by a signal after step" in ended.said:
        rows, kept = len(runs.rows_of(folder)), runs.newest_step(folder)
        state = json.loads((folder / SUMMARY).read_text()).get("state")
        if (rows, state) != (kept, "interrupted"):
            return [f"{rows} steps are in the metrics, {kept} in the checkpoint, the state is {state}"]
        told = ended.said.splitlines()[-1].startswith("kept: weights, metrics and run.json in ")
        if not told or not (folder / "model.safetensors").exists():
            return [f"the weights are not kept, or nobody is told: {ended.said[-1000:]}"]
    elif ended.code and not again and (folder / METRICS).exists() and (folder / METRICS).read_bytes():
        return [] if "stopped while" in ended.said else [f"steps are lost: {ended.said[-1000:]}"]
    return []


stopped_twice = partial(stopped, again=True)


# --- storage ----------------------------------------------------------------------------------------------------------


def fail_at(run: Undisturbed, point: tuple[int, str, bool]) -> list[str]:
    """Train with a file operation that fails, and all after it if it does so for good."""
    at, name, for_good = point
    error = ERRORS[at % (2 if name == "fsync" else 3)]  # a folder that may not be read cannot be synced

    def fail() -> None:
        raise OSError(error, os.strerror(error))

    def failing(folder: Path, train: Train) -> list[str]:
        ended = broken_at(folder, train, at=at, for_good=for_good, act=fail)
        said = any(words in ended.said for words in ("and tries again", "could not be saved"))
        unsaid = name == "fsync" and ended.code == 0 and not said
        return ended_in_order(ended) + ([f"nobody is told of it: {ended.said[-500:]}"] if unsaid else [])

    return run.faults(failing, ignore=MAY_DIFFER)


def ended_in_order(ended: Ended) -> list[str]:
    """What is wrong with how a run met a failure of its storage, in words."""
    if ended.code not in (0, errors.STORAGE):
        return [f"ended with {ended.code}: {ended.said[-2000:]}"]
    if ended.code == errors.STORAGE and not ("error: " in ended.said and "why: " in ended.said):
        return [f"no message: {ended.said[-2000:]}"]
    if "could not be saved" in ended.said and not ("it takes " in ended.said and " are free" in ended.said):
        return [f"bytes needed and free are not told: {ended.said[-2000:]}"]
    return []


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[bool]:
    """A file system of its own in memory; yields False where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = bool(shutil.which("mount")) and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(run: Undisturbed, kilobytes: int) -> list[str]:
    """Train on a disk of this size, which is enlarged afterwards."""
    disk = run.new_folder().with_name("disk")

    def fill(_: Path, train: Train) -> list[str]:
        ended = forks.run(train)
        subprocess.run(["mount", "-o", f"remount,size={ENOUGH}", str(disk)], check=True, capture_output=True)
        full = ended.code != 0 or "could not be saved" in ended.said or kilobytes >= 60
        return ended_in_order(ended) + ([] if full else ["the disk was not full"])

    with small_file_system(disk, f"{kilobytes}k"):
        return run.faults(fill, folder=disk / "run", ignore=MAY_DIFFER)
