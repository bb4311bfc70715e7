"""A verdict: what a comparison says about one arm against the first, as a paragraph to quote and as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hectogpt.display import columns, printable
from hectogpt.lab.compare import Comparison, Result, result_table, short_name
from hectogpt.lab.record import Record, failures
from hectogpt.lab.statistics import LEAST_DIFFERENCE, POWER, SIGNIFICANCE, Paired, VerdictWord, p_text, seeds_needed
from hectogpt.training.task import FEW_TOKENS

FEWEST_SEEDS = 3  # to ask for where a single seed says nothing
# What a trial costs: a verdict's name -> a record's, the form of a number, what follows it.
COSTS = {
    "seconds": ("seconds", "{:,.1f}", " s"),
    "memory": ("peak_mb", "{:,.0f}", " MiB of memory"),
    "parameters": ("params", "{:,.0f}", " parameters"),
}
OPENINGS = {
    "better": "{arm} is better than {first}",
    "worse": "{arm} is worse than {first}",
    "tie": "{arm} ties with {first}",
    "unproven": "{arm} against {first} is unproven",
}


@dataclass(frozen=True)
class Verdict:
    """What a comparison says about an arm, `result`, against the first, `base`.

    pair: their paired difference, by `Comparison.pair`. One seed is unproven.
    """

    comparison: Comparison
    base: Result
    result: Result
    pair: Paired

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
        return self.pair.gain

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the gain; None for one seed."""
        low, high = self.pair.low, self.pair.high
        return None if low is None or high is None else (low, high)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The paired seeds, up to the decision."""
        shared = {record.seed for record in self.base.records} & {record.seed for record in self.result.records}
        return tuple(sorted(shared)[: self.pair.n])

    def cost(self, name: str) -> tuple[float, float] | None:
        """What a trial takes in "seconds", "memory" (MiB) or "parameters", as a mean over the trials of the first and
        of the arm; None where the records do not say."""
        first, arm = self.base.mean(COSTS[name][0]), self.result.mean(COSTS[name][0])
        return None if first is None or arm is None else (first, arm)

    @property
    def lost(self) -> dict[str, list[tuple[str, int]]]:
        """(label, seed) of both arms' trials that "diverged", which count as a uniform guess, and that "failed", which
        do not count."""
        records = [*self.base.records, *self.result.records, *self.comparison.failed]
        arms = (self.first, self.arm)
        return {
            status: [(r.arm, r.seed) for r in records if r.status == status and r.arm in arms]
            for status in ("diverged", "failed")
        }

    @property
    def text(self) -> str:
        """A paragraph that can be quoted by itself."""
        return " ".join([_outcome(self), *_costs(self), _rules(self), *_lost_trials(self), *_what_it_takes(self)])

    def __str__(self) -> str:
        return printable(self.text)

    def __repr__(self) -> str:
        return f"<Verdict {self.arm} against {self.first}: {self.word}, gain {self.gain:+.4f}>"

    def as_json(self) -> dict[str, Any]:
        """Plain values: the pair's numbers, what it is about, costs, lost trials, and the text."""
        comparison, numbers = self.comparison, asdict(self.pair)
        del numbers["n"]
        costs = {name: (cost := self.cost(name)) and {"first": cost[0], "arm": cost[1]} for name in COSTS}
        return {
            "arm": self.arm,
            "first": self.first,
            "word": numbers.pop("verdict"),
            **numbers,
            "seeds": self.seeds,
            "sequential": comparison.sequential,
            "corpus": short_name(comparison.corpus.name),
            "split": comparison.split,
            "steps": self.result.arm.run.steps,
            "first_steps": self.base.arm.run.steps,
            **costs,
            "track": comparison.track.name,
            "rules_broken": self.result.rules_broken,
            "first_rules_broken": self.base.rules_broken,
            **self.lost,
            "seeds_needed": None if self.pair.sd is None else seeds_needed(self.pair.sd),
            "text": self.text,
        }


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison came to: the data of what `hectogpt compare` prints.

    results: one for each run that has a trial, in the order of the runs: losses over the seeds, and the paired
        difference to the first run (`to_first`).
    records: of all trials, those that crashed included. verdicts: one for each run that shares a seed with the first;
        `text` is a paragraph to quote, the other fields are its numbers.
    notes: that the held-out text is small, and a line for each way in which trials went wrong or broke the track's
        rules. split: what is compared.
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
        """What the trials recorded so far say."""
        results = comparison.results()
        records = [record for result in results for record in result.records] + comparison.failed
        tokens, split = len(comparison.corpus.tokens[comparison.split]), comparison.split
        small = f"the {split} text has only {tokens:,} tokens, so the last decimals of a loss on it mean nothing"
        return ComparisonResult(
            results=tuple(results),
            records=tuple(records),
            verdicts=tuple(Verdict(comparison, results[0], r, r.to_first) for r in results if r.to_first is not None),
            notes=(*[small] * (tokens < FEW_TOKENS), *failures(records)),
            corpus=comparison.corpus.name,
            split=split,
            seeds=tuple(comparison.seeds),
        )

    def __repr__(self) -> str:
        return f"<ComparisonResult {' / '.join(result.arm.label for result in self.results)}>"

    def __str__(self) -> str:
        title = f"{self.corpus}: {self.split} loss, nats/token, {len(self.seeds)} seed{'s' * (len(self.seeds) != 1)}"
        lines = [title, *columns(*result_table(self.results, self.split)), *map(str, self.verdicts), *self.notes]
        return printable("\n".join(lines))


# --- in words ---------------------------------------------------------------------------------------------------------


def _outcome(verdict: Verdict) -> str:
    pair, seeds, comparison, gain = verdict.pair, verdict.seeds, verdict.comparison, verdict.gain
    where = f"{comparison.split} loss on {short_name(comparison.corpus.name)}"
    outcome = f"its {where} is {abs(gain):.4f} nats per token {'lower' if gain >= 0 else 'higher'}"
    facts = [f"gain {gain:+.4f}"]
    if verdict.interval is not None:
        facts.append("95 % interval {:+.4f} to {:+.4f}".format(*verdict.interval))
    facts += [f"one-sided p = {p_text(pair.p)}".replace("= >", ">")] if pair.p is not None else []
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    which = f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))
    facts.append(f"{len(seeds)} paired seeds, {which}" if len(seeds) > 1 else f"one seed, {seeds[0]}")
    steps, first_steps = verdict.result.arm.run.steps, verdict.base.arm.run.steps
    facts.append(f"{steps} steps" if steps == first_steps else f"{steps} steps against {first_steps}")
    text = f"{OPENINGS[verdict.word].format(arm=verdict.arm, first=verdict.first)}: {outcome} ({'; '.join(facts)})."
    if comparison.sequential and len(seeds) > 1:
        text += " The interval is valid although the comparison was looked at after every seed."
    return text + (f" The noise floor is {pair.noise_floor:.4f}." if pair.noise_floor is not None else "")


def _costs(verdict: Verdict) -> list[str]:
    texts = []
    for name, (_, form, unit) in COSTS.items():
        if (cost := verdict.cost(name)) is not None:
            first, arm = map(form.format, cost)
            ratio = f" (x {cost[1] / cost[0]:.3g})" if cost[0] else ""
            texts.append(f"the same {arm}{unit}" if arm == first else f"{arm}{unit} instead of {first}{ratio}")
    return [f"A trial takes {', '.join(texts)}."] if texts else []


def _rules(verdict: Verdict) -> str:
    own, first, track = verdict.result.rules_broken, verdict.base.rules_broken, verdict.comparison.track.name
    text = f"It breaks the rules of track {track}: {'; '.join(own)}" if own else f"It keeps the rules of track {track}"
    if own and own == first:
        return f"{text}; so does {verdict.first}."
    return f"{text}. {verdict.first} breaks them: {'; '.join(first)}." if first else f"{text}."


def _lost_trials(verdict: Verdict) -> list[str]:
    what = {"diverged": "diverged, counted as a uniform guess", "failed": "crashed, not counted"}
    lost = verdict.lost
    return [f"{label}, seed {seed}: {what[status]}." for status in what for label, seed in lost[status]]


def _what_it_takes(verdict: Verdict) -> list[str]:
    """What would decide a tie or an unproven difference; nothing for one that is decided."""
    if verdict.word in ("better", "worse"):
        return []
    if verdict.pair.sd is None:
        return [f"One seed proves nothing: run at least {FEWEST_SEEDS}."]
    if verdict.comparison.sequential:
        tie = f"The interval lies within {LEAST_DIFFERENCE} of no gain, so more seeds are not needed."
        return [tie if verdict.word == "tie" else "More seeds may decide it."]
    needed, seeds = seeds_needed(verdict.pair.sd), len(verdict.seeds)
    goal = f"a gain of {LEAST_DIFFERENCE} nats apart from none (p < {SIGNIFICANCE}, power {100 * POWER:.0f} %)"
    basis = f"by the SD of these differences, {verdict.pair.sd:.4f}"
    if needed > seeds:
        return [f"It takes about {needed:,} paired seeds ({needed - seeds} more) to tell {goal}, {basis}."]
    more = "what is missing is p, so run it on fresh seeds" if verdict.word == "unproven" else "more are not needed"
    return [f"{needed} paired seeds tell {goal}, {basis}; {more}."]
