"""What is said when a command ends by an exception that nobody has caught: one error, and for a bug a report in a file.

Standard library only.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hectogpt import __version__, errors
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.files import cache_dir
from hectogpt.hardware import is_out_of_memory

# Errors of the operating system that the user's disk, rights and limits cause, not our code.
STORAGE_ERRORS = ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "EPERM", "EMFILE", "ENFILE", "ENAMETOOLONG")


def tell(error: BaseException, arguments: Sequence[str]) -> UserError:
    """The error to show in place of an exception. A full disk and used-up memory are told as such; anything else is a
    bug, about which a report is written."""
    if isinstance(error, OSError) and error.errno in {getattr(errno, name, None) for name in STORAGE_ERRORS}:
        what = f"cannot use {error.filename}" if error.filename is not None else "a file could not be read or written"
        return UserError(
            what,
            why=error.strerror or str(error),
            fix="check the disk's free space and who may write there; --debug shows where it happened",
            code=errors.STORAGE,
        )
    if is_out_of_memory(error):
        return UserError(
            "out of memory",
            why=one_line(error),
            fix="close other programs, or use a smaller model or batch; --debug shows where it happened",
            code=errors.MEMORY,
        )
    path = write_report(error, arguments)
    where = f"the report of it is {path}; " if path else ""
    return UserError(
        "this is a bug in hectogpt", why=one_line(error), fix=f"{where}--debug shows the traceback", code=errors.BUG
    )


def one_line(error: BaseException, longest: int = 300) -> str:
    """An exception's class and the first line of its message."""
    first = str(error).strip().partition("\n")[0]
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."


def write_report(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write what is needed to find a bug: the traceback, the command, versions and platform; no environment and no
    content of files. Returns its path, in the cache or else in the folder for temporary files; None if neither can be
    written."""
    text = printable(report_text(error, arguments))
    for folder in _folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix="hectogpt-bug-", suffix=".txt", dir=folder, text=True)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            return Path(name)
    return None


def _folders() -> Iterator[Path]:
    with suppress(OSError, RuntimeError, UserError):  # RuntimeError: there is no home
        yield cache_dir() / "reports"
    with suppress(OSError):
        yield Path(tempfile.gettempdir())


def report_text(error: BaseException, arguments: Sequence[str]) -> str:
    """The text of a report."""
    versions = [f"hectogpt {__version__}", f"Python {platform.python_version()}"]
    for package in ("torch", "numpy", "matplotlib", "marimo"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    lines = [
        f"command:  {shlex.join(['hectogpt', *arguments])}",
        f"versions: {', '.join(versions)}",
        f"platform: {platform.platform()}, {sys.getfilesystemencoding()}, {getattr(sys.stdout, 'encoding', None)}",
        "",
        *traceback.format_exception(error),
    ]
    return "\n".join(lines) + "\n"
