"""What commands share on a terminal: notes on stderr, and rich's console for stdout.

Standard library only at import; rich is loaded when something is drawn.
"""

from __future__ import annotations

import sys
from typing import Any

from hectogpt.display import printable


def note(line: str, quiet: bool = False) -> None:
    """Print one line on stderr."""
    if not quiet:
        print(printable(line), file=sys.stderr)


def one_line(text: str) -> str:
    """Text from a file for a cell of a table: nothing in it can break the line or move the cursor."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def output_console(**options: Any) -> Any:
    """rich's console for stdout, which leaves a closed pipe (`| head`) to the caller instead of exiting with 1."""
    from rich.console import Console

    class OutputConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError that rich has just caught

    return OutputConsole(**options)
