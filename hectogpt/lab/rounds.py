"""Seed by seed: a comparison whose number of seeds is found while it runs, by a budget of time or by its result.

A round has a seed, or as many as several workers need. What is decided does not depend on that: seeds are looked at in
their order, and those after the first look that decides do not count.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence

from hectogpt.errors import UserError, set_to
from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.plan import Arm

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


def rounds(
    comparison: Comparison, workers: int = 1, clock: Callable[[], float] = time.monotonic
) -> Iterator[list[Trial]]:
    """The trials to run, round by round, each once: one that has crashed is not run again. workers: how many trials run
    at a time.

    Of a comparison whose number of seeds is open, each round adds seeds and yields their missing trials. The rounds end
    after all of its seeds; before a round that would not fit into its budget; and, if it is sequential, when every arm
    is decided against the first one. Arms that are decided are not run further. A round fits if the slowest trials so
    far of its arms do; the first is run in any case. Two rounds in a row in which an arm crashes end them too.
    """
    if not comparison.is_open:
        yield comparison.missing()
        return
    begun, done, crashed, seeds = clock(), 0, set[str](), comparison.all_seeds
    while done < len(seeds):
        arms = open_arms(comparison) if done else comparison.arms
        if not arms:
            break
        new = seeds[done : done + max(1, workers // len(arms))]
        comparison.seeds = seeds[: done + len(new)]
        trials = [trial for trial in comparison.missing() if trial.seed in new and trial.arm in arms]
        if trials and done and (ended := _no_room(comparison, trials, workers, clock() - begun, done)):
            comparison.seeds, comparison.ended = seeds[:done], ended
            return
        yield trials
        lost = {trial.arm.label for trial in trials if trial.name not in comparison.records}
        if lost & crashed:
            comparison.ended = f"{', '.join(sorted(lost & crashed))} crashed twice in a row"
            return
        crashed, done = lost, done + len(new)
    decided = comparison.sequential and not open_arms(comparison)
    comparison.ended = f"decided after {_count(done)}" if decided else f"all of {_count(done)} are run"
    comparison.ended += ", not decided" if comparison.sequential and not decided else ""


def open_arms(comparison: Comparison) -> list[Arm]:
    """The arms to run at the next seed: all, or the first and those that are not decided; [] if all are."""
    first, *others = comparison.arms
    if not comparison.sequential:
        return [first, *others]
    left = [arm for arm in others if (pair := comparison.pair(arm)) is None or pair.verdict == "unproven"]
    return [first, *left] if left else []


def _no_room(comparison: Comparison, trials: Sequence[Trial], workers: int, spent: float, done: int) -> str:
    """Why these trials do not fit into what is left of the budget; "" if they do."""
    if comparison.budget is None:
        return ""
    needed = sum(_slowest(comparison, trial.arm) for trial in trials) / min(workers, len(trials))
    if spent < comparison.budget and spent + needed <= comparison.budget:
        return ""
    return (
        f"budget of {duration_text(comparison.budget)}: {_count(done)} in {duration_text(spent)}; the next takes about "
        f"{duration_text(needed)}"
    )


def _slowest(comparison: Comparison, arm: Arm) -> float:
    """Seconds of the arm's slowest trial so far, scoring included; 0 if none is known."""
    records = [record for (label, _), record in comparison.records.items() if label == arm.label]
    return max((max(r.wall_seconds or 0.0, r.seconds or 0.0) for r in records), default=0.0)


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds != 1)}"
