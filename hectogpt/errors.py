"""Errors that are not bugs. Each is one message: what failed, why, how to fix it, what is kept.

Every layer raises `UserError`, or its subclass `DataError` or `CheckpointError`; only the command
line turns it into lines on stderr and an exit code.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from hectogpt.display import printable

# Exit codes. 129, 130 and 143 (SIGHUP, SIGINT, SIGTERM) follow the shell's convention, 128 +
# signal number.
BUG = 1  # also a failed check, for example of `hectogpt doctor`
USAGE = 2
DATA = 3
CHECKPOINT = 4
EXACTNESS = 5
DIVERGED = 6
STORAGE = 7
MEMORY = 8
LOCKED = 9
PEER = 10  # another process of a parallel run failed
HANGUP = 129
INTERRUPTED = 130
TERMINATED = 143


@dataclass(frozen=True)
class Setting:
    """A field and its value in an error: "seeds = 0". The command line spells it as an option.

    Attributes:
        field: a field of a run, or a parameter of a function.
        value: the value, or a description of it.
    """

    field: str
    value: object

    def __str__(self) -> str:
        return f"{self.field} = {self.value}"


class SetTo(Setting):
    """A setting that would fix an error: "set seeds to 5"."""

    def __str__(self) -> str:
        return f"set {self.field} to {self.value}"


Text: TypeAlias = str | Setting | tuple[str | Setting, ...]


def parts_of(text: Text) -> tuple[str | Setting, ...]:
    """Return a Text as a tuple of its parts."""
    return text if isinstance(text, tuple) else (text,)


class UserError(Exception):
    """An error with its cause and a way to fix it.

    Attributes:
        what: the thing that failed, with its path, step or value.
        why: what was expected and what was found.
        fix: a command or value that solves the problem.
        what_parts, fix_parts: the parts of `what` and `fix`, strings and Settings.
        kept: what is not lost (the last state on disk, the old file), if anything is at stake.
        code: the exit code of the process, one of the constants above; by default `usual`.
    """

    usual = USAGE

    def __init__(
        self, what: Text, *, why: str = "", fix: Text = "", kept: str = "", code: int | None = None
    ) -> None:
        self.what_parts = parts_of(what)
        self.why = why
        self.fix_parts = parts_of(fix)
        self.kept = kept
        self.code = self.usual if code is None else code
        super().__init__(self.what)

    @property
    def what(self) -> str:
        return "".join(map(str, self.what_parts))

    @property
    def line(self) -> str:
        """The failure and its cause, on one line."""
        return f"{self.what}: {self.why}"

    @property
    def fix(self) -> str:
        return "".join(map(str, self.fix_parts))

    def amended(self, *, fix: Text = "", kept: str = "") -> UserError:
        """Replace `fix` and `kept`, each if it is given, and return this error."""
        self.fix_parts = parts_of(fix or self.fix_parts)
        self.kept = kept or self.kept
        return self

    def spell(self, option: Callable[[Setting], str]) -> None:
        """Replace each setting in `what` and `fix` with the string that `option` gives for it."""
        self.what_parts, self.fix_parts = (
            tuple(option(part) if isinstance(part, Setting) else part for part in parts)
            for parts in (self.what_parts, self.fix_parts)
        )

    def __str__(self) -> str:
        """The error as it is shown.

        Control characters, which may come from file names, are made visible. Lines after
        the first of a part are indented, so that they cannot be mistaken for another part.
        """
        label = "stopped" if self.code in (HANGUP, INTERRUPTED, TERMINATED) else "error"
        parts = [(label, self.what), ("why", self.why), ("fix", self.fix), ("kept", self.kept)]
        lines = [f"{name}: {text}" for name, text in parts if text]
        return printable("\n".join(line.replace("\n", "\n  ") for line in lines))


class DataError(UserError):
    """A text, or a file of data, cannot be used."""

    usual = DATA


class CheckpointError(UserError):
    """A checkpoint, a model or a run's folder cannot be used."""

    usual = CHECKPOINT


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the known name most similar to `name`; "" if none is similar."""
    near = difflib.get_close_matches(name[:200], known, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else ""


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist.

    It asks whether the nearest known name was meant, or lists all known names if none is similar.
    """
    known = list(known)
    if question := did_you_mean(name, known):
        return UserError(what, fix=question)
    return UserError(what, why=f"there are {', '.join(known)}", fix="name one of these")


def not_installed(what: str, package: str, extra: str) -> UserError:
    """The error for something that needs a package from one of our extras."""
    fix = f"python -m pip install 'hectogpt[{extra}]'"
    return UserError(f"{what} needs the package {package}", why="it is not installed", fix=fix)


def reason_of(error: Exception) -> str:
    """The operating system's reason, without number and path, or a library's message."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    return getattr(error, "strerror", None) or str(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0][:300]


def unreadable(path: object, error: Exception, *, fix: Text = "", code: int = DATA) -> UserError:
    """The error for a file that cannot be read."""
    why = "there is no such file" if isinstance(error, FileNotFoundError) else reason_of(error)
    return UserError(f"cannot read {path}", why=why, fix=fix, code=code)


def unwritable(path: object, error: Exception, *, fix: Text = "", kept: str = "") -> UserError:
    """The error for a path that cannot be written.

    If too many files are open, it says that the path cannot be opened; the fix is a higher limit.
    """
    what = f"cannot write {path}"
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        what = f"cannot open {path}"
        fix = "ulimit -n 1024"
    return UserError(what, why=reason_of(error), fix=fix, kept=kept, code=STORAGE)


@contextmanager
def writing(path: object, *, fix: Text = "", kept: str = "") -> Iterator[None]:
    """Context manager: turn an OSError into the error for a path that cannot be written."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error, fix=fix, kept=kept) from None
