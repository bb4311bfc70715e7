"""Standard output and error for the length of a command: no character, and no full disk behind stderr, ends it.

Standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from hectogpt import errors
from hectogpt.display import Unfailing
from hectogpt.errors import UserError


class Output:
    """Standard output. A write that fails (a full disk) raises UserError (STORAGE), a reader that has left
    BrokenPipeError."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text; returns its length."""
        with _told():
            return self._stream.write(text)

    def flush(self) -> None:
        """Pass on what is buffered."""
        with _told():
            self._stream.flush()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            "cannot write to standard output",
            why=error.strerror or str(error),
            fix="send the output to a place with room; what the command keeps in files is there",
            code=errors.STORAGE,
        ) from None


@contextmanager
def steady_streams() -> Iterator[None]:
    """Meanwhile sys.stdout and sys.stderr write characters that their encoding lacks as escapes, a stream that was
    closed takes everything and keeps nothing, a stderr that fails is silent, and a stdout that fails is a UserError."""
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = cast(TextIO, Output(sys.stdout or nowhere))
        sys.stderr = cast(TextIO, Unfailing(sys.stderr or nowhere))
        encoded = [(stream, getattr(stream, "errors", None)) for stream in before if hasattr(stream, "reconfigure")]
        for stream, _ in encoded:
            cast(Any, stream).reconfigure(errors="backslashreplace")
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for stream, old in encoded:
                _give_up_if_broken(stream)
                cast(Any, stream).reconfigure(errors=old)


def _open_closed_descriptors() -> None:
    """Give 0, 1 and 2 to the null device where they are closed. Otherwise the next file that is opened would get such
    a number, and what a library written in C prints would land in that file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _give_up_if_broken(stream: Any) -> None:
    """Flush a stream; one that cannot be written to gets the null device, or Python would complain of it at its end."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):  # ValueError: a stream without a file
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
            stream.flush()
