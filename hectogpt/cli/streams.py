"""Standard output and error for the length of a command: no character, and no full disk behind stderr, ends it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from hectogpt.display import Unfailing


@contextmanager
def steady_streams() -> Iterator[None]:
    """Meanwhile sys.stdout and sys.stderr write characters that their encoding lacks as escapes, a stream that was
    closed takes everything and keeps nothing, and a stderr that fails is silent. A stdout that fails raises OSError."""
    for number in range(3):  # where 0, 1 or 2 is closed the next file would get that number, and what libraries print
        with suppress(OSError):
            try:
                os.fstat(number)
            except OSError:
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
