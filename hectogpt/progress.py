"""Progress on stderr: a live line on a terminal, plain lines elsewhere (a notebook, a file), nothing when quiet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar, cast

from hectogpt.display import Unfailing, printable

T = TypeVar("T")


def notebook_line() -> Callable[[str], None] | None:
    """In Jupyter a function that shows a text in the place of the one before it; None elsewhere."""
    ipython = sys.modules.get("IPython")
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        return None
    from IPython.display import display  # a package of Jupyter's

    handle: Any = None

    def show(text: str) -> None:
        nonlocal handle
        data = {"text/plain": printable(text)}
        if handle is None:
            handle = display(data, raw=True, display_id=True)
        else:
            handle.update(data, raw=True)

    return show


class Progress:
    """Shows where a long task is.

    lines: about how many plain lines a task gets where there is no terminal. In Jupyter a task is one line that is
    written anew; rich's own display there needs ipywidgets.
    """

    def __init__(self, quiet: bool, lines: int = 100) -> None:
        self.quiet, self.lines = quiet, lines
        from rich.console import Console  # here, so that a program that shows nothing loads none of it

        self.console = Console(file=cast(TextIO, Unfailing()), force_jupyter=False)

    def line(self, text: str) -> None:
        """Print one line."""
        if not self.quiet:
            self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def follow(self, items: Iterable[T], total: int, describe: Callable[[T], str], done: int = 0) -> Iterator[T]:
        """Pass the items through and show each; where there is no terminal, about `lines` of them. done: how many of
        the total come before these."""
        with self.task(total, "first step ...") as show:
            for number, item in enumerate(items, start=done + 1):
                show(number, lambda item=item: describe(item))  # type: ignore[misc]
                yield item

    @contextmanager
    def bar(self, total: int | None, first: str) -> Iterator[Callable[[int, str], None]]:
        """A bar of `total` parts on a terminal, nothing elsewhere; yields the function to call with the number of parts
        that are done, and the text beside the bar."""
        if self.quiet or not self.console.is_terminal or notebook_line():
            yield lambda number, text: None
            return
        with self._bars() as bars:
            task = bars.add_task(printable(first), total=total)
            yield lambda number, text: bars.update(task, completed=number, description=printable(text))

    def _bars(self) -> Any:
        from rich.progress import BarColumn, Progress, TextColumn

        return Progress(BarColumn(bar_width=20), TextColumn("{task.description}", markup=False), console=self.console)

    @contextmanager
    def task(self, total: int, first: str) -> Iterator[Callable[[int, Callable[[], str]], None]]:
        """A task of `total` parts; yields the function to call with the number of a part that is done, and its line."""
        if self.quiet:
            yield lambda number, line: None
        elif show_text := notebook_line():
            yield lambda number, line: show_text(line())
        elif self.console.is_terminal:
            with self.bar(total, first) as show_bar:
                yield lambda number, line: show_bar(number, line())
        else:
            every = max(1, total // self.lines)

            def show(number: int, line: Callable[[], str]) -> None:
                if number % every == 0 or number in (1, total):
                    self.line(line())

            yield show
