"""Exceptions that nobody has caught: an error to print in place of each, and for a bug a report in a file.

Standard library only.
"""

from __future__ import annotations

import errno
import importlib.metadata
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hectogpt import __version__, errors
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.files import cache_dir
from hectogpt.hardware import is_out_of_memory

# Errors of the operating system that the user's disk, rights and limits cause, not our code.
STORAGE_ERRORS = ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "EPERM", "EMFILE", "ENFILE", "ENAMETOOLONG")
LONGEST = 300  # characters of an exception that are shown


def explain(error: BaseException, arguments: Sequence[str]) -> UserError:
    """The error to show in place of an exception. A full disk and used-up memory are named as such; anything else is a
    bug, about which a report is written."""
    if isinstance(error, OSError) and error.errno in {getattr(errno, name, None) for name in STORAGE_ERRORS}:
        return UserError(
            f"cannot use {'standard output, or a file' if error.filename is None else error.filename}",
            why=error.strerror or str(error),
            fix="check the disk's free space and who may write there; --debug shows where it happened",
            code=errors.STORAGE,
        )
    first = str(error).strip().partition("\n")[0]
    why = f"{type(error).__name__}: {first}"[:LONGEST] if first else type(error).__name__
    if is_out_of_memory(error):
        fix = "close other programs, or use a smaller model or batch; --debug shows where it happened"
        return UserError("out of memory", why=why, fix=fix, code=errors.MEMORY)
    path = write_report(error, arguments)
    fix = (f"the report of it is {path}; " if path else "") + "--debug shows the traceback"
    return UserError("this is a bug in hectogpt", why=why, fix=fix, code=errors.BUG)


def write_report(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write what is needed to find a bug: the traceback, the command, versions and platform; no environment and no
    content of files. Returns its path, in the cache or else in the folder for temporary files; None if neither can be
    written."""
    versions = {"hectogpt": __version__, "Python": platform.python_version()}
    for package in ("torch", "numpy"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    lines = [f"command:  {shlex.join(['hectogpt', *arguments])}"]
    lines += [f"versions: {', '.join(f'{name} {version}' for name, version in versions.items())}"]
    lines += [f"platform: {platform.platform()}, {sys.getfilesystemencoding()}", "", *traceback.format_exception(error)]
    for folder_of in (lambda: cache_dir() / "reports", lambda: Path(tempfile.gettempdir())):
        with suppress(OSError, RuntimeError, UserError):  # RuntimeError: there is no home
            folder = folder_of()
            folder.mkdir(parents=True, exist_ok=True)
            name = tempfile.mkstemp(prefix="hectogpt-bug-", suffix=".txt", dir=folder)[1]
            Path(name).write_text(printable("\n".join(lines)), encoding="utf-8")
            return Path(name)
    return None
