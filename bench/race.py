"""The one timer of all questions: contenders take turns, round by round, in one process.

A ratio is taken within a round and its median is told, so that a busy machine slows both sides of it alike. The peak
memory of a contender is measured in a fresh process.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from hectogpt import hardware, process

Work = Callable[[], object]
Lap = Callable[[], float]  # one turn of a contender; returns its seconds


def timed(work: Work, clock: Callable[[], float] = time.perf_counter) -> Lap:
    """A lap that does the work and returns its seconds by the clock."""

    def lap() -> float:
        start = clock()
        work()
        return clock() - start

    return lap


@dataclass(frozen=True)
class Laps:
    """Seconds of each contender in each round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Median seconds of a contender."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """Median over the rounds of the seconds of `name` divided by those of `other` in the same round."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True))


def race(contenders: dict[str, Lap], rounds: int, warm_up: bool = True) -> Laps:
    """Time every contender once a round. With `warm_up` one more round comes first, which does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-int(warm_up), rounds):
        for name, lap in contenders.items():
            taken = lap()
            if number >= 0:
                seconds[name].append(taken)
    return Laps(seconds)


def best(work: Work, tries: int = 7) -> float:
    """Seconds of the quickest of several calls, after one that does not count."""
    lap = timed(work)
    lap()
    return min(lap() for _ in range(tries))


def peak_memory(module: str, setting: str, contender: str) -> float:
    """Bytes that a contender's work adds at its peak to what a fresh process holds before it.

    The process calls `prepare(setting, contender)` of the module, then the work that this returns. Raises RuntimeError
    with the last words of a process that fails.
    """
    import torch

    answers: list[dict[str, Any]] = []
    request = {"module": module, "setting": setting, "contender": contender, "threads": torch.get_num_threads()}
    outcome = process.Child("bench.race").listen(request, lambda message, _: answers.append(message))
    if outcome.error is not None:
        raise RuntimeError(f"memory of {contender}: {outcome.error}\n{outcome.last_words}")
    return float(answers[0]["bytes"])


def _measure_peak(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the fresh process does."""
    import torch

    torch.set_num_threads(request["threads"])
    work = importlib.import_module(request["module"]).prepare(request["setting"], request["contender"])
    before = psutil.Process().memory_info().rss / 2**20
    work()
    yield {"bytes": (hardware.peak_memory_mb() - before) * 2**20}


if __name__ == "__main__":
    process.answer(_measure_peak)
