"""What commands share on a terminal: remarks, results, errors that nobody has caught, and streams
that end no command.

Loads what it needs when it is needed: `hectogpt --help` imports it.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from hectogpt import errors
from hectogpt.display import columns, printable
from hectogpt.errors import UserError

# Errors of the operating system that the user's disk, rights and limits cause, not our code.
STORAGE_ERRORS = (
    *(
        "ENOSPC",
        "EDQUOT",
        "EFBIG",
        "EIO",
        "EROFS",
        "EACCES",
        "EPERM",
        "EMFILE",
        "ENFILE",
        "ENAMETOOLONG",
    ),
    *("EEXIST", "ENOTDIR", "EISDIR"),  # a file where a folder should be, or the other way round
)


def note(line: str, quiet: bool = False) -> None:
    """Print one line on stderr."""
    if not quiet:
        print(printable(line), file=sys.stderr)


def remarks(quiet: bool = False) -> Callable[[str], None]:
    """What prints a remark, "note: ...", on stderr."""
    return lambda line: note(f"note: {line}", quiet)


def show(
    as_json: bool, answer: Mapping[str, Any], lines: Iterable[str], quiet: bool = False
) -> None:
    """Print a command's result: one JSON object, or its lines."""
    if as_json:
        print(json.dumps(answer, allow_nan=False))
    elif not quiet:
        for line in lines:
            print(printable(line))


def loss_table(rows: Sequence[tuple[str, float, float]], same_tokens: bool = True) -> list[str]:
    """The lines of a table of held-out losses. rows: name, nats per token, bits per byte.
    same_tokens: whether all are losses of the same tokens; nats of others cannot be compared, and
    are left out."""
    cells = [[name, *([f"{loss:.4f}"] * same_tokens), f"{bits:.4f}"] for name, loss, bits in rows]
    return columns(["model", *["nats/token"] * same_tokens, "bits/byte"], cells)


# --- errors
# ---


def explain(error: BaseException) -> UserError:
    """The error to show for an exception. A full disk and used-up memory are named as such;
    anything else is a bug: its traceback is printed."""
    from hectogpt.hardware import is_out_of_memory

    if isinstance(error, OSError) and error.errno in {
        getattr(errno, name, None) for name in STORAGE_ERRORS
    }:
        return UserError(
            "cannot use "
            f"{'standard output, or a file' if error.filename is None else error.filename}",
            why=errors.reason_of(error),
            fix="check the disk's free space and who may write there; --debug shows where it "
            "happened",
            code=errors.STORAGE,
        )
    why = f"{type(error).__name__}: {errors.first_line(error)}".removesuffix(": ")
    if is_out_of_memory(error):
        fix = (
            "close other programs, or use a smaller model or batch; --debug shows where it "
            "happened"
        )
        return UserError("out of memory", why=why, fix=fix, code=errors.MEMORY)
    note("".join(traceback.format_exception(error)))
    fix = "report it, with the lines above and those of `hectogpt doctor`"
    return UserError("this is a bug in hectogpt", why=why, fix=fix, code=errors.BUG)


# --- streams
# ---


class Unfailing:
    """A stream for remarks and progress: a write that fails, because the disk behind it is full or
    the terminal gone, is silently dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text if that can be done; returns its length."""
        with suppress(OSError, ValueError):  # ValueError: a closed stream
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered if that can be done."""
        with suppress(OSError, ValueError):
            self._stream.flush()


@contextmanager
def steady_streams() -> Iterator[None]:
    """Meanwhile sys.stdout and sys.stderr write characters that their encoding lacks as escapes, a
    stream that was closed takes everything and keeps nothing, and a stderr that fails is silent. A
    stdout that fails raises OSError."""
    for number in range(
        3
    ):  # where 0, 1 or 2 is closed the next file would get that number, and what libraries print
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
        sys.stdout = before[0] or nowhere
        sys.stderr = cast(TextIO, Unfailing(before[1] or nowhere))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for stream in before:
                _flush_or_drop(stream)


def _flush_or_drop(stream: Any) -> None:
    """Flush a stream; one that cannot be written to gets the null device, or Python would complain
    of it at its end.
    """
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        with suppress(OSError, ValueError):  # ValueError: a stream without a file
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
            stream.flush()
