"""What commands share on a terminal: notes on stderr, a table of losses, and streams that end no command.

Standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from hectogpt.display import Unfailing, columns, printable


def note(line: str, quiet: bool = False) -> None:
    """Print one line on stderr."""
    if not quiet:
        print(printable(line), file=sys.stderr)


def one_line(text: str) -> str:
    """Text from a file for a cell of a table: nothing in it can break the line or move the cursor."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def loss_table(rows: Sequence[tuple[str, float, float]]) -> list[str]:
    """The lines of a table of held-out losses. rows: name, nats per token, bits per byte."""
    cells = [[one_line(name), f"{loss:.4f}", f"{bits:.4f}"] for name, loss, bits in rows]
    return columns(["model", "nats/token", "bits/byte"], cells)


@contextmanager
def steady_streams() -> Iterator[None]:
    """Meanwhile sys.stdout and sys.stderr write characters that their encoding lacks as escapes, a stream that was
    closed takes everything and keeps nothing, and a stderr that fails is silent. A stdout that fails raises OSError."""
    for number in range(3):  # where 0, 1 or 2 is closed the next file would get that number, and what libraries print
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        for stream in before:
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        sys.stdout, sys.stderr = before[0] or nowhere, cast(TextIO, Unfailing(before[1] or nowhere))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for stream in before:
                _flush_or_drop(stream)


def _flush_or_drop(stream: Any) -> None:
    """Flush a stream; one that cannot be written to gets the null device, or Python would complain of it at its end."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        with suppress(OSError, ValueError):  # ValueError: a stream without a file
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
            stream.flush()
