"""What `hectogpt compare` prints: what it would run, the table, live on stderr while it runs, the results."""

from __future__ import annotations

import shutil
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hectogpt.cli.console import note
from hectogpt.cli.options import CompareArguments
from hectogpt.display import NGRAMS, columns, printable
from hectogpt.lab.compare import Comparison, Result, Trial, best_of, ngram_means
from hectogpt.lab.engines import News
from hectogpt.lab.record import failures
from hectogpt.lab.rounds import Rounds, duration_text
from hectogpt.lab.statistics import LEAST_DIFFERENCE, SIGNIFICANCE, gain_cells
from hectogpt.lab.tracks import broken_rules
from hectogpt.lab.verdict import Verdict, give_verdicts
from hectogpt.training.setup import count_parameters

WIDE = 160  # columns from which the table has all its columns; also those of a pipe
FEW_TOKENS = 2000  # held-out tokens below which the third decimal of a loss means nothing
VERDICT_WORDS = (
    f"tie: within the noise or {LEAST_DIFFERENCE}. unproven: a gain beyond both, but p >= {SIGNIFICANCE}; or a single "
    "seed."
)
SEQUENTIAL_WORDS = (
    f"Intervals and p are valid at every look. tie: the interval lies within {LEAST_DIFFERENCE} of 0. unproven: not "
    "decided."
)


@dataclass(frozen=True)
class Asked:
    """What a command asks for. rounds: where the number of seeds is found while it runs; else None."""

    arguments: CompareArguments
    comparison: Comparison
    rounds: Rounds | None

    def results(self) -> list[Result]:
        """What the trials recorded so far say."""
        return self.comparison.results() if self.rounds is None else self.rounds.results()

    def verdicts(self, results: Sequence[Result]) -> list[Verdict]:
        """One for each result after the first."""
        return give_verdicts(self.comparison, results, self.arguments.until is not None)

    @property
    def ended(self) -> str:
        """Why there are no more seeds, in words; "" if their number was given."""
        return self.rounds.ended if self.rounds else ""

    def note(self, line: str) -> None:
        """Write a remark to stderr, unless the command is quiet."""
        note(line, self.arguments.quiet)


class LiveTable:
    """The table of a comparison that is under way, on stderr; a line a trial where stderr is no terminal.

    missing: how many trials there are to run; None if that is not known. results: what the comparison says so far.
    """

    def __init__(
        self, comparison: Comparison, missing: int | None, quiet: bool, results: Callable[[], list[Result]]
    ) -> None:
        self.comparison, self.missing, self.quiet, self.results = comparison, missing, quiet, results
        self.console = Console(stderr=True)
        self.live: Live | None = None
        if self.console.is_terminal and not quiet:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.begun, self.shown, self.finished = time.monotonic(), 0.0, 0
        self.running: dict[tuple[str, int], str] = {}  # a line for each trial that is under way

    def __enter__(self) -> LiveTable:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live:
            self.live.stop()  # the table is wiped: the results follow on stdout

    def show(self, news: News) -> None:
        """Show what has become of a trial."""
        trial, record = news.trial, news.record
        if record is None and not news.elsewhere:
            at = f"step {news.step} of {trial.arm.run.steps}, loss {news.loss:.3f}" if news.step else "starting"
            self.running[trial.name] = f"{trial.arm.label}, seed {trial.seed}: {at}"
        else:
            self.running.pop(trial.name, None)
            self.finished += 1
        if record is not None and not self.live:
            note(
                f"{self._place()}: {record.arm}, seed {record.seed}: {record.outcome(self.comparison.split)}",
                self.quiet,
            )
        if self.live and (not news.step or time.monotonic() - self.shown > 0.2):
            self.shown = time.monotonic()
            self._show(self.live)

    def _place(self) -> str:
        return str(self.finished) if self.missing is None else f"{self.finished} of {self.missing}"

    def _show(self, live: Live) -> None:
        left = 0 if self.missing is None else self.missing - self.finished
        pace = (time.monotonic() - self.begun) / self.finished if self.finished else None
        remaining = f", about {left * pace / 60:.0f} min left" if pace and left else ""
        lines = results_table(self.comparison, self.results(), self.console.width)
        lines += [f"{self._place()} trials done{remaining}", *self.running.values()]
        live.update(Text(printable("\n".join(lines))), refresh=True)


def results_table(comparison: Comparison, results: Sequence[Result], width: int) -> list[str]:
    """Losses and gains as lines of text, an arm a row. A narrow table leaves out what --json has: ranges, noise, time
    and memory."""
    wide, test = width >= WIDE, comparison.test
    header = ["arm", "n", f"{comparison.split} mean ± SD"]
    header += ["min - max", *["dev mean ± SD"] * test] if wide else []
    header += ["gain over the first [95 %]", "p", *["noise"] * wide, "verdict", *["s", "MiB"] * wide]
    rows = []
    for result in results:
        losses = result.compared
        cells = [result.arm.label, str(losses.n), str(losses)]
        cells += [f"{losses.min:.3f} - {losses.max:.3f}", *[str(result.dev)] * test] if wide else []
        costs = (result.mean("seconds"), result.mean("peak_mb")) if wide else ()
        cells += [*gain_cells(result.to_first, wide), *("" if cost is None else f"{cost:.0f}" for cost in costs)]
        rows.append(cells)
    return columns(header, rows, width=width)


def notes_on(comparison: Comparison, results: Sequence[Result]) -> list[str]:
    """What a reader must know: that the held-out text is small, and each way in which trials went wrong."""
    tokens, split = len(comparison.corpus.tokens[comparison.split]), comparison.split
    small = [f"the {split} text has only {tokens:,} tokens, so the last decimals of a loss on it mean nothing"]
    records = [*(record for result in results for record in result.records), *comparison.failed]
    return small * (tokens < FEW_TOKENS) + failures(records)


def as_json(asked: Asked, results: Sequence[Result]) -> dict[str, Any]:
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
        "notes": notes_on(comparison, results),
    }
    if asked.arguments.sweep and len(results) > 1:
        best, bias = best_of(results)
        answer["best"] = {"arm": best.arm.label, "of": len(results), "selection_bias": bias}
    return answer


def show_plan(comparison: Comparison, missing: Sequence[Trial], rounds: Rounds | None = None) -> None:
    """Print what would be run."""
    rows, lines = [], []
    for arm in comparison.arms:
        count, data = count_parameters(arm.run, comparison.corpus), arm.run.data
        todo = str(sum(trial.arm.label == arm.label for trial in missing)) + " a seed" * (rounds is not None)
        rows.append([arm.label, f"{count:,}", str(arm.run.steps), f"{data.batch_size * data.seq_len:,}", todo])
        broken = broken_rules(comparison.track, arm.run, comparison.corpus, count)
        if broken:
            lines.append(f"{arm.label} breaks the rules of {comparison.track.name}: {'; '.join(broken)}")
    table = columns(["arm", "parameters", "steps", "tokens a step", "trials to run"], rows, width=terminal_width())
    lines.append(state_of(comparison, len(missing)) if rounds is None else rounds_line(rounds))
    print(printable("\n".join([*table, *lines])))


def state_of(comparison: Comparison, missing: int) -> str:
    """How many trials there are to run, on one line."""
    n = len(comparison.trials())
    return (
        f"{comparison.corpus.name}, {comparison.track.name}: {n} trials, {n - missing} recorded in {comparison.out}, "
        f"{missing} to run"
    )


def rounds_line(rounds: Rounds) -> str:
    """What ends a comparison whose number of seeds is open, on one line."""
    comparison, most = rounds.comparison, len(rounds.seeds)
    ends = [f"at most {most} seed{'s' * (most != 1)}"]
    ends += [duration_text(rounds.budget)] if rounds.budget is not None else []
    ends += ["until decided"] if rounds.until_decided else []
    return f"{comparison.corpus.name}, {comparison.track.name}: seed by seed, {', '.join(ends)}; {comparison.out}"


def show_results(asked: Asked, results: Sequence[Result]) -> None:
    """Print the final table, the n-gram baselines, what must be said about single trials, and the verdicts."""
    comparison, verdicts, width = asked.comparison, asked.verdicts(results), terminal_width()
    levels = ", ".join(f"{NGRAMS[name]} {level:.3f}" for name, level in ngram_means(results).items())
    lines = [
        *results_table(comparison, results, width),
        "",
        f"N-gram baselines of the same tokens ({comparison.split}): {levels}",
        f"Gains: {comparison.split} nats/token over paired seeds, positive is better. Noise: 2 SD of the gains / "
        "sqrt(n). " + (SEQUENTIAL_WORDS if asked.arguments.until else VERDICT_WORDS),
    ]
    if asked.arguments.sweep and len(results) > 1:
        best, bias = best_of(results)
        again = comparison.seeds[-1] + 1
        lines.append(
            f"Best of {len(results)}: {best.arm.label}. The best of so many equal settings would lie about {bias:.3f} "
            f"below its true mean by luck alone: run it again on fresh seeds (--first-seed {again}) and quote those."
        )
    lines += notes_on(comparison, results)
    lines += [""] * bool(verdicts) + [verdict.text for verdict in verdicts]
    lines += [f"Seeds: {asked.ended}."] * bool(asked.ended)
    for line in lines:
        print(printable(line if len(line) <= width else textwrap.fill(line, width)))


def terminal_width() -> int:
    """Columns of the terminal; WIDE for a pipe, unless $COLUMNS says otherwise."""
    return shutil.get_terminal_size((WIDE, 0)).columns
