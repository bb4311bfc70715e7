"""Killed and stopped: kill -9 at random moments, at every point of training, saving and scoring, and signals.

After each: no step that was reported as saved is lost, and no checkpoint is found half under its name. In the end
weights, checkpoints, metrics and scores are those of a run that nobody disturbed, bit by bit. A signal ends the run
after the step under way, with a checkpoint of it and the signal's exit code; a second one ends it at once.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import forks
import runs
from forks import Line
from operations import Points
from runs import Breakage, Undisturbed

from hectogpt.run_records import METRICS, RUN, SUMMARY
from hectogpt.signals import CODES
from hectogpt.training.run import Run

AT_A_TIME = 4  # random kills of one run, before it is left to end
STEPS = 60  # of runs that are killed or stopped at random moments
FEW_STEPS = 5  # of those that are killed at every point: the first checkpoint is removed at the fourth
STARTS = 10
AT_MOMENT = 3  # temporary files that a start may be writing when it is killed
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def check(quick: bool) -> list[Line]:
    """All lines. quick: fewer tries, of one kind of run."""
    with runs.place(warm=("plain", "idea", "top")) as (where, cases):
        kinds = {name: case for name, case in cases.items() if not quick or name == "idea"}
        longer = {name: Undisturbed(replace(case, steps=STEPS), where) for name, case in kinds.items()}
        by_time = Undisturbed(replace(cases["idea"], steps=STEPS), where, train_by_time)
        stopped = range(6 if quick else 60)
        return [
            forks.over("killed anywhere", lambda n: at_random(longer, n), range(6 if quick else 50)),
            *(
                point_kills(name, case, where, 11 if quick else 1 if name == "plain" else 5)
                for name, case in kinds.items()
            ),
            *([] if quick else [score_kills(cases["plain"], where, every=2)]),
            forks.over("stopped by a signal", lambda n: by_time.faults(one_signal(by_time, n)), stopped),
            forks.over("stopped by two", lambda n: longer["idea"].faults(two_signals(longer["idea"], n)), stopped[::2]),
            crash_loop(cases["idea"], where),
        ]


# --- kills ------------------------------------------------------------------------------------------------------------


def at_random(undisturbed: dict[str, Undisturbed], number: int) -> list[str]:
    """Kill one of the runs several times, at random moments."""
    chance, run = random.Random(number), list(undisturbed.values())[number % len(undisturbed)]

    def kill(_: Path, train: Callable[[], None]) -> list[str]:
        ended = forks.run(train, kill_after=chance.uniform(0.01, 0.35 * run.seconds))
        return [] if ended.killed or ended.code == 0 else [f"ended with {ended.code}: {ended.said[-2000:]}"]

    return run.faults(*[kill] * AT_A_TIME)


def killed_at(happens: Callable[[int, str], bool]) -> Breakage:
    """A kill at the first point that is chosen."""

    def kill(folder: Path, train: Callable[[], None]) -> list[str]:
        def work() -> None:
            Points(folder, happens).and_steps()
            train()

        ended = forks.run(work)
        return [] if ended.killed else [f"it was not killed but ended with {ended.code}: {ended.said[-2000:]}"]

    return kill


def nth(name: str, times: int) -> Callable[[int, str], bool]:
    """Whether a point of this name is passed for the nth time."""
    seen = []

    def happens(_: int, named: str) -> bool:
        seen.extend([1] if named == name else [])
        return len(seen) == times

    return happens


def points_of(run: Undisturbed, steps: bool = True) -> list[tuple[int, str]]:
    """Every point that the run passes, and its name. steps: those of passes and updates too."""
    folder = run.new_folder()

    def work() -> list[str]:
        points = Points(folder)
        if steps:
            points.and_steps()
        run.train(run.planned, folder)
        return points.names

    found = list(enumerate(forks.value_of(work)))
    shutil.rmtree(folder.parent)
    return found


def kills(promise: str, run: Undisturbed, points: list[tuple[int, str]]) -> Line:
    """The line of kills at these points."""
    return forks.over(promise, lambda point: run.faults(killed_at(lambda here, _: here == point[0])), points)


def point_kills(name: str, case: Run, where: Path, every: int) -> Line:
    """The line of kills at every point of training, or at one of `every` of them."""
    run = Undisturbed(replace(case, steps=FEW_STEPS), where, runs.train_unscored)
    return kills(f"killed at every point, {name}", run, points_of(run)[::every])


def score_kills(case: Run, where: Path, every: int) -> Line:
    """The line of kills at points of what follows the last step: weights, score, picture, summary, manifest."""
    run = Undisturbed(replace(case, steps=FEW_STEPS), where)
    points = points_of(run)
    rows = [point for point, name in points if name == f"write {METRICS}"]
    return kills("killed while scoring", run, points[rows[FEW_STEPS - 1] + 1 :: every])


def crash_loop(case: Run, where: Path) -> Line:
    """The line of starts, each killed while it saves its first checkpoint: nothing piles up, and what was there stays.
    Of a run that has a checkpoint, and of one that has none."""
    run = Undisturbed(replace(case, steps=FEW_STEPS), where, runs.train_unscored)

    def starts(first: list[Breakage]) -> list[str]:
        sizes: list[int] = []

        def killed(folder: Path, train: Callable[[], None]) -> list[str]:
            faults = killed_at(nth("half of write tensors", 1))(folder, train)
            sizes.append(len(list(folder.rglob("*"))))
            grows = max(sizes) - min(sizes) > AT_MOMENT
            return faults + ([f"the number of files grows: {sizes}"] if grows else [])

        return run.faults(*first, *[killed] * STARTS)

    return forks.over("crash loop", starts, [[], [killed_at(nth("rename", 3))]], "no growth")


# --- signals ----------------------------------------------------------------------------------------------------------


def train_by_time(case: Run, folder: Path) -> None:
    """Train with checkpoints saved by time, as by default: a signal's is the only one."""
    runs.train(case, folder, None)


def start(folder: Path, train: Callable[[], None], chance: random.Random, seconds: float) -> forks.Child:
    """Start the run, wait until it has its folder, and then for up to so many seconds."""
    child = forks.Child(train)
    while not (folder / RUN).exists():
        time.sleep(0.001)
    time.sleep(chance.uniform(0, seconds))
    return child


def one_signal(run: Undisturbed, number: int) -> Breakage:
    """One signal at a random moment."""

    def stop(folder: Path, train: Callable[[], None]) -> list[str]:
        kind = SIGNALS[number % len(SIGNALS)]
        child = start(folder, train, random.Random(number), 0.8 * run.seconds)
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
        elif ended.code and (folder / METRICS).exists() and (folder / METRICS).read_bytes():
            return [] if "stopped while" in ended.said else [f"steps are lost: {ended.said[-1000:]}"]
        return []

    return stop


def two_signals(run: Undisturbed, number: int) -> Breakage:
    """Two signals, the second before or while the first one's checkpoint is saved; older ones must stay."""

    def stop(folder: Path, train: Callable[[], None]) -> list[str]:
        kind, chance = SIGNALS[number % len(SIGNALS)], random.Random(number)
        child = start(folder, train, chance, 0.5 * run.seconds)
        child.send(kind)
        time.sleep(chance.uniform(0, 0.02))
        child.send(kind)
        ended = child.wait()
        return [] if ended.code in (0, CODES[kind]) else [f"ended with {ended.code}: {ended.said[-1000:]}"]

    return stop
