"""What commands share on a terminal: progress on stderr, notes, signals, text that cannot move the cursor.

Standard library only at import; rich is loaded when something is drawn.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from hectogpt import errors

T = TypeVar("T")


def printable(text: str) -> str:
    """The text with control characters (escape sequences among them) as visible escapes; newlines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else _escape(ord(c)) for c in text)


def _escape(number: int) -> str:
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


def note(line: str, quiet: bool = False) -> None:
    """Print one line on stderr."""
    if not quiet:
        print(printable(line), file=sys.stderr)


def output_console(**options: Any) -> Any:
    """rich's console for stdout, which leaves a closed pipe (`| head`) to the caller instead of exiting with 1."""
    from rich.console import Console

    class OutputConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError that rich has just caught

    return OutputConsole(**options)


class Progress:
    """Progress on stderr: a live line on a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self.quiet = quiet
        self.console = Console(stderr=True)

    def line(self, text: str) -> None:
        """Print one line."""
        if not self.quiet:
            self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def follow(self, items: Iterable[T], total: int, describe: Callable[[T], str]) -> Iterator[T]:
        """Pass the items through and show each; where there is no terminal, about a hundred of them."""
        if self.quiet:
            yield from items
        elif self.console.is_terminal:
            yield from self._live(items, total, describe)
        else:
            every = max(1, total // 100)
            for number, item in enumerate(items, start=1):
                if number % every == 0 or number in (1, total):
                    self.line(describe(item))
                yield item

    def _live(self, items: Iterable[T], total: int, describe: Callable[[T], str]) -> Iterator[T]:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        with Bars(BarColumn(bar_width=20), TextColumn("{task.description}"), console=self.console) as bars:
            task = bars.add_task("first step ...", total=total)
            for number, item in enumerate(items, start=1):
                bars.update(task, completed=number, description=describe(item))
                yield item


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM has arrived. `code` is the exit code that belongs to it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = exit_code(number)


def exit_code(number: int) -> int:
    """The exit code after SIGINT or SIGTERM."""
    return errors.INTERRUPTED if number == signal.SIGINT else errors.TERMINATED


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Within the context SIGINT and SIGTERM raise Stopped, so that both can be caught and say what is kept."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handling(stop):
        yield


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM so that the step under way can finish; a second SIGINT raises Stopped at once."""
    received: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise Stopped(number)
        received.append(number)
        print("finishing this step (Ctrl-C again to stop at once)", file=sys.stderr)

    with _handling(collect):
        yield received


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle both signals by `handler`; in a thread other than the main one, which gets no signals, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
