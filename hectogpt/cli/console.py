"""Terminal output that commands share: remarks, results, unexpected errors, safe streams.

`hectogpt --help` imports this module, so it imports other modules only when they are needed.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from hectogpt import errors
from hectogpt.display import Note, columns, printable
from hectogpt.errors import UserError

# Errors of the operating system caused by the user's disk, permissions or limits, not our code.
# The last three: a file where a folder should be, or vice versa.
STORAGE_ERRORS = (
    "ENOSPC EDQUOT EFBIG EIO EROFS EACCES EPERM EMFILE ENFILE ENAMETOOLONG EEXIST ENOTDIR EISDIR"
)


def note(line: str, quiet: bool = False) -> None:
    """Print one line on stderr."""
    if not quiet:
        print(printable(line), file=sys.stderr)


def remarks(quiet: bool = False) -> Note:
    """Return a function that prints a remark, "note: ...", on stderr."""
    return lambda line: note(f"note: {line}", quiet)


def show(
    as_json: bool, answer: Mapping[str, Any], lines: Iterable[str], quiet: bool = False
) -> None:
    """Print a command's result as one JSON object, or as lines."""
    if as_json:
        print(json.dumps(answer, allow_nan=False))
    elif not quiet:
        for line in lines:
            print(printable(line))


def loss_table(rows: Sequence[tuple[str, float, float]], same_tokens: bool = True) -> list[str]:
    """The lines of a table of held-out losses.

    Args:
        rows: name, nats per token and bits per byte of each model.
        same_tokens: True if all losses are on the same tokens. Otherwise nats cannot be compared,
            and are left out.
    """
    cells = [[name, *([f"{loss:.4f}"] * same_tokens), f"{bits:.4f}"] for name, loss, bits in rows]
    return columns(["model", *["nats/token"] * same_tokens, "bits/byte"], cells)


# --- errors


def explain(error: BaseException) -> UserError:
    """The error to show for an exception.

    A full disk and exhausted memory are reported as such. Anything else is a bug, and its
    traceback is printed.
    """
    from hectogpt.hardware import is_out_of_memory

    if isinstance(error, OSError) and error.errno in {
        getattr(errno, name, None) for name in STORAGE_ERRORS.split()
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


class Unfailing:
    """A stream for remarks and progress that silently ignores failing writes.

    A write fails if the disk behind the stream is full, or if the terminal has been closed.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text if possible. Returns its length."""
        with suppress(OSError, ValueError):  # ValueError: a closed stream
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()


@contextmanager
def steady_streams() -> Iterator[None]:
    """Context manager: make sys.stdout and sys.stderr robust.

    Characters that their encoding lacks are escaped. A stream that is closed at the start discards
    everything. Failures of stderr are ignored; those of stdout raise OSError.
    """
    for number in range(3):
        # If descriptor 0, 1 or 2 is closed, the next file opened would get it, and libraries would
        # print into that file.
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
    """Flush a stream, or replace it by the null device if that fails, since exit flushes again."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        with suppress(OSError, ValueError):  # ValueError: a stream without a file
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
            stream.flush()
