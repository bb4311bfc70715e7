"""Seed by seed: a comparison whose number of seeds is found while it runs, by a budget of time or by its result.

With several workers the trials of a seed that leave workers idle come with the first of the seeds after it. What is
decided does not depend on that: seeds are looked at one after another, each when all its trials have ended, and a
later seed's losses count only when it is that seed's turn.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from hectogpt.errors import UserError
from hectogpt.lab.compare import Comparison, Result, Trial
from hectogpt.lab.plan import Arm
from hectogpt.lab.sequential import compare_sequentially, is_decided
from hectogpt.lab.statistics import Paired

MOST_SEEDS = 1000  # if no number is given
UNITS = {"s": 1, "m": 60, "h": 3600}
DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smh])+")


def parse_duration(text: str) -> float:
    """Seconds of "90s", "60m", "2h" or "1h30m". Raises UserError for what is none, and for no time at all."""
    compact = text.replace(" ", "").lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", compact) if DURATION.fullmatch(compact) else []
    seconds = sum((float(number) * UNITS[unit] for number, unit in parts), 0.0)
    if not seconds:
        raise UserError(
            f"budget {text}", why="a time is a number with s, m or h, as in 90s, 60m, 2h", fix="set budget to 60m"
        )
    return seconds


def duration_text(seconds: float) -> str:
    """ "45 s", "58 min" or "2 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = seconds / 60
    if minutes < 100:
        return f"{minutes:.0f} min" if minutes >= 10 else f"{minutes:.1f} min"
    return f"{minutes // 60:.0f} h {minutes % 60:.0f} min"


class Rounds:
    """The trials to run, a seed a round; iterating adds the seed to the comparison and yields its missing trials, and
    as many of later seeds as `workers` would be idle otherwise.

    The rounds end after `most` seeds; before a seed that would not fit into `budget` seconds; and, with
    `until_decided`, when every arm is decided against the first one by `sequential`. Arms that are decided are not run
    further. A seed fits if the slowest trials so far of its arms do; the first seed is run in any case. Two seeds in a
    row at which an arm crashes end them too. A trial is yielded once: one that has crashed is not run again.

    workers: how many trials run at a time. ended: why they have ended, in words; "" before.
    """

    def __init__(
        self,
        comparison: Comparison,
        first_seed: int = 0,
        most: int = MOST_SEEDS,
        budget: float | None = None,
        until_decided: bool = False,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if until_decided and len(comparison.arms) < 2:
            raise UserError("one arm: there is nothing to decide", fix="name two recipes")
        if most < 1:
            raise UserError(f"seeds = {most}", why="a comparison needs at least one seed")
        self.comparison, self.seeds = comparison, range(first_seed, first_seed + most)
        self.budget, self.until_decided, self.clock, self.workers = budget, until_decided, clock, workers
        self.ended = ""
        self._yielded: set[tuple[str, int]] = set()
        comparison.seeds = [first_seed]

    def __iter__(self) -> Iterator[list[Trial]]:
        comparison, begun = self.comparison, self.clock()
        crashed: set[str] = set()
        for place, seed in enumerate(self.seeds):
            open_arms = self.open_arms() if place else comparison.arms
            if not open_arms:
                self.ended = f"decided after {_count(place)}"
                return
            comparison.seeds = list(self.seeds[: place + 1])
            trials = [t for t in comparison.missing() if t.seed == seed and t.arm in open_arms]
            new = [t for t in trials if t.name not in self._yielded]
            if new and place and (told := self._no_room(new, self.clock() - begun, place)):
                comparison.seeds.pop()
                self.ended = told
                return
            if new:
                new += self._ahead(open_arms, place, new, self.clock() - begun)
            self._yielded |= {t.name for t in new}
            yield new
            lost = {t.arm.label for t in trials if t.name not in comparison.records}
            if lost & crashed:
                self.ended = f"{', '.join(sorted(lost & crashed))} crashed at two seeds in a row"
                return
            crashed = lost
        done = self.until_decided and not self.open_arms()
        self.ended = f"decided after {_count(len(self.seeds))}" if done else f"all of {_count(len(self.seeds))} are run"
        if self.until_decided and not done:
            self.ended += ", not decided"

    def _ahead(self, arms: Sequence[Arm], place: int, trials: list[Trial], spent: float) -> list[Trial]:
        """Trials of the seeds after this one, for the workers that `trials` leave idle; none that the budget has no
        room for."""
        found: list[Trial] = []
        for seed in self.seeds[place + 1 : place + 1 + self.workers]:
            for trial in (Trial(arm, seed) for arm in arms):
                if len(trials) + len(found) >= self.workers:
                    return found
                if trial.name in self._yielded or self.comparison.find(trial):
                    continue
                if self.budget is not None and (not place or self._no_room([*trials, *found, trial], spent, place)):
                    return found
                found.append(trial)
        return found

    def open_arms(self) -> list[Arm]:
        """The arms to run at the next seed: all, or the first and those that are not decided; [] if all are."""
        comparison = self.comparison
        if not self.until_decided:
            return comparison.arms
        left = [arm for arm in comparison.arms[1:] if not is_decided(self.pair(arm))]
        return [comparison.arms[0], *left] if left else []

    def pair(self, arm: Arm) -> Paired | None:
        """What the sequential test says about an arm against the first so far."""
        comparison = self.comparison
        losses = [comparison.losses(a, comparison.split) for a in (arm, comparison.arms[0])]
        return compare_sequentially(*losses)

    def results(self) -> list[Result]:
        """The comparison's results; with `until_decided` their differences are by the sequential test. There are then
        none to the arm before, as a test that does not know of the looks would not be valid."""
        results = self.comparison.results()
        if not self.until_decided:
            return results
        return [replace(r, to_first=r.to_first and self.pair(r.arm), to_previous=None) for r in results]

    def _no_room(self, trials: list[Trial], spent: float, done: int) -> str:
        """Why these trials do not fit into what is left of the budget; "" if they do."""
        if self.budget is None:
            return ""
        ends = [0.0] * self.workers  # when each worker is free again, if every trial goes to the first that is
        for trial in trials:
            ends.sort()
            ends[0] += self._slowest(trial.arm) or 0.0
        needed, left = max(ends), self.budget - spent
        if left > 0 and needed <= left:
            return ""
        return (
            f"budget of {duration_text(self.budget)}: {_count(done)} in {duration_text(spent)}; the next takes about "
            f"{duration_text(needed)}"
        )

    def _slowest(self, arm: Arm) -> float | None:
        """Seconds of the arm's slowest trial so far, scoring included."""
        records = [self.comparison.records.get((arm.label, seed)) for seed in self.comparison.seeds]
        known = [r.wall_seconds or r.seconds for r in records if r is not None]
        return max((seconds for seconds in known if seconds is not None), default=None)


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds != 1)}"
