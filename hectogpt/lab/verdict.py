"""A comparison's verdict on one arm, as a paragraph to quote and as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hectogpt.display import columns, printable
from hectogpt.lab.compare import Comparison, Result, result_table, short_name
from hectogpt.lab.full_run import FEW_TOKENS
from hectogpt.lab.record import Record, failures
from hectogpt.lab.statistics import (
    LEAST_DIFFERENCE,
    OPENINGS,
    POWER,
    SIGNIFICANCE,
    Paired,
    VerdictWord,
    p_text,
    seeds_needed,
)

FEWEST_SEEDS = 3  # the number of seeds recommended after a run with only one
# Costs of a trial: name in a verdict -> field of a record, number format, unit.
COSTS = {
    "seconds": ("seconds", "{:,.1f}", " s"),
    "memory": ("peak_mb", "{:,.0f}", " MiB of memory"),
    "parameters": ("params", "{:,.0f}", " parameters"),
}
Cost = Mapping[str, float | None]  # "first" or "arm" -> the mean over that arm's trials


@dataclass(frozen=True)
class Verdict:
    """The result of comparing one arm with the first.

    Attributes:
        arm, first: labels of the two arms.
        pair: their paired difference, from `Comparison.pair`.
        seeds: the paired seeds, up to the decision.
        costs: "seconds", "memory" (MiB) and "parameters" -> the mean over each arm's trials; None
            if no record of the arm has it.
        diverged: (label, seed) of the trials of either arm that count as a uniform guess.
        failed: (label, seed) of the trials of either arm that crashed and do not count.
    """

    arm: str
    first: str
    pair: Paired
    seeds: tuple[int, ...]
    sequential: bool
    corpus: str
    split: str
    steps: int
    first_steps: int
    costs: dict[str, Cost]
    track: str
    rules_broken: tuple[str, ...]
    first_rules_broken: tuple[str, ...]
    diverged: list[tuple[str, int]]
    failed: list[tuple[str, int]]

    @staticmethod
    def of(comparison: Comparison, base: Result, result: Result, pair: Paired) -> Verdict:
        """Make the verdict on `result`, compared with `base`, the result of the first arm."""
        shared = {record.seed for record in base.records} & {
            record.seed for record in result.records
        }
        records = [*base.records, *result.records, *comparison.failed]
        arms = (base.arm.label, result.arm.label)
        lost = {
            status: [(r.arm, r.seed) for r in records if r.status == status and r.arm in arms]
            for status in ("diverged", "failed")
        }
        return Verdict(
            arm=result.arm.label,
            first=base.arm.label,
            pair=pair,
            seeds=tuple(sorted(shared)[: pair.n]),
            sequential=comparison.sequential,
            corpus=short_name(comparison.corpus.name),
            split=comparison.split,
            steps=result.arm.run.steps,
            first_steps=base.arm.run.steps,
            costs={
                name: {"first": base.mean(one), "arm": result.mean(one)}
                for name, (one, _, _) in COSTS.items()
            },
            track=comparison.track.name,
            rules_broken=result.rules_broken,
            first_rules_broken=base.rules_broken,
            **lost,
        )

    @property
    def word(self) -> VerdictWord:
        """The verdict as one word: "better", "worse", "tie" or "unproven"."""
        return self.pair.verdict

    @property
    def gain(self) -> float:
        """The mean, over the paired seeds, of the first arm's loss minus this arm's loss.

        In nats per token. Positive means that this arm is better.
        """
        return self.pair.gain

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the gain; None while there are too few seeds for one."""
        return self.pair.interval

    @property
    def text(self) -> str:
        """The verdict as a paragraph that can be quoted on its own."""
        lost = [
            f"{arm}, seed {seed}: diverged, counted as a uniform guess."
            for arm, seed in self.diverged
        ]
        lost += [f"{arm}, seed {seed}: crashed, not counted." for arm, seed in self.failed]
        costs = costs_text("trial", self.costs)
        return " ".join(
            filter(None, [_outcome(self), costs, _rules(self), *lost, _what_it_takes(self)])
        )

    def __repr__(self) -> str:
        return printable(self.text)

    def as_json(self) -> dict[str, Any]:
        """The verdict as plain values, with the numbers of the pair, the costs and the text."""
        fields = asdict(self)
        pair = fields.pop("pair")
        costs = fields.pop("costs")
        needed = None if self.pair.sd is None else seeds_needed(self.pair.sd)
        return (
            fields | costs | pair | {"word": self.word, "seeds_needed": needed, "text": self.text}
        )


def costs_text(what: str, costs: Mapping[str, Cost]) -> str:
    """A sentence on costs: "Costs of a trial: 21.0 s instead of 14.0 (x 1.5), ...".

    A cost appears only if it is known for both arms.
    """
    texts = []
    for name, (_, form, unit) in COSTS.items():
        first = costs[name]["first"]
        arm = costs[name]["arm"]
        if first is not None and arm is not None:
            before = form.format(first)
            after = form.format(arm)
            ratio = f" (x {arm / first:.3g})" if first else ""
            texts.append(
                f"the same {after}{unit}"
                if after == before
                else f"{after}{unit} instead of {before}{ratio}"
            )
    return f"Costs of a {what}: {', '.join(texts)}." if texts else ""


@dataclass(frozen=True)
class ComparisonResult:
    """The results of a comparison, as `hectogpt compare` prints them.

    Attributes:
        results: one for each run that has a trial, in order, with its losses over the seeds and
            its paired difference from the first run (`to_first`).
        records: the records of all trials, including crashed ones.
        verdicts: one for each run that shares a seed with the first; `text` is a paragraph to
            quote.
        notes: a warning if the held-out text is small, and a line for each way in which trials
            failed or broke the track's rules.
        split: the split that is compared.
    """

    results: tuple[Result, ...]
    records: tuple[Record, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    corpus: str
    split: str
    seeds: tuple[int, ...]

    @staticmethod
    def of(comparison: Comparison) -> ComparisonResult:
        """Summarise the trials recorded so far."""
        results = comparison.results()
        used = [record for result in results for record in result.records]
        records = used + comparison.failed
        tokens = len(comparison.corpus.tokens[comparison.split])
        split = comparison.split
        small = (
            f"the {split} text has only {tokens:,} tokens, so the last decimals of its losses "
            "mean nothing"
        )
        return ComparisonResult(
            results=tuple(results),
            records=tuple(records),
            verdicts=tuple(
                Verdict.of(comparison, results[0], r, r.to_first) for r in results if r.to_first
            ),
            notes=(
                *([small] if tokens < FEW_TOKENS else []),
                *comparison.unchanged(),
                *_origins(used),
                *failures(records),
            ),
            corpus=comparison.corpus.name,
            split=split,
            seeds=tuple(comparison.seeds),
        )

    def __repr__(self) -> str:
        title = (
            f"{self.corpus}: {self.split} loss, nats/token, {len(self.seeds)} "
            f"seed{'' if len(self.seeds) == 1 else 's'}"
        )
        lines = [
            title,
            *columns(*result_table(self.results, self.split)),
            *map(str, self.verdicts),
            *self.notes,
        ]
        return printable("\n".join(lines))


# --- text


def _origins(records: Sequence[Record]) -> list[str]:
    """A note if records were made by different or changed code, or in different dtypes."""
    told = []
    for name in ("version", "commit", "dirty", "dtype", "head_dtype"):
        values = {str(((one.machine or {}) | vars(one)).get(name))[:12] for one in records}
        if len(values) > 1 or "True" in values:
            told.append(f"{name} {' and '.join(sorted(values))}")
    if not told:
        return []
    why = f"or their code was not committed ({'; '.join(told)})"
    return [f"the trials differ in code or dtypes, {why}; to repeat them, write to a new file"]


def _outcome(verdict: Verdict) -> str:
    pair = verdict.pair
    seeds = verdict.seeds
    gain = verdict.gain
    interval = verdict.interval
    facts = [f"gain {gain:+.4f}"]
    facts += ["95 % interval {:+.4f} to {:+.4f}".format(*interval)] if interval is not None else []
    facts += [f"one-sided p = {p_text(pair.p)}".replace("= >", ">")] if pair.p is not None else []
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    which = f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))
    facts.append(
        f"{len(seeds)} paired seeds, {which}" if len(seeds) > 1 else f"one seed, {seeds[0]}"
    )
    steps = verdict.steps
    first_steps = verdict.first_steps
    facts.append(
        f"{steps} steps" if steps == first_steps else f"{steps} steps against {first_steps}"
    )
    loss = f"its {verdict.split} loss on {verdict.corpus} is {abs(gain):.4f} nats per token"
    text = OPENINGS[verdict.word].format(arm=verdict.arm, first=verdict.first)
    text += f": {loss} {'lower' if gain >= 0 else 'higher'} ({'; '.join(facts)})."
    if verdict.sequential and len(seeds) > 1:
        text += " The interval accounts for looking at the results after every seed."
    return text + (
        f" The noise floor is {pair.noise_floor:.4f}." if pair.noise_floor is not None else ""
    )


def _rules(verdict: Verdict) -> str:
    own = verdict.rules_broken
    first = verdict.first_rules_broken
    track = verdict.track
    text = (
        f"{verdict.arm} breaks the rules of track {track}: {'; '.join(own)}"
        if own
        else f"{verdict.arm} keeps the rules of track {track}"
    )
    return f"{text}. {verdict.first} breaks them: {'; '.join(first)}." if first else f"{text}."


def _what_it_takes(verdict: Verdict) -> str:
    """A sentence on whether more seeds would help; "" if the arm is better or worse."""
    sd = verdict.pair.sd
    seeds = len(verdict.seeds)
    if verdict.word in ("better", "worse"):
        return ""
    if sd is None:
        return f"One seed proves nothing: run at least {FEWEST_SEEDS}."
    if verdict.sequential:
        tie = f"The interval lies within {LEAST_DIFFERENCE} of zero, so more seeds are not needed."
        return tie if verdict.word == "tie" else "More seeds may decide it."
    needed = seeds_needed(sd)
    goal = f"a gain of {LEAST_DIFFERENCE} nats (p < {SIGNIFICANCE}, power {100 * POWER:.0f} %)"
    basis = f"given the SD of these differences, {sd:.4f}"
    if needed > seeds:
        return (
            f"About {needed:,} paired seeds would be needed ({needed - seeds} more) to detect "
            f"{goal}, {basis}."
        )
    more = (
        "p is still too high, so try fresh seeds"
        if verdict.word == "unproven"
        else "more are not needed"
    )
    return f"{needed} paired seeds can detect {goal}, {basis}; {more}."
