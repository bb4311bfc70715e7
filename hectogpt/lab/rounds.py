"""Seed by seed: a comparison whose number of seeds is found while it runs, by a budget of time or by its result."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
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
    """The trials to run, a seed a round; iterating adds the seed to the comparison and yields its missing trials.

    The rounds end after `most` seeds; before a seed that would not fit into `budget` seconds; and, with
    `until_decided`, when every arm is decided against the first one by `sequential`. Arms that are decided are not run
    further. A seed fits if the slowest trials so far of its arms do; the first seed is run in any case. Two seeds in a
    row at which an arm crashes end them too.

    ended: why they have ended, in words; "" before.
    """

    def __init__(
        self,
        comparison: Comparison,
        first_seed: int = 0,
        most: int = MOST_SEEDS,
        budget: float | None = None,
        until_decided: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if until_decided and len(comparison.arms) < 2:
            raise UserError("one arm: there is nothing to decide", fix="name two recipes")
        if most < 1:
            raise UserError(f"seeds = {most}", why="a comparison needs at least one seed")
        self.comparison, self.seeds = comparison, range(first_seed, first_seed + most)
        self.budget, self.until_decided, self.clock = budget, until_decided, clock
        self.ended = ""
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
            if trials and place and (told := self._no_room(trials, self.clock() - begun, place)):
                comparison.seeds.pop()
                self.ended = told
                return
            yield trials
            lost = {t.arm.label for t in trials if (t.arm.label, t.seed) not in comparison.records}
            if lost & crashed:
                self.ended = f"{', '.join(sorted(lost & crashed))} crashed at two seeds in a row"
                return
            crashed = lost
        done = self.until_decided and not self.open_arms()
        self.ended = f"decided after {_count(len(self.seeds))}" if done else f"all of {_count(len(self.seeds))} are run"
        if self.until_decided and not done:
            self.ended += ", not decided"

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
        slowest = [self._slowest(trial.arm) for trial in trials]
        needed, left = sum(seconds or 0.0 for seconds in slowest), self.budget - spent
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
