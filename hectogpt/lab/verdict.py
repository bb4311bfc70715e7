"""A verdict: what a comparison says about one arm against the first, as a paragraph to quote and as data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from hectogpt.display import printable
from hectogpt.lab.compare import Comparison, Result, short_name
from hectogpt.lab.record import Record
from hectogpt.lab.statistics import LEAST_DIFFERENCE, POWER, SIGNIFICANCE, Paired, VerdictWord, seeds_needed

FEWEST_SEEDS = 3  # to ask for where a single seed says nothing


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
    """What a comparison says about `arm` against `first`.

    word: "better", "worse", "tie" or "unproven", as `statistics.Paired` has it, or as `sequential.look` has it if
        `sequential`. One seed is unproven.
    gain: loss of the first minus loss of the arm, nats per token, a mean over the paired `seeds`: positive is better.
    low, high: its 95 % interval; None for one seed. p: one-sided, of a gain this large if there were none.
    noise_floor: 2 SD of the differences / sqrt(n). sd: of the differences.
    sequential: whether interval and p are those of the test that stays valid at every look.
    seconds, memory (MiB), parameters: of a trial; None where the records do not say.
    rules_broken, first_rules_broken: rules of `track` that the arm and the first break, in words; () if none.
    diverged, failed: (label, seed) of the trials of both arms that count as a uniform guess, and that do not count.
    seeds_needed: paired seeds that tell a gain of 0.02 nats from none (`statistics.seeds_needed`); None for one seed.
    text: all of it in words.
    """

    arm: str
    first: str
    word: VerdictWord
    gain: float
    low: float | None
    high: float | None
    p: float | None
    sd: float | None
    noise_floor: float | None
    seeds: tuple[int, ...]
    sequential: bool
    corpus: str
    split: str
    steps: int
    first_steps: int
    seconds: Cost | None
    memory: Cost | None
    parameters: Cost | None
    track: str
    rules_broken: tuple[str, ...]
    first_rules_broken: tuple[str, ...]
    diverged: tuple[tuple[str, int], ...]
    failed: tuple[tuple[str, int], ...]
    seeds_needed: int | None

    @property
    def text(self) -> str:
        """A paragraph that can be quoted by itself."""
        parts = [_outcome(self), _costs(self), _rules(self), _lost_trials(self), _what_it_takes(self)]
        return " ".join(part for part in parts if part)

    def __str__(self) -> str:
        return printable(self.text)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<p>{escape(str(self))}</p>"

    def as_json(self) -> dict[str, Any]:
        """Plain values: every field, with the costs' differences and ratios, and the text."""
        costs = {name: getattr(self, name) for name in ("seconds", "memory", "parameters")}
        return asdict(self) | {name: cost and cost.as_json() for name, cost in costs.items()} | {"text": self.text}


def give_verdicts(comparison: Comparison, results: Sequence[Result], sequential: bool = False) -> list[Verdict]:
    """A Verdict for each arm that shares a seed with the first. sequential: whether `results` are by that test."""
    if not results or results[0].arm.label != comparison.arms[0].label:
        return []
    first = results[0]
    return [
        _verdict(comparison, first, result, pair, sequential)
        for result in results[1:]
        if (pair := result.to_first) is not None
    ]


def _verdict(comparison: Comparison, first: Result, result: Result, pair: Paired, sequential: bool) -> Verdict:
    shared = sorted({record.seed for record in first.records} & {record.seed for record in result.records})
    seeds = tuple(shared[: pair.n])
    labels = (first.arm.label, result.arm.label)
    diverged = [(r.arm, r.seed) for r in (*first.records, *result.records) if r.status == "diverged"]
    return Verdict(
        arm=result.arm.label,
        first=first.arm.label,
        word=pair.verdict,
        gain=_positive(-pair.difference),
        low=None if pair.high is None else _positive(-pair.high),
        high=None if pair.low is None else _positive(-pair.low),
        p=pair.p,
        sd=pair.sd,
        noise_floor=pair.noise_floor,
        seeds=seeds,
        sequential=sequential,
        corpus=short_name(comparison.corpus.name),
        split=comparison.split,
        steps=result.arm.run.steps,
        first_steps=first.arm.run.steps,
        seconds=_cost(first, result, "seconds"),
        memory=_cost(first, result, "peak_mb"),
        parameters=_cost(first, result, "params"),
        track=comparison.track.name,
        rules_broken=_broken(result.records),
        first_rules_broken=_broken(first.records),
        diverged=tuple(diverged),
        failed=tuple((r.arm, r.seed) for r in comparison.failed if r.arm in labels),
        seeds_needed=None if pair.sd is None else seeds_needed(pair.sd),
    )


def _positive(number: float) -> float:
    """The number, with 0.0 for -0.0."""
    return number + 0.0


def _cost(first: Result, result: Result, name: str) -> Cost | None:
    means = first.mean(name), result.mean(name)
    return None if means[0] is None or means[1] is None else Cost(means[0], means[1])


def _broken(records: Sequence[Record]) -> tuple[str, ...]:
    """The rules that any of the records breaks, each once."""
    return tuple(dict.fromkeys(rule for record in records for rule in record.rules_broken))


# --- in words ---------------------------------------------------------------------------------------------------------

OPENINGS = {
    "better": "{arm} is better than {first}",
    "worse": "{arm} is worse than {first}",
    "tie": "{arm} ties with {first}",
    "unproven": "{arm} against {first} is unproven",
}


def _outcome(verdict: Verdict) -> str:
    opening = OPENINGS[verdict.word].format(arm=verdict.arm, first=verdict.first)
    side = "lower" if verdict.gain >= 0 else "higher"
    told = f"its {verdict.split} loss on {verdict.corpus} is {abs(verdict.gain):.4f} nats per token {side}"
    if verdict.gain == 0:
        told = f"their {verdict.split} losses on {verdict.corpus} are equal"
    facts = [f"gain {verdict.gain:+.4f}"]
    if verdict.low is not None and verdict.high is not None:
        facts.append(f"95 % interval {verdict.low:+.4f} to {verdict.high:+.4f}")
    facts += [f"one-sided p = {verdict.p:.1g}"] if verdict.p is not None else []
    seeds = len(verdict.seeds)
    facts.append(f"{seeds} paired seeds, {_span(verdict.seeds)}" if seeds > 1 else f"one seed, {verdict.seeds[0]}")
    same = verdict.steps == verdict.first_steps
    facts.append(f"{verdict.steps} steps" if same else f"{verdict.steps} steps against {verdict.first_steps}")
    parts = [f"{opening}: {told} ({'; '.join(facts)})."]
    if verdict.sequential and seeds > 1:
        parts.append("Interval and p are valid although the comparison was looked at after every seed.")
    if verdict.noise_floor is not None:
        parts.append(f"The noise floor is {verdict.noise_floor:.4f}.")
    return " ".join(parts)


def _span(seeds: Sequence[int]) -> str:
    """ "0 to 4", or the list where a seed is missing between them."""
    whole = list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if whole and len(seeds) > 2 else ", ".join(map(str, seeds))


def _costs(verdict: Verdict) -> str:
    told = [
        _cost_text(verdict.seconds, "{:,.1f}", " s"),
        _cost_text(verdict.memory, "{:,.0f}", " MiB of memory"),
        _cost_text(verdict.parameters, "{:,.0f}", " parameters"),
    ]
    told = [text for text in told if text]
    listed = ", ".join(told[:-1]) + (" and " if told[:-1] else "") + told[-1] if told else ""
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
    own, first, track = verdict.rules_broken, verdict.first_rules_broken, verdict.track
    if own:
        as_well = f"; so does {verdict.first}" if own == first else ""
        told = f"It breaks the rules of track {track}: {'; '.join(own)}{as_well}."
    else:
        told = f"It keeps the rules of track {track}."
    if first and first != own:
        told += f" {verdict.first} breaks them: {'; '.join(first)}."
    return told


def _lost_trials(verdict: Verdict) -> str:
    parts = []
    for trials, what in ((verdict.diverged, "diverged and counts"), (verdict.failed, "crashed and does not count")):
        for label in dict.fromkeys(label for label, _ in trials):
            seeds = [seed for name, seed in trials if name == label]
            several = what.replace("counts", "count").replace("does", "do") if len(seeds) > 1 else what
            guess = " as a uniform guess" if trials is verdict.diverged else ""
            listed = ", ".join(map(str, seeds))
            parts.append(f"{label}: seed{'s' * (len(seeds) > 1)} {listed} {several}{guess}.")
    return " ".join(parts)


def _what_it_takes(verdict: Verdict) -> str:
    """What would decide a tie or an unproven difference; nothing for one that is decided."""
    if verdict.word in ("better", "worse"):
        return ""
    needed, seeds = verdict.seeds_needed, len(verdict.seeds)
    if needed is None or verdict.sd is None:
        return f"One seed proves nothing: run at least {FEWEST_SEEDS}."
    if verdict.sequential and verdict.word == "tie":
        return f"The interval lies within {LEAST_DIFFERENCE} of no gain, so more seeds are not needed."
    goal = f"a gain of {LEAST_DIFFERENCE} nats from none (p < {SIGNIFICANCE}, power {POWER:.0%})".replace("%", " %")
    basis = f"by the SD of these differences, {verdict.sd:.4f}"
    if needed > seeds:
        more = f"{needed - seeds} more"
        return f"To tell {goal} takes about {needed:,} paired seeds ({more}), {basis}."
    if verdict.word == "unproven":
        return f"{needed} paired seeds tell {goal}, {basis}; what is missing is p, so run it on fresh seeds."
    return f"More seeds are not needed: {needed} tell {goal}, {basis}."
