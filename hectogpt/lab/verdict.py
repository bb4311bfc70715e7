"""A verdict: what a comparison says about one arm against the first, as a paragraph to quote and as data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from hectogpt.display import printable
from hectogpt.lab.compare import Comparison, Result, short_name
from hectogpt.lab.gains import gain_json, gain_of, interval_of
from hectogpt.lab.statistics import LEAST_DIFFERENCE, POWER, SIGNIFICANCE, Paired, VerdictWord, seeds_needed

FEWEST_SEEDS = 3  # to ask for where a single seed says nothing
COSTS = {"seconds": "seconds", "memory": "peak_mb", "parameters": "params"}  # a verdict's name -> a record's


@dataclass(frozen=True)
class Cost:
    """What a trial takes, as means over the trials of the first arm and of the other one."""

    first: float
    arm: float

    @property
    def difference(self) -> float:
        """The other arm's minus the first's."""
        return self.arm - self.first

    @property
    def ratio(self) -> float | None:
        """The other arm's by the first's; None where the first takes nothing."""
        return self.arm / self.first if self.first else None

    def as_json(self) -> dict[str, float | None]:
        """Both means, their difference and their ratio."""
        return asdict(self) | {"difference": self.difference, "ratio": self.ratio}


@dataclass(frozen=True)
class Verdict:
    """What a comparison says about an arm, `result`, against the first, `base`.

    pair: their paired difference, by `statistics.compare_pairs`, or, if `sequential`, by the test that stays valid at
    every look. One seed is unproven.
    """

    comparison: Comparison
    base: Result
    result: Result
    pair: Paired
    sequential: bool = False

    @property
    def arm(self) -> str:
        """The arm's label."""
        return self.result.arm.label

    @property
    def first(self) -> str:
        """The first arm's label."""
        return self.base.arm.label

    @property
    def word(self) -> VerdictWord:
        """ "better", "worse", "tie" or "unproven"."""
        return self.pair.verdict

    @property
    def gain(self) -> float:
        """Loss of the first minus loss of the arm, nats per token, a mean over the paired seeds: positive is better."""
        return gain_of(self.pair)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the gain; None for one seed."""
        return interval_of(self.pair)

    @property
    def low(self) -> float | None:
        """The interval's lower end."""
        return self.interval[0] if self.interval else None

    @property
    def high(self) -> float | None:
        """The interval's upper end."""
        return self.interval[1] if self.interval else None

    @property
    def p(self) -> float | None:
        """One-sided, of a gain this large if there were none; None for one seed."""
        return self.pair.p

    @property
    def seeds(self) -> tuple[int, ...]:
        """The paired seeds, up to the decision."""
        shared = {record.seed for record in self.base.records} & {record.seed for record in self.result.records}
        return tuple(sorted(shared)[: self.pair.n])

    @property
    def seeds_needed(self) -> int | None:
        """Paired seeds that tell a gain of 0.02 nats from none (`statistics.seeds_needed`); None for one seed."""
        return None if self.pair.sd is None else seeds_needed(self.pair.sd)

    def cost(self, name: str) -> Cost | None:
        """What a trial takes in "seconds", "memory" (MiB) or "parameters"; None where the records do not say."""
        first, arm = self.base.mean(COSTS[name]), self.result.mean(COSTS[name])
        return None if first is None or arm is None else Cost(first, arm)

    @property
    def diverged(self) -> tuple[tuple[str, int], ...]:
        """(label, seed) of the trials of both arms that count as a uniform guess."""
        records = (*self.base.records, *self.result.records)
        return tuple((record.arm, record.seed) for record in records if record.status == "diverged")

    @property
    def failed(self) -> tuple[tuple[str, int], ...]:
        """(label, seed) of the trials of both arms that crashed and do not count."""
        return tuple((r.arm, r.seed) for r in self.comparison.failed if r.arm in (self.first, self.arm))

    @property
    def text(self) -> str:
        """A paragraph that can be quoted by itself."""
        parts = [_outcome(self), _costs(self), _rules(self), _lost_trials(self), _what_it_takes(self)]
        return " ".join(part for part in parts if part)

    def __str__(self) -> str:
        return printable(self.text)

    def __repr__(self) -> str:
        return f"<Verdict {self.arm} against {self.first}: {self.word}, gain {self.gain:+.4f}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<p>{escape(str(self))}</p>"

    def as_json(self) -> dict[str, Any]:
        """Plain values: the pair's numbers, what it is about, costs, lost trials, and the text."""
        comparison, numbers = self.comparison, gain_json(self.pair)
        del numbers["n"]
        costs = {name: (cost := self.cost(name)) and cost.as_json() for name in COSTS}
        return {
            "arm": self.arm,
            "first": self.first,
            "word": numbers.pop("verdict"),
            **numbers,
            "seeds": self.seeds,
            "sequential": self.sequential,
            "corpus": short_name(comparison.corpus.name),
            "split": comparison.split,
            "steps": self.result.arm.run.steps,
            "first_steps": self.base.arm.run.steps,
            **costs,
            "track": comparison.track.name,
            "rules_broken": self.result.rules_broken,
            "first_rules_broken": self.base.rules_broken,
            "diverged": self.diverged,
            "failed": self.failed,
            "seeds_needed": self.seeds_needed,
            "text": self.text,
        }


def give_verdicts(comparison: Comparison, results: Sequence[Result], sequential: bool = False) -> list[Verdict]:
    """A Verdict for each arm that shares a seed with the first. sequential: whether `results` are by that test."""
    if not results or results[0].arm.label != comparison.arms[0].label:
        return []
    pairs = [(result, result.to_first) for result in results[1:]]
    return [Verdict(comparison, results[0], r, pair, sequential) for r, pair in pairs if pair is not None]


# --- in words ---------------------------------------------------------------------------------------------------------

OPENINGS = {
    "better": "{arm} is better than {first}",
    "worse": "{arm} is worse than {first}",
    "tie": "{arm} ties with {first}",
    "unproven": "{arm} against {first} is unproven",
}


def _outcome(verdict: Verdict) -> str:
    pair, seeds, comparison = verdict.pair, verdict.seeds, verdict.comparison
    opening = OPENINGS[verdict.word].format(arm=verdict.arm, first=verdict.first)
    split, corpus, gain = comparison.split, short_name(comparison.corpus.name), verdict.gain
    side = "lower" if gain >= 0 else "higher"
    outcome = f"its {split} loss on {corpus} is {abs(gain):.4f} nats per token {side}"
    if gain == 0:
        outcome = f"their {split} losses on {corpus} are equal"
    facts = [f"gain {gain:+.4f}"]
    if verdict.interval is not None:
        facts.append("95 % interval {:+.4f} to {:+.4f}".format(*verdict.interval))
    facts += [f"one-sided p = {pair.p:.1g}"] if pair.p is not None else []
    facts.append(f"{len(seeds)} paired seeds, {_span(seeds)}" if len(seeds) > 1 else f"one seed, {seeds[0]}")
    steps, first_steps = verdict.result.arm.run.steps, verdict.base.arm.run.steps
    facts.append(f"{steps} steps" if steps == first_steps else f"{steps} steps against {first_steps}")
    parts = [f"{opening}: {outcome} ({'; '.join(facts)})."]
    if verdict.sequential and len(seeds) > 1:
        parts.append("Interval and p are valid although the comparison was looked at after every seed.")
    if pair.noise_floor is not None:
        parts.append(f"The noise floor is {pair.noise_floor:.4f}.")
    return " ".join(parts)


def _span(seeds: Sequence[int]) -> str:
    """ "0 to 4", or the list where a seed is missing between them."""
    whole = list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if whole and len(seeds) > 2 else ", ".join(map(str, seeds))


def _costs(verdict: Verdict) -> str:
    texts = [
        _cost_text(verdict.cost("seconds"), "{:,.1f}", " s"),
        _cost_text(verdict.cost("memory"), "{:,.0f}", " MiB of memory"),
        _cost_text(verdict.cost("parameters"), "{:,.0f}", " parameters"),
    ]
    texts = [text for text in texts if text]
    listed = ", ".join(texts[:-1]) + (" and " if texts[:-1] else "") + texts[-1] if texts else ""
    return f"A trial takes {listed}." if listed else ""


def _cost_text(cost: Cost | None, form: str, unit: str) -> str:
    if cost is None:
        return ""
    arm, first = form.format(cost.arm), form.format(cost.first)
    if arm == first:
        return f"the same {arm}{unit}"
    difference = re.sub(r"^(?![-+])", "+", form.format(cost.difference))
    ratio = f", x {cost.ratio:.3g}" if cost.ratio is not None else ""
    return f"{arm}{unit} instead of {first} ({difference}{ratio})"


def _rules(verdict: Verdict) -> str:
    own, first, track = verdict.result.rules_broken, verdict.base.rules_broken, verdict.comparison.track.name
    if own:
        as_well = f"; so does {verdict.first}" if own == first else ""
        text = f"It breaks the rules of track {track}: {'; '.join(own)}{as_well}."
    else:
        text = f"It keeps the rules of track {track}."
    if first and first != own:
        text += f" {verdict.first} breaks them: {'; '.join(first)}."
    return text


def _lost_trials(verdict: Verdict) -> str:
    parts = []
    for trials, one, several in (
        (verdict.diverged, "diverged and counts as a uniform guess", "diverged and count as a uniform guess"),
        (verdict.failed, "crashed and does not count", "crashed and do not count"),
    ):
        for label in dict.fromkeys(label for label, _ in trials):
            seeds = [str(seed) for name, seed in trials if name == label]
            parts.append(
                f"{label}: seed {seeds[0]} {one}."
                if len(seeds) == 1
                else f"{label}: seeds {', '.join(seeds)} {several}."
            )
    return " ".join(parts)


def _what_it_takes(verdict: Verdict) -> str:
    """What would decide a tie or an unproven difference; nothing for one that is decided."""
    if verdict.word in ("better", "worse"):
        return ""
    needed, seeds = verdict.seeds_needed, len(verdict.seeds)
    if needed is None or verdict.pair.sd is None:
        return f"One seed proves nothing: run at least {FEWEST_SEEDS}."
    if verdict.sequential and verdict.word == "tie":
        return f"The interval lies within {LEAST_DIFFERENCE} of no gain, so more seeds are not needed."
    goal = f"a gain of {LEAST_DIFFERENCE} nats from none (p < {SIGNIFICANCE}, power {POWER:.0%})".replace("%", " %")
    basis = f"by the SD of these differences, {verdict.pair.sd:.4f}"
    if needed > seeds:
        more = f"{needed - seeds} more"
        return f"To tell {goal} takes about {needed:,} paired seeds ({more}), {basis}."
    if verdict.word == "unproven":
        return f"{needed} paired seeds tell {goal}, {basis}; what is missing is p, so run it on fresh seeds."
    return f"More seeds are not needed: {needed} tell {goal}, {basis}."
