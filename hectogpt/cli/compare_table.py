"""The table of a comparison, live on stderr while it runs and at the end on stdout."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hectogpt.cli.console import note
from hectogpt.display import printable
from hectogpt.lab.compare import Comparison, Result
from hectogpt.lab.engines import News
from hectogpt.lab.gains import gain_cells, mean_text

WIDE = 160  # columns from which the table has all its columns; also those of a pipe


def state_of(comparison: Comparison, missing: int) -> str:
    """How many trials there are to run, on one line."""
    n = len(comparison.trials())
    return (
        f"{comparison.corpus.name}, {comparison.track.name}: {n} trials, {n - missing} recorded in {comparison.out}, "
        f"{missing} to run"
    )


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
        if self.missing is not None:
            note(state_of(self.comparison, self.missing), self.quiet)
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
            loss, split = record.loss(self.comparison.split), self.comparison.split
            facts = [] if loss is None else [f"{split} loss {loss:.4f}"]
            facts += [f"{record.seconds:.0f} s"] if record.seconds is not None else []
            facts += [f"{record.status}: {record.error}"] if record.status != "ok" else []
            note(f"{self._place()}: {record.arm}, seed {record.seed}: {', '.join(facts)}", self.quiet)
        if not news.step or time.monotonic() - self.shown > 0.2:
            self.shown = time.monotonic()
            self._show()

    def _place(self) -> str:
        return str(self.finished) if self.missing is None else f"{self.finished} of {self.missing}"

    def _show(self) -> None:
        if self.live:
            left = 0 if self.missing is None else self.missing - self.finished
            pace = (time.monotonic() - self.begun) / self.finished if self.finished else None
            remaining = f", about {left * pace / 60:.0f} min left" if pace and left else ""
            lines = results_table(self.comparison, self.results(), self.console.width)
            lines += [f"{self._place()} trials done{remaining}", *self.running.values()]
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
        rows.append((result.arm.label, losses + gain_cells(result.to_first, wide) + costs))
        if place > 1 and result.to_previous is not None:
            before = [""] * len(losses) + gain_cells(result.to_previous, wide) + [""] * len(costs)
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
    pair = ["gain over the first [95 %]", "p", *(["noise"] if wide else []), "verdict"]
    return losses + pair + (["s", "MiB"] if wide else [])


def loss_cells(comparison: Comparison, result: Result, wide: bool) -> list[str]:
    """n, mean and spread, and on a wide table the range and the other split's mean."""
    losses = result.compared
    cells = [str(losses.n), mean_text(losses)]
    if wide:
        cells += [f"{losses.min:.3f} - {losses.max:.3f}"] + ([mean_text(result.dev)] if comparison.test else [])
    return cells
