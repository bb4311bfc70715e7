"""The timer of all questions: each contender has its own process, and they take turns, round by round.

The ratio of two contenders is computed in each round, and its median reported, so that a busy machine slows both alike.
If the process of a contender fails, its row says why. A child answers once its threads are at rest, so that the next
contender has the machine to itself.
"""

from __future__ import annotations

import importlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import psutil

from hectogpt import hardware, process
from hectogpt.process import Ending

Row = dict[str, float | str]  # figures by name
Work = Callable[[], object]
Lap = Callable[[], Row]  # one turn of a contender: its "seconds", and what else it measures

PATIENCE = 600.0  # seconds in which a contender must answer


# --- in the contender's process ---------------------------------------------------------------------------------------


def timed(work: Work, clock: Callable[[], float] = time.perf_counter) -> Lap:
    """A lap that does the work and returns its seconds by the clock."""

    def lap() -> Row:
        start = clock()
        work()
        return {"seconds": clock() - start}

    return lap


def weighed(lap: Lap) -> Lap:
    """A lap that also returns this process's peak memory in megabytes, minus the memory that it holds now."""
    before = psutil.Process().memory_info().rss / 2**20

    def weighed_lap() -> Row:
        return lap() | {"peak_mb": round((hardware.peak_memory_mb() - before) * 2**20 / 1e6, 1)}

    return weighed_lap


def best(work: Work, tries: int = 7) -> float:
    """Seconds of the quickest of several calls, after one that does not count."""
    work()
    lap = timed(work)
    return min(float(lap()["seconds"]) for _ in range(tries))


def rest() -> None:
    """Wait until no thread of this process computes. Raises RuntimeError if they never rest."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.02)
        if time.process_time() - before < 0.002:
            return
    raise RuntimeError("its threads do not come to rest")


def take_part() -> None:
    """Prepare one contender, and do a lap whenever one is asked for."""
    frames = process.frames()
    asked = frames.receive()
    module = importlib.import_module(asked["module"])
    laps: dict[str, Lap] = module.prepare(asked["setting"], asked["contender"], asked["folder"])
    rest()
    frames.send({"laps": list(laps)})
    while True:
        row = laps[frames.receive()["lap"]]()
        rest()
        frames.send(row)


# --- in the process of the question -----------------------------------------------------------------------------------


class Contender:
    """A contender in a process of its own. laps: the names of its laps, once it is ready. lost: why it has dropped out;
    "" while it takes part."""

    def __init__(self, request: dict[str, Any], threads: int) -> None:
        self.name, self.lost = request["contender"], ""
        self.laps: Any = []
        self._left = threading.Event()
        self._answers: SimpleQueue[Row | Ending] = SimpleQueue()
        self._child = process.Child("bench.race", environment=os.environ | {"OMP_NUM_THREADS": str(threads)})
        self._thread = threading.Thread(target=self._listen, args=(request,), daemon=True)
        self._thread.start()

    def _listen(self, request: dict[str, Any]) -> None:
        ending = self._child.listen(request, lambda row, _: self._answers.put(row), cancelled=self._left.is_set)
        self._answers.put(ending)

    def answer(self) -> Row:
        """Its next answer; an empty one if it is lost."""
        if self.lost:
            return {}
        try:
            answer = self._answers.get(timeout=PATIENCE)
        except Empty:
            self.leave(f"no answer in {PATIENCE:.0f} s")
            return {}
        if isinstance(answer, Ending):
            words = answer.last_words.splitlines()
            by_an_error = answer.code is not None and answer.code > 0 and words
            self.lost = words[-1] if by_an_error else answer.error or "it ended"
            print(f"{self.name} failed: {self.lost}", *words[-12:], sep="\n  ", file=sys.stderr, flush=True)
            return {}
        return answer

    def get_ready(self) -> None:
        """Wait until it is ready."""
        self.laps = self.answer().get("laps", [])

    def ask(self, lap: str) -> Row:
        """Let it do a lap."""
        self._child.send({"lap": lap})
        return self.answer()

    def leave(self, why: str) -> None:
        """End its process, and wait for that."""
        self.lost = self.lost or why
        self._left.set()
        self._thread.join()


@dataclass(frozen=True)
class Laps:
    """The contenders' figures in each round. facts: results of the warm-up. lost: contender -> why it has none."""

    rounds: int
    of: dict[str, list[Row]]
    facts: dict[str, Row]
    lost: dict[str, str]

    def median(self, name: str, figure: str = "seconds") -> float:
        """Median of a figure over the rounds."""
        return statistics.median(float(lap[figure]) for lap in self.of[name])

    def ratio(self, name: str, other: str, figure: str = "seconds") -> float | None:
        """Median over the rounds of the figure of `name` divided by that of `other`; None if `other` was lost."""
        if other in self.lost or other not in self.of:
            return None
        pairs = zip(self.of[name], self.of[other], strict=True)
        return round(statistics.median(float(a[figure]) / float(b[figure]) for a, b in pairs), 2)

    def memory(self, name: str, other: str) -> float | None:
        """The peak memory of `name` divided by that of `other`; None if one of them was not measured."""
        peak, others = (float(self.facts.get(one, {}).get("peak_mb", 0)) for one in (name, other))
        return round(peak / others, 1) if peak and others else None

    def rows(self, figures: Callable[[str], dict[str, Any]], **fixed: float | str) -> list[Row]:
        """A row for each contender: the fixed entries, and its figures or the reason why it has none."""
        rows: list[Row] = []
        for name in self.of:
            found = {"failed": self.lost[name]} if name in self.lost else {"rounds": self.rounds, **figures(name)}
            rows.append({"contender": name, **fixed} | {key: v for key, v in found.items() if v is not None})
        return rows


@dataclass
class Race:
    """How contenders are timed: `rounds` turns each, with `threads` of torch. without: contenders whose names begin
    with one of these are left out. failed: contender -> why it was lost."""

    rounds: int
    threads: int
    without: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)

    def run(
        self,
        module: str,
        setting: str,
        names: Sequence[str],
        laps: Sequence[str] = ("step",),
        warm_up: Sequence[str] = (),
        folder: str | None = None,
    ) -> list[Laps]:
        """Time every contender once a round, for each of the laps that it has.

        `module.prepare(setting, name, folder)` gives the contender's laps by name, in its own process. warm_up: laps
        that come first and do not count as a round; by default all laps, once. folder: where contenders read and write
        files; by default an empty folder for all.
        """
        names = [name for name in names if not name.startswith(self.without)] if self.without else names
        with tempfile.TemporaryDirectory() as empty:
            asked = {"module": module, "setting": setting, "folder": folder or empty}
            contenders = {name: Contender(asked | {"contender": name}, self.threads) for name in names}
            try:
                for contender in contenders.values():
                    contender.get_ready()
                facts: dict[str, Row] = {name: {} for name in names}
                for lap in warm_up or laps:
                    for name, contender in contenders.items():
                        facts[name] |= contender.ask(lap) if lap in contender.laps else {}
                return [self._time(lap, contenders, facts) for lap in laps]
            finally:
                self.failed |= {name: contender.lost for name, contender in contenders.items() if contender.lost}
                for contender in contenders.values():
                    contender.leave("the end")

    def _time(self, lap: str, contenders: dict[str, Contender], facts: dict[str, Row]) -> Laps:
        turns: dict[str, list[Row]] = {n: [] for n, one in contenders.items() if lap in one.laps or one.lost}
        for _ in range(self.rounds):
            for name, rows in turns.items():
                rows.append(contenders[name].ask(lap))
        lost = {name: contenders[name].lost for name in turns if contenders[name].lost}
        return Laps(self.rounds, turns, facts, lost)


if __name__ == "__main__":
    take_part()
