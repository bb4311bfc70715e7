"""Storage that fails: full disks, file operations that fail, folders that cannot be written.

The run ends with exit code 7 and a message, or goes on and tells. What was saved before is still there and loads; with
the storage mended, the run goes on to the same bits.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import forks
import killed
import runs
from forks import Line
from operations import Points
from runs import Undisturbed

from hectogpt import errors

STEPS = 5
ENOUGH = "64m"  # of a small file system
KEPT = "all saved before is there"
MAY_DIFFER = ("steps",)  # a run whose last checkpoint could not be saved has others


def check(quick: bool) -> list[Line]:
    """All lines. quick: fewer sizes and operations."""
    with runs.place(STEPS, warm=("plain",)) as (where, cases):
        run = Undisturbed(replace(cases["plain"], steps=STEPS), where, runs.train_unscored)
        points = killed.points_of(run, steps=False)
        tries = [(*point, number, for_good) for number, point in enumerate(points) for for_good in (False, True)]
        tries = [one for one in tries if one[2] % (12 if quick else 4 if one[3] else 2) == 0 or one[1] == "fsync"]
        with small_file_system(where / "probe", "size=64k") as may_mount:
            pass
        sizes = range(12, 700, 120 if quick else 24) if may_mount else ()
        operations = forks.over("file operation fails (EIO, ENOSPC)", lambda one: fail_at(run, *one), tries, KEPT)
        return [
            *([forks.over("disk full", lambda size: fill_disk(run, size), sizes, KEPT)] if sizes else []),
            operations,
            forks.over("a folder without permission", lambda _: refuse_folder(run), [""], KEPT),
        ]


def ended_in_order(ended: forks.Ended) -> list[str]:
    """What is wrong with how a run met a failure of its storage, in words."""
    if ended.code not in (0, errors.STORAGE):
        return [f"ended with {ended.code}: {ended.said[-2000:]}"]
    if ended.code == errors.STORAGE and not ("error: " in ended.said and "why: " in ended.said):
        return [f"no message: {ended.said[-2000:]}"]
    if "could not be saved" in ended.said and not ("it takes " in ended.said and " are free" in ended.said):
        return [f"bytes needed and free are not told: {ended.said[-2000:]}"]
    return []


@contextmanager
def small_file_system(folder: Path, options: str) -> Iterator[bool]:
    """A file system of its own in memory; yields False where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = bool(shutil.which("mount")) and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(run: Undisturbed, kilobytes: int) -> list[str]:
    """Train on a disk of this size, which is enlarged afterwards."""
    disk = run.new_folder().with_name("disk")

    def fill(_: Path, train: Callable[[], None]) -> list[str]:
        ended = forks.run(train)
        subprocess.run(["mount", "-o", f"remount,size={ENOUGH}", str(disk)], check=True, capture_output=True)
        full = ended.code != 0 or "could not be saved" in ended.said or kilobytes >= 60
        return ended_in_order(ended) + ([] if full else ["the disk was not full"])

    with small_file_system(disk, f"size={kilobytes}k"):
        return run.faults(fill, folder=disk / "run", ignore=MAY_DIFFER)


def fail_at(run: Undisturbed, point: int, name: str, number: int, for_good: bool) -> list[str]:
    """Train with a file operation that fails, and all after it if it does so for good."""
    error = errno.ENOSPC if number % 4 else errno.EIO

    def happens(here: int, _: str) -> bool:
        return here == point or (for_good and here > point)

    def raise_it() -> None:
        raise OSError(error, os.strerror(error))

    def fail(folder: Path, train: Callable[[], None]) -> list[str]:
        def work() -> None:
            Points(folder, happens, raise_it)
            train()

        ended = forks.run(work)
        said = any(words in ended.said for words in ("goes on and tries again", "could not be saved"))
        unsaid = name == "fsync" and ended.code == 0 and not said
        return ended_in_order(ended) + ([f"nobody is told of it: {ended.said[-500:]}"] if unsaid else [])

    return run.faults(fail, ignore=MAY_DIFFER)


def refuse_folder(run: Undisturbed) -> list[str]:
    """Train in a folder without permission, as a user who is not root: the run ends before its first step and names the
    folder."""
    place = run.new_folder().with_name("closed")
    place.mkdir(mode=0o555)
    for folder in place.parents[:2]:
        folder.chmod(0o755)

    def train() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        run.train(run.planned, place / "run")

    ended = forks.run(train)
    good = ended.code == errors.STORAGE and str(place) in ended.said and "step 0" not in ended.said
    return [] if good else [f"ended with {ended.code}: {ended.said[-1000:]}"]
