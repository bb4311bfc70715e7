"""Storage that fails: full disks, file operations that fail, folders that cannot be written.

The run ends with exit code 7 and a message, or goes on and tells. What was saved before is still there and loads; with
the storage mended, the run goes on to the same bits.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forks
import killed
import shims
import small_runs
from killed import Reference
from promises import Line
from shims import Points
from small_runs import Case

from hectogpt import errors
from hectogpt.run_records import CHECKPOINTS
from hectogpt.training.checkpoint import Checkpoints
from hectogpt.training.session import Session

STEPS = 5
ENOUGH = "64m"  # of a small file system
KEPT = "all saved before is there"


class Judge:
    """Knows an undisturbed run: what each of its checkpoints holds, and its end."""

    def __init__(self, case: Case, where: Path) -> None:
        self.case = case
        self.expected: Reference = killed.reference(case, where, small_runs.train_unscored)
        session = Session.open(case.run, case.corpus)
        self.contents = {step.number: small_runs.content_of(session.checkpoint()) for step in session.steps()}

    def faults(self, ended: forks.Ended, folder: Path, side: Path) -> list[str]:
        """What is wrong with how a run met a failure, in words."""
        faults = []
        if ended.code not in (0, errors.STORAGE):
            faults.append(f"ended with {ended.code}: {ended.said[-2000:]}")
        if ended.code == errors.STORAGE and not ("error: " in ended.said and "why: " in ended.said):
            faults.append(f"no message: {ended.said[-2000:]}")
        faults += killed.faults_after_kill(folder, side)
        return faults + self.wrong(folder)

    def faults_after_mending(self, folder: Path) -> list[str]:
        """What is wrong with going on once the storage works again. Which steps have checkpoints may differ; a run
        whose last one failed may have none."""
        ended = forks.run(lambda: small_runs.train_unscored(self.case, folder))
        faults = killed.faults_at_end(ended, folder, self.expected)
        return [fault for fault in faults if fault not in ("steps differs", "checkpoint differs")] + self.wrong(folder)

    def wrong(self, folder: Path) -> list[str]:
        """The checkpoints that hold something else than those of an undisturbed run."""
        checkpoints = Checkpoints(folder / CHECKPOINTS)
        whole = [step for step in checkpoints.steps() if not checkpoints.problem(step)]
        return [
            f"the checkpoint of step {step} holds something else"
            for step in whole
            if small_runs.content_of(checkpoints.load(step)) != self.contents[step]
        ]


# --- full disks -------------------------------------------------------------------------------------------------------


@contextmanager
def small_file_system(folder: Path, options: str) -> Iterator[bool]:
    """A file system of its own in memory; yields False where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Change the options of a small file system."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, capture_output=True)


def fill_disk(judge: Judge, where: Path, kilobytes: int) -> list[str]:
    """Train on a disk of this size."""
    base = Path(tempfile.mkdtemp(dir=where))
    disk, side = base / "disk", base / "side"
    with small_file_system(disk, f"size={kilobytes}k") as mounted:
        if not mounted:
            return ["the file system could not be mounted"]
        folder = disk / "run"
        ended = forks.run(lambda: _acknowledged(judge.case, folder, side))
        faults = judge.faults(ended, folder, side)
        if "could not be saved" in ended.said and not ("it takes " in ended.said and " are free" in ended.said):
            faults.append(f"bytes needed and free are not told: {ended.said[-2000:]}")
        if ended.code == 0 and "could not be saved" not in ended.said and kilobytes < 60:
            faults.append("the disk was not full")
        remount(disk, f"size={ENOUGH}")
        return faults + judge.faults_after_mending(folder)


def _acknowledged(case: Case, folder: Path, side: Path) -> None:
    small_runs.acknowledge_saves(side)
    small_runs.train_unscored(case, folder)


# --- operations that fail ---------------------------------------------------------------------------------------------


def fail_at(judge: Judge, where: Path, point: tuple[str, int], number: int, for_good: bool) -> list[str]:
    """Train with a file operation that fails with this error number, and all after it if it does so for good."""
    base = Path(tempfile.mkdtemp(dir=where))
    folder, side = base / "run", base / "side"

    def happens(here: tuple[str, int], _: str) -> bool:
        return here == point or (for_good and here[0] == point[0] and here[1] > point[1])

    def work() -> None:
        Points(folder, happens, shims.fail(number)).watch_files().watch_rows()
        _acknowledged(judge.case, folder, side)

    faults = judge.faults(forks.run(work), folder, side)
    faults += judge.faults_after_mending(folder)
    shutil.rmtree(base)
    return faults


def file_points(case: Case, where: Path) -> list[tuple[tuple[str, int], str]]:
    """The file operations of a run."""
    return killed.points_of(case, where, small_runs.train_unscored, watch=lambda p: p.watch_files().watch_rows())


def fail_to_sync(judge: Judge, where: Path, number: int) -> list[str]:
    """Let the fsync with this number fail once while a checkpoint is saved: that step must not be reported as saved."""
    folder = Path(tempfile.mkdtemp(dir=where)) / "run"
    (folder / CHECKPOINTS).mkdir(parents=True)
    session = Session.open(judge.case.run, judge.case.corpus)
    next(iter(session.steps()))

    def work() -> int:
        count = [0]
        sync = os.fsync

        def failing(descriptor: int) -> None:
            count[0] += 1
            if count[0] - 1 == number:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync(descriptor)

        os.fsync = failing
        Checkpoints(folder / CHECKPOINTS).save(session.checkpoint())
        return count[0]

    ended = forks.run(work)
    if number < 0:
        return [str(ended.value)]
    return [] if ended.code == errors.STORAGE else [f"fsync {number}: ended with {ended.code} {ended.said[-500:]}"]


# --- folders that cannot be written -----------------------------------------------------------------------------------


def refuse_folder(judge: Judge, where: Path) -> tuple[int, list[str]]:
    """A folder without permission, as a user who is not root, and a file system that is read-only: the run ends before
    its first step and names the folder. The number of ways tried, and the faults."""
    base = Path(tempfile.mkdtemp(dir=where))
    found = []
    closed = base / "closed"
    closed.mkdir(mode=0o555)
    base.chmod(0o755)
    where.chmod(0o755)

    def as_nobody() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        small_runs.train_unscored(judge.case, closed / "run")

    found.append((closed, forks.run(as_nobody)))
    with small_file_system(base / "read only", "ro") as mounted:
        if mounted:
            there = base / "read only"
            found.append((there, forks.run(lambda: small_runs.train_unscored(judge.case, there / "run"))))
    faults = []
    for folder, ended in found:
        if ended.code != errors.STORAGE or str(folder) not in ended.said or "step 0" in ended.said:
            faults.append(f"{folder.name}: ended with {ended.code}: {ended.said[-1000:]}")
    return len(found), faults


def check(quick: bool) -> list[Line]:
    """All lines. quick: fewer sizes and operations."""
    with small_runs.place(STEPS, warm=("plain",)) as (where, cases):
        judge = Judge(cases["plain"], where)
        points = file_points(judge.case, where)
        operations = [(point, number, kind) for number, (point, _) in enumerate(points) for kind in (False, True)]
        operations = [o for o in operations if o[1] % (12 if quick else 4 if o[2] else 2) == 0]
        with small_file_system(where / "probe", "size=64k") as may_mount:
            pass
        tries: list[tuple[str, Callable[[Any], list[str]], Sequence[Any]]] = [
            ("disk full", lambda size: fill_disk(judge, where, size), range(12, 700, 120 if quick else 24)),
            (
                "file operation fails (EIO, ENOSPC)",
                lambda o: fail_at(judge, where, o[0], errno.ENOSPC if o[1] % 4 else errno.EIO, o[2]),
                operations,
            ),
            ("fsync fails", lambda n: fail_to_sync(judge, where, n), range(int(fail_to_sync(judge, where, -1)[0]))),
        ]
        lines = [forks.over(*one, good=KEPT) for one in (tries if may_mount else tries[1:])]
        begun = time.monotonic()
        return [*lines, forks.line("read-only", *refuse_folder(judge, where), begun, KEPT)]
