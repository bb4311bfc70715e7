"""What `hectogpt compare` prints: what it would run, the table and the verdicts, and both as JSON."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hectogpt.cli.console import note
from hectogpt.cli.options import CompareOptions
from hectogpt.display import NGRAMS, columns
from hectogpt.lab.compare import Comparison, Result, Trial, best_of, ngram_means, result_table
from hectogpt.lab.record import failures
from hectogpt.lab.rounds import Rounds, duration_text
from hectogpt.lab.statistics import LEAST_DIFFERENCE, SIGNIFICANCE
from hectogpt.lab.tracks import broken_rules
from hectogpt.lab.verdict import Verdict, give_verdicts
from hectogpt.training.setup import count_parameters
from hectogpt.training.task import FEW_TOKENS

VERDICT_WORDS = f"tie: within the noise or {LEAST_DIFFERENCE}. unproven: beyond both, but p >= {SIGNIFICANCE}."
SEQUENTIAL_WORDS = f"They are valid at every look. tie: within {LEAST_DIFFERENCE} of 0. unproven: not decided."


@dataclass(frozen=True)
class Asked:
    """What a command asks for. rounds: where the number of seeds is found while it runs; else None."""

    options: CompareOptions
    comparison: Comparison
    rounds: Rounds | None

    def results(self) -> list[Result]:
        """What the trials recorded so far say."""
        return self.comparison.results() if self.rounds is None else self.rounds.results()

    def verdicts(self, results: Sequence[Result]) -> list[Verdict]:
        """One for each result after the first."""
        return give_verdicts(self.comparison, results, self.options.until is not None)

    def notes(self, results: Sequence[Result]) -> list[str]:
        """What a reader must know: that the held-out text is small, and each way in which trials went wrong."""
        tokens, split = len(self.comparison.corpus.tokens[self.comparison.split]), self.comparison.split
        small = f"the {split} text has only {tokens:,} tokens, so the last decimals of a loss on it mean nothing"
        records = [*(record for result in results for record in result.records), *self.comparison.failed]
        return [small] * (tokens < FEW_TOKENS) + failures(records)

    @property
    def ended(self) -> str:
        """Why there are no more seeds, in words; "" if their number was given."""
        return self.rounds.ended if self.rounds else ""

    def note(self, line: str) -> None:
        """Write a remark to stderr, unless the command is quiet."""
        note(line, self.options.quiet)


def results_json(asked: Asked, results: Sequence[Result]) -> dict[str, Any]:
    """The results as plain values."""
    comparison = asked.comparison
    answer: dict[str, Any] = {
        "corpus": comparison.corpus.name,
        "track": comparison.track.name,
        "metric": f"{comparison.split}_loss",
        "seeds": comparison.seeds,
        "arms": [result.as_json() for result in results],
        "verdicts": [verdict.as_json() for verdict in asked.verdicts(results)],
        "ended": asked.ended or None,
        "ngrams": ngram_means(results),
        "notes": asked.notes(results),
    }
    if asked.options.sweep and len(results) > 1:
        best, bias = best_of(results)
        answer["best"] = {"arm": best.arm.label, "of": len(results), "selection_bias": bias}
    return answer


def plan_lines(asked: Asked, missing: Sequence[Trial]) -> list[str]:
    """What would be run."""
    comparison, rows, broken = asked.comparison, [], []
    for arm in comparison.arms:
        count, data = count_parameters(arm.run, comparison.corpus), arm.run.data
        todo = str(sum(trial.arm.label == arm.label for trial in missing)) + " a seed" * (asked.rounds is not None)
        rows.append([arm.label, f"{count:,}", str(arm.run.steps), f"{data.batch_size * data.seq_len:,}", todo])
        if rules := broken_rules(comparison.track, arm.run, comparison.corpus, count):
            broken.append(f"{arm.label} breaks the rules of {comparison.track.name}: {'; '.join(rules)}")
    header = ["arm", "parameters", "steps", "tokens a step", "trials to run"]
    return [*columns(header, rows, width=width()), *broken, state_line(asked, missing)]


def state_line(asked: Asked, missing: Sequence[Trial]) -> str:
    """How many trials there are to run; where the number of seeds is open, what ends it."""
    comparison, rounds = asked.comparison, asked.rounds
    title = f"{comparison.corpus.name}, {comparison.track.name}"
    if rounds is None:
        n, left = len(comparison.trials()), len(missing)
        return f"{title}: {n} trials, {n - left} recorded in {comparison.out}, {left} to run"
    ends = [f"at most {len(rounds.seeds)} seed{'s' * (len(rounds.seeds) != 1)}"]
    ends += [duration_text(rounds.budget)] if rounds.budget is not None else []
    ends += ["until decided"] if rounds.until_decided else []
    return f"{title}: seed by seed, {', '.join(ends)}; {comparison.out}"


def result_lines(asked: Asked, results: Sequence[Result]) -> list[str]:
    """The final table, the n-gram baselines, what must be said about single trials, and the verdicts."""
    comparison, verdicts = asked.comparison, asked.verdicts(results)
    levels = ", ".join(f"{NGRAMS[name]} {level:.3f}" for name, level in ngram_means(results).items())
    words = SEQUENTIAL_WORDS if asked.options.until else VERDICT_WORDS
    lines = ["", f"N-gram baselines of the same tokens ({comparison.split}): {levels}"]
    lines.append(f"Gains: {comparison.split} nats/token over paired seeds, positive is better. {words}")
    if asked.options.sweep and len(results) > 1:
        best, bias = best_of(results)
        lines.append(
            f"Best of {len(results)}: {best.arm.label}. The best of so many equal settings would lie about {bias:.3f} "
            f"below its true mean by luck alone: run it again on fresh seeds (--first-seed {comparison.seeds[-1] + 1}) "
            "and quote those."
        )
    lines += asked.notes(results)
    lines += [""] * bool(verdicts) + [verdict.text for verdict in verdicts]
    lines += [f"Seeds: {asked.ended}."] * bool(asked.ended)
    table = columns(*result_table(results, comparison.split), width=width())
    return table + [text for line in lines for text in textwrap.wrap(line, width()) or [""]]


def width() -> int:
    """Columns of the terminal; of a pipe 160, unless $COLUMNS says otherwise."""
    return shutil.get_terminal_size((160, 0)).columns
