"""Killed anywhere: kill -9 at random moments of a run, and at every point of a step, of saving and of scoring.

After each kill: no step that was reported as saved is lost, and no checkpoint is found half under its name. In the end
weights, last checkpoint, metrics and scores are those of a run that nobody disturbed, bit by bit.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comparing
import forks
import small_runs
from promises import Line
from shims import Points
from small_runs import Case

from hectogpt.errors import UserError

Train = Callable[[Case, Path], None]
KILLS, QUICK_KILLS = 200, 24
STEPS = 60  # of the runs that are killed at random moments
FEW_STEPS = 5  # of those that are killed at every point: the first checkpoints are removed at the fourth


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: its signature, and how many seconds it took."""

    signature: dict[str, Any]
    seconds: float


def reference(case: Case, where: Path, train: Train = small_runs.train) -> Reference:
    """Run the case undisturbed. Raises RuntimeError if it does not run to its end."""
    folder = where / "reference" / "run"
    shutil.rmtree(folder.parent, ignore_errors=True)
    begun = time.monotonic()
    forks.value_of(lambda: train(case, folder))
    seconds = time.monotonic() - begun
    found = small_runs.signature(folder)
    shutil.rmtree(folder.parent)
    return Reference(found, seconds)


def faults_after_kill(folder: Path, side: Path) -> list[str]:
    """What a kill has broken in a run's folder, in words."""
    told, kept = small_runs.acknowledged(side), small_runs.newest_step(folder)
    lost = [f"lost: step {told} was reported as saved, the newest whole one is {kept}"] if kept < told else []
    return lost + [f"half a checkpoint: {problem}" for problem in small_runs.half_checkpoints(folder)]


def faults_at_end(ended: forks.Ended, folder: Path, expected: Reference) -> list[str]:
    """What is wrong with a run that was left to end, in words."""
    if ended.code != 0:
        return [f"going on failed with {ended.code}: {ended.said[-2000:]}"]
    try:
        found = small_runs.signature(folder)
    except (UserError, OSError, ValueError) as error:
        return [f"what it left cannot be read: {error}"]
    faults = [f"{name} differs" for name in small_runs.differences(found, expected.signature)]
    left = [path.name for path in folder.rglob(".*") if path.name != ".lock"]
    return faults + ([f"left behind: {', '.join(left)}"] if left else [])


# --- at random moments ------------------------------------------------------------------------------------------------


def kill_at_random(case: Case, where: Path, expected: Reference, kills: int, seed: int) -> tuple[int, list[str]]:
    """Start the run, kill it, start it again, until it ends; again from a new folder until there were `kills`. The
    number of kills, and what they have broken."""
    chance, done, faults = random.Random(seed), 0, []
    while done < kills:
        base = Path(tempfile.mkdtemp(dir=where))
        folder, side = base / "run", base / "side"
        while True:

            def work(folder: Path = folder, side: Path = side) -> None:
                small_runs.acknowledge_saves(side)
                small_runs.train(case, folder)

            delay = chance.uniform(0.01, 0.35 * expected.seconds) if done < kills else None
            ended = forks.run(work, kill_after=delay)
            if not ended.killed:
                faults += faults_at_end(ended, folder, expected)
                break
            done += 1
            faults += faults_after_kill(folder, side)
        shutil.rmtree(base)
    return done, faults


def random_kills(cases: dict[str, Case], where: Path, kills: int, steps: int) -> Line:
    """The line of kills at random moments, shared among the kinds of runs."""
    begun = time.monotonic()
    longer = {name: case.with_steps(steps) for name, case in cases.items()}
    expected = {name: reference(case, where / name) for name, case in longer.items()}
    parts = [(name, seed) for seed in range(forks.WORKERS) for name in cases]

    def part(which: tuple[str, int]) -> tuple[int, list[str]]:
        name, seed = which
        share = kills // len(parts) + (parts.index(which) < kills % len(parts))
        return kill_at_random(longer[name], where, expected[name], share, seed)

    found = forks.spread(part, parts)
    faults = [fault for _, some in found for fault in some]
    return forks.line("killed anywhere", sum(n for n, _ in found), faults, begun)


# --- at every point ---------------------------------------------------------------------------------------------------


def points_of(
    case: Case,
    where: Path,
    train: Train,
    begin: Path | None = None,
    watch: Callable[[Points], Points] = Points.watch_all,
) -> list[tuple[tuple[str, int], str]]:
    """Every point that the run passes, and its name. begin: a folder to begin with a copy of. watch: which points."""
    folder, passed = where / "counted" / "run", where / "passed.json"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.mkdir(parents=True)

    def work() -> None:
        points = Points(folder)
        if begin is not None:
            shutil.copytree(begin, folder)
        watch(points)
        train(case, folder)
        passed.write_text(json.dumps(points.names))

    forks.value_of(work)
    shutil.rmtree(folder.parent)
    return [((thread, number), name) for (thread, number), name in json.loads(passed.read_text())]


def kill_at(
    point: tuple[str, int], case: Case, where: Path, train: Train, expected: Reference, begin: Path | None = None
) -> list[str]:
    """Kill a run at this point, go on with it to its end; what that has broken."""
    base = Path(tempfile.mkdtemp(dir=where))
    folder, side = base / "run", base / "side"
    if begin is not None:
        shutil.copytree(begin, folder)

    def dying() -> None:
        small_runs.acknowledge_saves(side)
        Points(folder, lambda here, _: here == point).watch_all()
        train(case, folder)

    ended = forks.run(dying)
    faults = [] if ended.killed else [f"it was not killed but ended with {ended.code}: {ended.said[-2000:]}"]
    faults += faults_after_kill(folder, side)
    faults += faults_at_end(forks.run(lambda: train(case, folder)), folder, expected)
    shutil.rmtree(base)
    return faults


def point_kills(name: str, case: Case, where: Path, every: int, only: str = "") -> Line:
    """The line of kills at every point of training, or at one of `every` of them. only: at points with these words."""
    case, train = case.with_steps(FEW_STEPS), small_runs.train_unscored
    expected = reference(case, where, train)
    points = [point for point in points_of(case, where, train) if only in point[1]][::every]
    return forks.over(f"killed at every point, {name}", lambda p: kill_at(p[0], case, where, train, expected), points)


def score_kills(case: Case, where: Path, every: int) -> Line:
    """The line of kills at every point of what follows the last step: weights, score, picture, summary, manifest."""
    case, train = case.with_steps(FEW_STEPS), small_runs.train
    expected, trained, first = reference(case, where), where / "trained" / "run", _first_of_scoring(case, where)
    forks.run(lambda: _train_until(case, trained, first))
    points = points_of(case, where, train, trained)[::every]
    return forks.over("killed while scoring", lambda p: kill_at(p[0], case, where, train, expected, trained), points)


def _first_of_scoring(case: Case, where: Path) -> int:
    """How many points of the main thread come before the first row of scores."""
    names = points_of(case, where, small_runs.train)
    rows = [point[1] for point, name in names if name == "row of metrics"]
    return rows[-1]


def _train_until(case: Case, folder: Path, point: int) -> None:
    Points(folder, lambda here, _: here == ("main", point)).watch_all()
    small_runs.train(case, folder)


def check(quick: bool) -> list[Line]:
    """All lines. quick: fewer kills."""
    with small_runs.place(warm=("plain", "idea", "top")) as (where, cases):
        kinds = ["idea"] if quick else list(cases)
        return [
            random_kills({name: cases[name] for name in kinds}, where, QUICK_KILLS if quick else KILLS, STEPS),
            *[point_kills(name, cases[name], where, 11 if quick else 1 if name == "plain" else 5) for name in kinds],
            *([] if quick else [score_kills(cases["plain"], where, every=2)]),
            comparing.compare_kills({n: cases[n] for n in ("plain", "top")}, where, 4 if quick else 24),
        ]
