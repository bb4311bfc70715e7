"""What `hectogpt compare` shows: the plan, a live table while trials run (plain lines without a terminal), the results.

The work itself is hectogpt.lab.compare's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from hectogpt import errors
from hectogpt.cli.lab import CompareArguments
from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.lab.compare import (
    Comparison,
    Result,
    Trial,
    best_of,
    broken_rules,
    failures,
    plan,
)
from hectogpt.lab.statistics import LEAST_DIFFERENCE, Paired, Summary
from hectogpt.lab.trials import Row
from hectogpt.train.loop import check_corpus, count_parameters


def compare(arguments: CompareArguments) -> None:
    """Run the missing trials and print what all of them say."""
    arms = plan(arguments.recipes, arguments.without, arguments.sweep, arguments.steps)
    corpus = open_corpus(arguments.corpus)
    for arm in arms:
        check_corpus(arm.run, corpus)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    comparison = Comparison(arms, seeds, corpus, arguments.track, arguments.test, arguments.threads, arguments.out)
    missing = comparison.missing()
    if arguments.dry_run:
        show_plan(comparison, missing)
        return
    with Watch(comparison, len(missing), quiet=arguments.quiet) as watch:
        try:
            while missing:
                trial = missing.pop(0)
                watch.done(comparison.perform(trial, watch.step(trial)))
                # Read the records again: another process may be working on the same list.
                still = comparison.missing()
                missing = [trial for trial in missing if trial in still]
        except KeyboardInterrupt:
            raise UserError(
                f"interrupted, {len(comparison.missing())} of {len(comparison.trials())} trials missing",
                fix="the same command goes on where it stopped",
                kept=f"the finished trials, in {arguments.out}",
                code=errors.INTERRUPTED,
            ) from None
    results = comparison.results()
    if arguments.json:
        print(json.dumps(as_json(comparison, results, swept=bool(arguments.sweep)), allow_nan=False))
    elif not arguments.quiet:
        show_results(comparison, results, swept=bool(arguments.sweep))
    rows = [row for result in results for row in result.rows]
    if all(row.get("status", "ok") != "ok" for row in rows):
        raise UserError(
            f"none of {len(rows)} trials gave a model",
            why=str(rows[0].get("error")),
            fix=f"remove their lines from {arguments.out} to run them again",
            code=errors.DIVERGED if rows[0].get("status") == "diverged" else 1,
        )


def as_json(comparison: Comparison, results: Sequence[Result], swept: bool) -> Row:
    """The results as plain values."""
    answer: Row = {
        "corpus": comparison.corpus.name,
        "track": comparison.track,
        "metric": comparison.metric,
        "seeds": comparison.seeds,
        "arms": [result.as_json() for result in results],
        "anchors": anchor_means(results),
        "notes": failures(row for result in results for row in result.rows),
    }
    if swept and len(results) > 1:
        best, luck = best_of(results)
        answer["best"] = {"arm": best.arm.label, "of": len(results), "expected_luck": luck}
    return answer


def show_plan(comparison: Comparison, missing: Sequence[Trial]) -> None:
    """Print what would be run."""
    table = Table(box=box.SIMPLE)
    for name in ("arm", "parameters", "steps", "tokens a step", "trials to run"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    notes = []
    for arm in comparison.arms:
        count, data = count_parameters(arm.run, comparison.corpus), arm.run.data
        todo = sum(trial.arm.label == arm.label for trial in missing)
        table.add_row(arm.label, f"{count:,}", str(arm.run.steps), f"{data.batch_size * data.window:,}", str(todo))
        broken = broken_rules(comparison.track, arm.run, comparison.corpus, {"params": count})
        notes += [f"{arm.label} breaks the rules of {comparison.track}: {'; '.join(broken)}"] if broken else []
    console = _console()
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False)
    n = len(comparison.trials())
    print(f"{comparison.corpus.name}, {comparison.track}: {n} trials, {n - len(missing)} recorded in {comparison.out}")


class Watch:
    """The live table of a comparison, on stderr; a line a trial where stderr is no terminal."""

    def __init__(self, comparison: Comparison, missing: int, quiet: bool) -> None:
        self.comparison, self.missing, self.quiet = comparison, missing, quiet
        self.console = Console(stderr=True, quiet=quiet)
        self.live = (
            Live(console=self.console, auto_refresh=False, transient=True)
            if self.console.is_terminal and not quiet
            else None
        )
        self.begun, self.finished = time.monotonic(), 0

    def __enter__(self) -> Watch:
        recorded = len(self.comparison.trials()) - self.missing
        self._line(
            f"{self.comparison.corpus.name}, {self.comparison.track}: {self.missing} to run, "
            f"{recorded} recorded in {self.comparison.out}"
        )
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live:
            self.live.stop()  # the table is wiped: the results follow on stdout

    def _line(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def step(self, trial: Trial):  # type: ignore[no-untyped-def]
        """The function to call with (step, loss) while this trial runs."""
        shown = 0.0

        def on_step(step: int, loss: float) -> None:
            nonlocal shown
            if self.live and time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                now = f"{trial.arm.label}, seed {trial.seed}: step {step} of {trial.arm.run.steps}, loss {loss:.3f}"
                self.live.update(self._table(now), refresh=True)

        if self.live:
            self.live.update(self._table(f"{trial.arm.label}, seed {trial.seed}: starting"), refresh=True)
        return on_step

    def done(self, row: Row) -> None:
        """One trial is recorded."""
        self.finished += 1
        if not self.live:
            loss = row[self.comparison.metric]
            state = "" if row["status"] == "ok" else f" ({row['status']}: {row['error']})"
            seconds = f"{row['seconds']:.0f} s" if row["seconds"] is not None else "no time"
            self._line(
                f"{self.finished} of {self.missing}: {row['arm']}, seed {row['seed']}: "
                f"{self.comparison.metric.replace('_', ' ')} {loss:.4f}, {seconds}{state}"
            )

    def _table(self, now: str) -> Group:
        left = self.missing - self.finished
        pace = (time.monotonic() - self.begun) / self.finished if self.finished else None
        remaining = f", about {left * pace / 60:.0f} min left" if pace and left else ""
        return Group(
            results_table(self.comparison, self.comparison.results()),
            f"{self.finished} of {self.missing} trials done{remaining}",
            now,
        )


def results_table(comparison: Comparison, results: Sequence[Result]) -> Table:
    """Losses and differences, a row an arm."""
    table = Table(box=box.SIMPLE)
    table.add_column("arm")
    names = ["n", "dev mean", "SD", "min - max"] + (["test mean", "SD"] if comparison.test else [])
    names += ["to the first [95 %], p", "to the previous [95 %], p", "noise", "", "s", "MiB"]
    for name in names:
        table.add_column(name, justify="right")
    for result in results:
        cells = [*_summary(result.dev), f"{result.dev.least:.3f} - {result.dev.most:.3f}"]
        if comparison.test:
            cells += _summary(result.test)[1:] if result.test else ["", ""]
        before = result.to_previous
        floor = f"{before.noise_floor:.3f}" if before and before.noise_floor is not None else ""
        cells += [_paired(result.to_first), _paired(before), floor, before.verdict if before else ""]
        seconds, peak = result.mean("seconds"), result.mean("peak_mb")
        cells += [f"{seconds:.0f}" if seconds is not None else "", f"{peak:.0f}" if peak is not None else ""]
        table.add_row(result.arm.label, *cells)
    return table


def _summary(summary: Summary) -> list[str]:
    return [str(summary.n), f"{summary.mean:.4f}", f"{summary.sd:.4f}" if summary.sd is not None else ""]


def _paired(pair: Paired | None) -> str:
    if pair is None:
        return ""
    if pair.low is None or pair.high is None or pair.p is None:
        return f"{pair.difference:+.3f}"
    return f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}] {pair.p:.1g}"


def anchor_means(results: Sequence[Result]) -> dict[str, float]:
    """Mean over seeds of the first arm's count-model losses."""
    levels = {name: results[0].mean(f"anchor_{name}") for name in ("uniform", "unigram", "kn2", "kn3")}
    return {name: level for name, level in levels.items() if level is not None}


def show_results(comparison: Comparison, results: Sequence[Result], swept: bool) -> None:
    """Print the final table, the anchors and whatever must be said about single trials."""
    console = _console()
    console.print(results_table(comparison, results))
    split = comparison.metric.removesuffix("_loss")
    levels = ", ".join(f"{name} {level:.3f}" for name, level in anchor_means(results).items())
    print(f"Counting the same tokens ({split}): {levels}")
    print(
        f"Differences: {split} nats/token over paired seeds, negative is better. Noise: 2 SD of the differences / "
        f"sqrt(n). A tie is within the noise or {LEAST_DIFFERENCE}; unproven: lower beyond both, p >= .01 or one seed."
    )
    if swept and len(results) > 1:
        best, luck = best_of(results)
        again = comparison.seeds[-1] + 1
        print(
            f"Best of {len(results)}: {best.arm.label}. The best of so many equal settings would lie about {luck:.3f} "
            f"below its true mean by luck alone: run it again on fresh seeds (--first-seed {again}) and quote those."
        )
    for note in failures(row for result in results for row in result.rows):
        print(note)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=200)
