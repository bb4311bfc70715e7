"""Text and small tables for terminals, and progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Note = Callable[[str], None]  # shows a sentence to the user, or keeps it
OTHER_TOKENS = (
    "Different vocabularies mean different tokens: compare only bits per byte (hectogpt score)."
)
# Key of an n-gram model in summaries and records -> its name. The last two, order 5 with fitted
# discounts and the mixture with caches, come from `python -m tools.research.ngrams`.
NGRAMS = {
    "uniform": "uniform",
    "unigram": "unigram counts",
    "kn2": "Kneser-Ney bigram",
    "kn3": "Kneser-Ney trigram",
    "kn5": "Kneser-Ney of order 5",
    "mkn5": "Kneser-Ney of order 5, fitted",
    "best": "best counting",
}


def printable(text: str) -> str:
    """The text with control characters, such as escape sequences, made visible.

    Newlines and tabs stay.
    """
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def one_line(text: str) -> str:
    """Text from a file as a table cell: it cannot break the line or move the cursor."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def value_text(value: Any, longest: int = 60) -> str:
    """Shorten a dumped value for display: {"type": "Muon", "lr": 0.02} becomes Muon(lr=0.02)."""
    text = _words(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _words(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(
            f"{name}={_words(item)}" for name, item in value.items() if name != "type"
        )
        return f"{value.get('type', '')}({inner})"
    if isinstance(value, list):
        return "[" + ", ".join(map(_words, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value, allow_nan=False)


def facts_text(title: str, facts: Mapping[str, str]) -> str:
    """A title, and below it the facts in two columns, names and values."""
    width = max(map(len, facts), default=0)
    return "\n".join(
        [
            one_line(title),
            *(f"  {name:<{width}}  {one_line(value)}" for name, value in facts.items()),
        ]
    )


def columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, width: int | None = None
) -> list[str]:
    """The lines of a table, indented by two spaces.

    Args:
        header: the titles of the columns.
        rows: their cells.
        left: the number of columns that are aligned on the left; the others are aligned on the
            right.
        width: the most characters of a line; long cells of the first column continue on the next
            line.
    """
    lines = [list(map(one_line, row)) for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    if width is not None:
        widths[0] = max(min(widths[0], width - sum(widths[1:]) - 2 * len(widths)), 12)
    sides = [str.ljust] * left + [str.rjust] * (len(header) - left)
    found = []
    for first, *others in lines:
        cells = [
            side(cell, n)
            for side, cell, n in zip(sides, [first[: widths[0]], *others], widths, strict=True)
        ]
        found.append("  ".join(["", *cells]).rstrip())
        found += [
            f"  {first[at : at + widths[0]]}"
            for at in range(widths[0], len(first), widths[0] or 1)
        ]
    return found


# --- progress: a live line on a terminal, one output in a notebook, plain lines elsewhere, nothing
# when quiet ---------

# seconds between updates of a `bar` in a notebook; most tasks end before the first update
PATIENCE = 2.0


def in_notebook() -> bool:
    """Return True in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class Progress:
    """Shows the progress of a long task on stderr.

    In a notebook everything is one output, which is updated in place.

    Args:
        quiet: show nothing.
        lines: about how many lines to print for a task if there is no terminal.
    """

    def __init__(self, quiet: bool, lines: int = 100) -> None:
        self.quiet = quiet
        self.lines = lines
        # Imported late: a program that shows nothing need not load rich.
        from rich.console import Console

        self.console = Console(stderr=True, force_jupyter=False)
        self._lines = [""]  # in a notebook: the line that is updated, then the lines that stay
        self._output: Any = None

    def line(self, text: str) -> None:
        """Print one line. In a notebook, lines that end in "..." are left out.

        Such lines only announce that something takes a while.
        """
        if self.quiet:
            return
        if not in_notebook():
            self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        elif not text.endswith("..."):
            self._lines.append(text)
            self._show(self._lines[0])

    def _show(self, live: str) -> None:
        """Update the notebook's output, with `live` as its first line."""
        from IPython.display import display

        self._lines[0] = live
        content = {"text/plain": printable("\n".join(filter(None, self._lines)))}
        if self._output is None:
            self._output = display(content, raw=True, display_id=True)
        else:
            self._output.update(content, raw=True)

    @contextmanager
    def counting(self, total: int) -> Iterator[Callable[[int, str], None]]:
        """Context manager: show the steps of a task, each as a line.

        Without a terminal, only about `lines` of them are printed. Yields the function to call
        with the number of a step, from 1, and its line.
        """
        every = max(1, total // self.lines)
        notebook = in_notebook() and not self.quiet
        # In a notebook the steps replace earlier lines, except notes.
        self._lines = ["", *(line for line in self._lines if line.startswith("note: "))]
        with self.bar(total, "first step ...") as show_bar:

            def show(number: int, text: str) -> None:
                if notebook:
                    self._show(text)
                elif self.console.is_terminal:
                    show_bar(number, text)
                elif number % every == 0 or number in (1, total):
                    self.line(text)

            yield show

    @contextmanager
    def bar(self, total: int | None, first: str) -> Iterator[Callable[[int, str], None]]:
        """Context manager: a progress bar on a terminal, a percentage in a notebook, else nothing.

        Yields a function to call with the number of parts that are done and a text for the bar.

        Args:
            total: the number of parts; None if it is not known.
            first: the text at the beginning.
        """
        updated = time.monotonic()

        def show_share(number: int, text: str) -> None:
            nonlocal updated
            if time.monotonic() - updated > PATIENCE:
                updated = time.monotonic()
                self._show(f"{text} ({number / total:.0%})" if total else text)

        if self.quiet or not (self.console.is_terminal or in_notebook()):
            yield lambda number, text: None
            return
        if in_notebook():
            yield show_share
            return
        from rich.progress import BarColumn, Progress, TextColumn

        text_column = TextColumn("{task.description}", markup=False)
        with Progress(BarColumn(bar_width=20), text_column, console=self.console) as bars:
            task = bars.add_task(printable(first), total=total)
            yield lambda number, text: bars.update(
                task, completed=number, description=printable(text)
            )
