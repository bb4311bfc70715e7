"""Seed by seed: a comparison whose number of seeds is found while it runs, by a budget of time or by its result.

A round has a seed, or as many as several workers need. What is decided does not depend on that: seeds are looked at in
their order, and those after the first look that decides do not count.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from hectogpt.errors import UserError, set_to
from hectogpt.lab.compare import Comparison, Result, Trial
from hectogpt.lab.plan import Arm
from hectogpt.lab.sequential import compare_sequentially
from hectogpt.lab.statistics import Paired

MOST_SEEDS = 1000  # if no number is given
UNITS = {"s": 1, "m": 60, "h": 3600}
DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh])")


def parse_duration(text: str) -> float:
    """Seconds of "90s", "60m", "2h" or "1h30m". Raises UserError for what is none, and for no time at all."""
    compact = text.replace(" ", "").lower()
    seconds = sum((float(number) * UNITS[unit] for number, unit in DURATION.findall(compact)), 0.0)
    if not seconds or DURATION.sub("", compact):
        why = "a time is a number with s, m or h, as in 90s, 60m, 2h"
        raise UserError(f"budget {text}", why=why, fix=set_to("budget", "60m"))
    return seconds


def duration_text(seconds: float) -> str:
    """ "45.6 s", "58.0 min" or "2.1 h"."""
    unit, size = next((u, n) for u, n in (("h", 3600), ("min", 60), ("s", 1)) if seconds >= 1.5 * n or n == 1)
    return f"{seconds / size:.1f} {unit}"


class Rounds:
    """The trials to run, round by round; iterating adds seeds to the comparison and yields their missing trials.

    The rounds end after `most` seeds; before a round that would not fit into `budget` seconds; and, with
    `until_decided`, when every arm is decided against the first one by `sequential`. Arms that are decided are not run
    further. A round fits if the slowest trials so far of its arms do; the first is run in any case. Two rounds in a row
    in which an arm crashes end them too. A trial is yielded once: one that has crashed is not run again.

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
        comparison.seeds = [first_seed]

    def __iter__(self) -> Iterator[list[Trial]]:
        comparison, begun, done = self.comparison, self.clock(), 0
        crashed: set[str] = set()
        while done < len(self.seeds):
            arms = self.open_arms() if done else comparison.arms
            if not arms:
                break
            new = self.seeds[done : done + max(1, self.workers // len(arms))]
            comparison.seeds = list(self.seeds[: new.stop - self.seeds.start])
            trials = [trial for trial in comparison.missing() if trial.seed in new and trial.arm in arms]
            if trials and done and (ended := self._no_room(trials, self.clock() - begun, done)):
                comparison.seeds, self.ended = list(self.seeds[:done]), ended
                return
            yield trials
            lost = {trial.arm.label for trial in trials if trial.name not in comparison.records}
            if lost & crashed:
                self.ended = f"{', '.join(sorted(lost & crashed))} crashed twice in a row"
                return
            crashed, done = lost, done + len(new)
        decided = self.until_decided and not self.open_arms()
        self.ended = f"decided after {_count(done)}" if decided else f"all of {_count(done)} are run"
        self.ended += ", not decided" if self.until_decided and not decided else ""

    def open_arms(self) -> list[Arm]:
        """The arms to run at the next seed: all, or the first and those that are not decided; [] if all are."""
        first, *others = self.comparison.arms
        if not self.until_decided:
            return [first, *others]
        left = [arm for arm in others if (pair := self.pair(arm)) is None or pair.verdict == "unproven"]
        return [first, *left] if left else []

    def pair(self, arm: Arm) -> Paired | None:
        """What the sequential test says about an arm against the first so far."""
        comparison = self.comparison
        losses = [comparison.losses(a, comparison.split) for a in (arm, comparison.arms[0])]
        return compare_sequentially(*losses)

    def results(self) -> list[Result]:
        """The comparison's results; with `until_decided` their differences are by the sequential test."""
        results = self.comparison.results()
        if not self.until_decided:
            return results
        return [replace(result, to_first=result.to_first and self.pair(result.arm)) for result in results]

    def _no_room(self, trials: Sequence[Trial], spent: float, done: int) -> str:
        """Why these trials do not fit into what is left of the budget; "" if they do."""
        if self.budget is None:
            return ""
        needed = sum(self._slowest(trial.arm) for trial in trials) / min(self.workers, len(trials))
        if spent < self.budget and spent + needed <= self.budget:
            return ""
        return (
            f"budget of {duration_text(self.budget)}: {_count(done)} in {duration_text(spent)}; the next takes about "
            f"{duration_text(needed)}"
        )

    def _slowest(self, arm: Arm) -> float:
        """Seconds of the arm's slowest trial so far, scoring included; 0 if none is known."""
        records = [record for (label, _), record in self.comparison.records.items() if label == arm.label]
        return max((max(r.wall_seconds or 0.0, r.seconds or 0.0) for r in records), default=0.0)


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds != 1)}"
