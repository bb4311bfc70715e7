"""What a training run shows: a live line on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from hectogpt.lab.baselines import Curve
from hectogpt.train.loop import Step
from hectogpt.train.run import Run


class Say:
    """Progress on stderr; silent when quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True)

    def line(self, text: str) -> None:
        """One line of progress."""
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def steps(self, steps: Iterable[Step], run: Run) -> Iterator[Step]:
        """Pass the steps through, showing each."""
        if self.quiet:
            yield from steps
        elif self.console.is_terminal:
            yield from self._live(steps, run)
        else:
            every = max(1, run.steps // 100)
            for step in self._timed(steps, run):
                if step[0].step % every == 0 or step[0].step in (1, run.steps):
                    self.line(step[1])
                yield step[0]

    def _live(self, steps: Iterable[Step], run: Run) -> Iterator[Step]:
        columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
        with Progress(*columns, console=self.console, transient=False) as progress:
            task = progress.add_task("first step ...", total=run.steps)
            for step, text in self._timed(steps, run):
                progress.update(task, completed=step.step, description=text)
                yield step

    def _timed(self, steps: Iterable[Step], run: Run) -> Iterator[tuple[Step, str]]:
        begun = time.perf_counter()
        for step in steps:
            left = (time.perf_counter() - begun) / step.step * (run.steps - step.step)
            speed = run.data.batch_size * run.data.window / step.seconds
            yield (
                step,
                f"step {step.step:05d}/{run.steps:05d} | loss {step.loss:.3f} | lr {step.lr:.1e} | "
                f"norm {step.grad_norm:.2f} | dt {step.seconds * 1000:.0f}ms | tok/s {speed:,.0f} | "
                f"eta {left / 60:.1f}m",
            )


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM so that the step under way can finish; a second SIGINT interrupts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        print("finishing this step (Ctrl-C again to stop at once)", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def printable(text: str) -> str:
    """Text from a model or a corpus with control characters (escape sequences among them) made visible."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def final_table(summary: dict[str, Any], baseline: Curve | None) -> None:
    """Print the run beside the baseline and the count models, then its two continuations and its files."""
    console = Console()
    table = Table(title=f"{summary['corpus']}: held-out loss after {summary['steps']} steps", title_justify="left")
    for column in ("model", "nats/token", "bits/byte", "last training loss"):
        table.add_column(column, justify="left" if column == "model" else "right")
    per_nat = summary["dev_bpb"] / summary["dev_loss"]
    anchors = summary["anchors"]
    for name, key in (("uniform", "uniform"), ("unigram counts", "unigram")):
        table.add_row(name, f"{anchors[key]:.3f}", f"{anchors[key] * per_nat:.3f}", "")
    if baseline:
        table.add_row("baseline", f"{baseline.dev_loss:.3f}", f"{baseline.dev_bpb:.3f}", f"{baseline.losses[-1]:.3f}")
    for name, key in (("Kneser-Ney bigram", "kn2"), ("Kneser-Ney trigram", "kn3")):
        table.add_row(name, f"{anchors[key]:.3f}", f"{anchors[key] * per_nat:.3f}", "")
    label = summary["recipe"] + (" (modified)" if summary["modified"] else "")
    values = (summary["dev_loss"], summary["dev_bpb"], summary["train_loss_last"])
    table.add_row(f"[bold]{label}[/bold]", *(f"[bold]{v:.3f}[/bold]" for v in values))
    console.print(table)
    for name, text in summary["samples"].items():
        console.print(f"{name}: {printable(text)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"\nThe picture: {summary['folder']}/losses_and_grad_norms.png", markup=False, highlight=False)
    console.print(f"All of it:   {summary['folder']}", markup=False, highlight=False)
