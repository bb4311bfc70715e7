"""Drives a comparison for `hectogpt compare`: the plan, the trials with a live table, the results."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hectogpt import errors
from hectogpt.cli.compare import Arguments
from hectogpt.cli.console import note, output_console
from hectogpt.data import open_corpus
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.lab.compare import Comparison, Result, Trial, best_of, ngram_means
from hectogpt.lab.ngram import loss_standard_error
from hectogpt.lab.plan import old_names, plan
from hectogpt.lab.record import Record, failures
from hectogpt.lab.statistics import LEAST_DIFFERENCE, SIGNIFICANCE, Paired, Summary
from hectogpt.lab.tracks import broken_rules, find_track
from hectogpt.signals import Stopped, raise_on_signal
from hectogpt.train.setup import check_corpus, count_parameters

WIDE = 160  # columns from which the table has all its columns; also those of a pipe
FEW_TOKENS = 2000  # held-out tokens below which the third decimal of a loss means nothing


def compare(arguments: Arguments) -> None:
    """Run the missing trials and print what all of them say. Raises UserError, also for trials that crashed."""
    arms = plan(arguments.recipes, arguments.without, arguments.sweep, arguments.steps)
    for old, new in old_names((*arguments.recipes, *arguments.without), arguments.sweep, arms).items():
        note(f"note: {old} is now called {new}", arguments.quiet)
    if arguments.threads:
        arms = [replace(arm, run=replace(arm.run, threads=arguments.threads)) for arm in arms]
    track = find_track(arguments.track)
    corpus = open_corpus(arguments.corpus)
    for arm in arms:
        check_corpus(arm.run, corpus)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    comparison = Comparison(arms, seeds, corpus, track, arguments.out, arguments.test)
    for line in size_notes(comparison):
        note(f"note: {line}", arguments.quiet)
    missing = comparison.missing()
    if arguments.dry_run:
        show_plan(comparison, missing)
        return
    perform_all(comparison, missing, arguments.quiet)
    results = comparison.results()
    if arguments.json:
        print(json.dumps(as_json(comparison, results, swept=bool(arguments.sweep)), allow_nan=False))
    elif not arguments.quiet and results:
        show_results(comparison, results, swept=bool(arguments.sweep))
    raise_for_lost_trials(comparison, results)


def perform_all(comparison: Comparison, missing: list[Trial], quiet: bool) -> None:
    """Run the trials one after another. Raises UserError when SIGINT or SIGTERM ends it."""
    with LiveTable(comparison, len(missing), quiet) as table:
        try:
            with raise_on_signal():
                while missing:
                    trial = missing.pop(0)
                    table.add(comparison.perform(trial, table.follow(trial)))
                    # Read the records again: another process may be working on the same list.
                    still = comparison.missing()
                    missing = [trial for trial in missing if trial in still]
        except KeyboardInterrupt as stop:
            left, all_trials = len(comparison.missing()), len(comparison.trials())
            raise UserError(
                f"interrupted, {left} of {all_trials} trials missing",
                fix="the same command goes on where it stopped",
                kept=f"the finished trials, in {comparison.out}" if left < all_trials else "",
                code=stop.code if isinstance(stop, Stopped) else errors.INTERRUPTED,
            ) from None


def raise_for_lost_trials(comparison: Comparison, results: Sequence[Result]) -> None:
    """Raise UserError if trials of this call crashed, or if no trial gave a model."""
    if comparison.failed:
        seeds: dict[tuple[str, str], list[str]] = {}
        for record in comparison.failed:
            seeds.setdefault((record.arm, str(record.error)), []).append(str(record.seed))
        whys = [f"{arm}, seed {', '.join(which)}: {error}" for (arm, error), which in seeds.items()]
        raise UserError(
            f"{len(comparison.failed)} of {len(comparison.trials())} trials crashed and are not counted",
            why="\n".join(whys),
            fix="the same command runs them again",
            kept=f"the other trials, in {comparison.out}" if results else "",
            code=1,
        )
    records = [record for result in results for record in result.records]
    if all(record.status == "diverged" for record in records):
        raise UserError(
            f"none of {len(records)} trials gave a model",
            why=str(records[0].error),
            fix=f"a lower learning rate; to run them again, remove their lines from {comparison.out}",
            code=errors.DIVERGED,
        )


def size_notes(comparison: Comparison) -> list[str]:
    """What there is to say about a small held-out text."""
    corpus, held_out = comparison.corpus, comparison.corpus.tokens[comparison.split]
    if len(held_out) >= FEW_TOKENS:
        return []
    error = loss_standard_error(corpus.train, held_out, corpus.n_vocab)
    return [
        f"the {comparison.split} text has only {len(held_out):,} tokens: a loss on it has a standard error of about "
        f"{error:.2g} nats (a trigram's), so its last decimals mean nothing"
    ]


def as_json(comparison: Comparison, results: Sequence[Result], swept: bool) -> dict[str, Any]:
    """The results as plain values."""
    answer: dict[str, Any] = {
        "corpus": comparison.corpus.name,
        "track": comparison.track.name,
        "metric": f"{comparison.split}_loss",
        "seeds": comparison.seeds,
        "arms": [result.as_json() for result in results],
        "ngrams": ngram_means(results),
        "notes": [*size_notes(comparison), *all_failures(comparison, results)],
    }
    if swept and len(results) > 1:
        best, bias = best_of(results)
        answer["best"] = {"arm": best.arm.label, "of": len(results), "selection_bias": bias}
    return answer


def all_failures(comparison: Comparison, results: Sequence[Result]) -> list[str]:
    """A line for each way in which trials went wrong, those of this call that crashed included."""
    return failures([*(record for result in results for record in result.records), *comparison.failed])


def show_plan(comparison: Comparison, missing: Sequence[Trial]) -> None:
    """Print what would be run."""
    table = Table(box=box.SIMPLE)
    for name in ("arm", "parameters", "steps", "tokens a step", "trials to run"):
        table.add_column(name, justify="left" if name == "arm" else "right", overflow="fold")
    lines = []
    for arm in comparison.arms:
        count, data = count_parameters(arm.run, comparison.corpus), arm.run.data
        todo = sum(trial.arm.label == arm.label for trial in missing)
        table.add_row(arm.label, f"{count:,}", str(arm.run.steps), f"{data.batch_size * data.seq_len:,}", str(todo))
        broken = broken_rules(comparison.track, arm.run, comparison.corpus, count)
        if broken:
            lines.append(f"{arm.label} breaks the rules of {comparison.track.name}: {'; '.join(broken)}")
    stdout().print(table)
    for line in [*lines, state_of(comparison, len(missing))]:
        print(printable(line))


def state_of(comparison: Comparison, missing: int) -> str:
    """How many trials there are to run, on one line."""
    n = len(comparison.trials())
    return (
        f"{comparison.corpus.name}, {comparison.track.name}: {n} trials, {n - missing} recorded in {comparison.out}, "
        f"{missing} to run"
    )


class LiveTable:
    """The table of a comparison that is under way, on stderr; a line a trial where stderr is no terminal."""

    def __init__(self, comparison: Comparison, missing: int, quiet: bool) -> None:
        self.comparison, self.missing, self.quiet = comparison, missing, quiet
        self.console = Console(stderr=True)
        self.live: Live | None = None
        if self.console.is_terminal and not quiet:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.begun, self.finished = time.monotonic(), 0

    def __enter__(self) -> LiveTable:
        note(state_of(self.comparison, self.missing), self.quiet)
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live:
            self.live.stop()  # the table is wiped: the results follow on stdout

    def follow(self, trial: Trial) -> Callable[[int, float], None]:
        """The function to call with (step, loss) while this trial runs."""
        name, shown = f"{trial.arm.label}, seed {trial.seed}", 0.0

        def on_step(step: int, loss: float) -> None:
            nonlocal shown
            if time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                self._show(f"{name}: step {step} of {trial.arm.run.steps}, loss {loss:.3f}")

        self._show(f"{name}: starting")
        return on_step

    def add(self, record: Record) -> None:
        """One trial is recorded."""
        self.finished += 1
        if not self.live:
            loss, split = record.loss(self.comparison.split), self.comparison.split
            facts = [] if loss is None else [f"{split} loss {loss:.4f}"]
            facts += [f"{record.seconds:.0f} s"] if record.seconds is not None else []
            facts += [f"{record.status}: {record.error}"] if record.status != "ok" else []
            told = f"{self.finished} of {self.missing}: {record.arm}, seed {record.seed}: {', '.join(facts)}"
            note(told, self.quiet)

    def _show(self, now: str) -> None:
        if self.live:
            left = self.missing - self.finished
            pace = (time.monotonic() - self.begun) / self.finished if self.finished else None
            remaining = f", about {left * pace / 60:.0f} min left" if pace and left else ""
            lines = results_table(self.comparison, self.comparison.results(), self.console.width)
            lines += [f"{self.finished} of {self.missing} trials done{remaining}", now]
            self.live.update(Text(printable("\n".join(lines))), refresh=True)


def results_table(comparison: Comparison, results: Sequence[Result], width: int) -> list[str]:
    """Losses and differences as lines of text: an arm per row, with three arms or more another row for the difference
    to the arm before. A label that does not fit beside the numbers has a line of its own. A narrow table leaves out
    what --json has: ranges, noise, time and memory."""
    wide = width >= WIDE
    names = column_names(comparison, wide)
    rows: list[tuple[str, list[str]]] = []
    for place, result in enumerate(results):
        losses = loss_cells(comparison, result, wide)
        numbers = (result.mean("seconds"), result.mean("peak_mb")) if wide else ()
        costs = ["" if number is None else f"{number:.0f}" for number in numbers]
        rows.append((result.arm.label, losses + paired_cells(result.to_first, wide) + costs))
        if place > 1:
            before = [""] * len(losses) + paired_cells(result.to_previous, wide) + [""] * len(costs)
            rows.append(("  to the previous", before))
    widths = [max(map(len, column)) for column in zip(names, *(cells for _, cells in rows), strict=True)]
    room = width - sum(widths) - 2 * len(widths)
    longest = max(len(label) for label, _ in [("arm", names), *rows])
    left = longest if longest <= room else min(room, 18)
    lines = []
    for label, cells in [("arm", names), ("", ["-" * n for n in widths]), *rows]:
        text = "".join(f"  {cell:>{n}}" for cell, n in zip(cells, widths, strict=True))
        lines += [label, " " * left + text] if len(label) > left else [f"{label:<{left}}{text}"]
    return [line.rstrip() for line in lines]


def column_names(comparison: Comparison, wide: bool) -> list[str]:
    """The columns after the arm's."""
    losses = ["n", f"{comparison.split} mean ± SD"]
    if wide:
        losses += ["min - max"] + (["dev mean ± SD"] if comparison.test else [])
    pair = ["to the first [95 %]", "p", *(["noise"] if wide else []), "verdict"]
    return losses + pair + (["s", "MiB"] if wide else [])


def loss_cells(comparison: Comparison, result: Result, wide: bool) -> list[str]:
    """n, mean and spread, and on a wide table the range and the other split's mean."""
    losses = result.compared
    cells = [str(losses.n), mean_and_sd(losses)]
    if wide:
        cells += [f"{losses.min:.3f} - {losses.max:.3f}"] + ([mean_and_sd(result.dev)] if comparison.test else [])
    return cells


def mean_and_sd(losses: Summary) -> str:
    """ "2.4061 ± 0.0031"."""
    return f"{losses.mean:.4f}" + (f" ± {losses.sd:.4f}" if losses.sd is not None else "")


def paired_cells(pair: Paired | None, wide: bool) -> list[str]:
    """The difference with its interval, p, the noise floor on a wide table, and the verdict."""
    if pair is None:
        return [""] * (4 if wide else 3)
    interval = "" if pair.low is None or pair.high is None else f" [{pair.low:+.3f}, {pair.high:+.3f}]"
    p = "" if pair.p is None else f"{pair.p:.1g}"
    noise = "" if pair.noise_floor is None else f"{pair.noise_floor:.3f}"
    return [f"{pair.difference:+.3f}{interval}", p, *([noise] if wide else []), pair.verdict]


def show_results(comparison: Comparison, results: Sequence[Result], swept: bool) -> None:
    """Print the final table, the n-gram baselines and what must be said about single trials."""
    console = stdout()
    table = results_table(comparison, results, console.width)
    levels = ", ".join(f"{name} {level:.3f}" for name, level in ngram_means(results).items())
    lines = [
        *table,
        "",
        f"N-gram baselines of the same tokens ({comparison.split}): {levels}",
        f"Differences: {comparison.split} nats/token over paired seeds, negative is better. Noise: 2 SD of the "
        f"differences / sqrt(n). tie: within the noise or {LEAST_DIFFERENCE}. unproven: lower beyond both, but p >= "
        f"{SIGNIFICANCE} or a single seed.",
    ]
    if swept and len(results) > 1:
        best, bias = best_of(results)
        again = comparison.seeds[-1] + 1
        lines.append(
            f"Best of {len(results)}: {best.arm.label}. The best of so many equal settings would lie about {bias:.3f} "
            f"below its true mean by luck alone: run it again on fresh seeds (--first-seed {again}) and quote those."
        )
    for line in [*lines, *failures(record for result in results for record in result.records)]:
        console.print(printable(line), highlight=False, markup=False)


def stdout() -> Any:
    """The console for stdout. A pipe is WIDE columns wide unless $COLUMNS says otherwise."""
    console = output_console()
    piped = not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit()
    return output_console(width=WIDE) if piped else console
