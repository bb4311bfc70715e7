"""Stopped: signals at random moments, two in a row, and starts that are killed again and again.

A signal ends the run after the step under way, with a checkpoint of it and the signal's exit code; a second one ends it
at once. In all cases the run then goes on to the bits of an undisturbed one.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import forks
import killed
import small_runs
from killed import Reference
from promises import Line
from shims import Points
from small_runs import Case

from hectogpt.run_records import RUN, SUMMARY
from hectogpt.signals import CODES

STEPS = 40
SIGNALS, DOUBLES = 60, 30
STARTS = 10
AT_MOMENT = 3  # temporary files that the other thread may be writing when a start is killed
KINDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopping:
    """A run, and what it leaves undisturbed. Checkpoints are saved by time, so that a signal's is the only one."""

    def __init__(self, case: Case, where: Path) -> None:
        self.case, self.where = case.with_steps(STEPS), where
        self.expected: Reference = killed.reference(self.case, where, by_time)

    def begin(self, base: Path, every: int | None = None) -> forks.Child:
        """Start the run, and wait until it has its folder."""
        child = forks.Child(lambda: small_runs.train(self.case, base / "run", every))
        while not (base / "run" / RUN).exists():
            time.sleep(0.001)
        return child

    def once(self, number: int) -> list[str]:
        """One signal at a random moment."""
        base, chance = Path(tempfile.mkdtemp(dir=self.where)), random.Random(number)
        folder, kind = base / "run", KINDS[number % len(KINDS)]
        child = self.begin(base)
        time.sleep(chance.uniform(0, 0.8 * self.expected.seconds))
        child.send(kind)
        ended = child.wait()
        faults = []
        if ended.code not in (0, CODES[kind]) or (ended.code == 0 and "stopped" in ended.said):
            faults.append(f"ended with {ended.code}, not {CODES[kind]}: {ended.said[-1000:]}")
        if "stopped by a signal after step" in ended.said:
            rows, kept = len(small_runs.rows_of(folder)), small_runs.newest_step(folder)
            state = json.loads((folder / SUMMARY).read_text()).get("state")
            if (rows, state) != (kept, "interrupted"):
                faults.append(f"{rows} steps are in the metrics, {kept} in the checkpoint, the state is {state}")
        elif ended.code and small_runs.rows_of_any(folder) and "stopped while" not in ended.said:
            faults.append(f"steps are lost: {ended.said[-1000:]}")
        return faults + self.goes_on(base)

    def twice(self, number: int) -> list[str]:
        """Two signals, the second before or while the first one's checkpoint is saved; older ones must stay."""
        base, chance = Path(tempfile.mkdtemp(dir=self.where)), random.Random(number)
        kind = KINDS[number % len(KINDS)]
        child = self.begin(base, every=1)
        time.sleep(chance.uniform(0, 0.5 * self.expected.seconds))
        before = small_runs.newest_step(base / "run")
        child.send(kind)
        time.sleep(chance.uniform(0, 0.02))
        child.send(kind)
        ended = child.wait()
        faults = [] if ended.code in (0, CODES[kind]) else [f"ended with {ended.code}: {ended.said[-1000:]}"]
        if small_runs.newest_step(base / "run") < before:
            faults.append(f"the checkpoint of step {before} is lost")
        return faults + killed.faults_after_kill(base / "run", base / "side") + self.goes_on(base)

    def goes_on(self, base: Path) -> list[str]:
        """What is wrong with the run once it has gone on to its end."""
        ended = forks.run(lambda: by_time(self.case, base / "run"))
        faults = killed.faults_at_end(ended, base / "run", self.expected)
        shutil.rmtree(base)
        return faults


def by_time(case: Case, folder: Path) -> None:
    """Train with checkpoints saved by time, as by default."""
    small_runs.train(case, folder, None)


# --- starts that are killed -------------------------------------------------------------------------------------------


def crash_loop(case: Case, where: Path) -> list[str]:
    """STARTS starts, each killed while it saves its first checkpoint: nothing piles up, and what was there stays."""
    faults, train = [], small_runs.train_unscored
    case = case.with_steps(killed.FEW_STEPS)
    expected = killed.reference(case, where, train)
    for begun_before in (False, True):
        base = Path(tempfile.mkdtemp(dir=where))
        folder = base / "run"
        if begun_before:
            _killed_at(case, folder, "rename", 3)
        kept, sizes = small_runs.newest_step(folder), []
        for _ in range(STARTS):
            _killed_at(case, folder, "half of write tensors", 1)
            sizes.append(len(list(folder.rglob("*"))))
            if small_runs.newest_step(folder) < kept:
                faults.append(f"the checkpoint of step {kept} is lost")
        if max(sizes) - min(sizes) > AT_MOMENT:
            faults.append(f"the number of files grows: {sizes}")
        faults += killed.faults_at_end(forks.run(lambda: train(case, folder)), folder, expected)  # noqa: B023
        shutil.rmtree(base)
    return faults


def _killed_at(case: Case, folder: Path, name: str, times: int) -> None:
    """Train until a point of this name is passed for the nth time."""

    def work() -> None:
        seen = []

        def happens(_: object, named: str) -> bool:
            seen.extend([1] if named == name else [])
            return len(seen) == times

        Points(folder, happens).watch_all()
        small_runs.train_unscored(case, folder)

    forks.run(work)


def check(quick: bool) -> list[Line]:
    """All lines. quick: a tenth of the tries."""
    with small_runs.place(warm=("idea",)) as (where, cases):
        stopping, part = Stopping(cases["idea"], where), 10 if quick else 1
        begun = time.monotonic()
        loop = forks.line("crash loop", 2 * STARTS, crash_loop(cases["idea"], where), begun, "no growth")
        return [
            forks.over("one signal", stopping.once, range(SIGNALS // part)),
            forks.over("two signals", stopping.twice, range(DOUBLES // part)),
            loop,
        ]
