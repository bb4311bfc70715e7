"""A user's own Python file that defines an idea, identified by the hash of its source.

Importing a file runs it. This module never imports a file that the user has not named on this
machine, in a command or a call. A run folder made by somebody else can say which file it needs,
but nothing more.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import hashlib
import json
import os
import pkgutil
import random
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import cache_dir, write_atomic
from hectogpt.hardware import is_out_of_memory
from hectogpt.serialization import idea_module

ASSIGNED = re.compile(
    r"\s*(?P<path>\w+(\.\w+)+) = (?P<value>.*?)\s*(#.*)?$"
)  # matches run.steps = 3
_files: dict[str, IdeaFile] = {}  # name of the imported module -> its file


@dataclass(frozen=True)
class IdeaFile:
    """A file, and its source when it was read.

    A different source is a different idea, whatever the file's name.
    """

    path: Path
    source: str

    @cached_property
    def sha256(self) -> str:
        """The hash of the source."""
        return hashlib.sha256(self.source.encode("utf-8")).hexdigest()

    def keep(self, copy: Path) -> None:
        """Write the source to `copy`, unless that exists. Raises UserError (STORAGE)."""
        if not copy.exists():
            with errors.writing(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(copy, self.source)


def read_idea(path: Path | str) -> IdeaFile:
    """Read a file without running it.

    Raises UserError if it cannot be read or is not text in UTF-8.
    """
    path = Path(path).expanduser()
    try:
        return IdeaFile(path.resolve(), path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = f"hectogpt idea {shlex.quote(str(path))}, which writes an example"
        raise UserError(
            f"{path} does not exist", why="an idea is written FILE.py:FUNCTION", fix=fix
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise errors.unreadable(path, error, code=errors.USAGE) from None


def load_idea(idea: IdeaFile) -> ModuleType:
    """Import an idea's source as it was read, even if the file has changed.

    Each source is imported only once. Its `print` writes to standard error unless it is given a
    file, because standard output is for results.

    Raises UserError with the cause and the line if the import fails.
    """
    name = idea_module(idea.sha256)
    if name in sys.modules:
        return sys.modules[name]
    folder = str(idea.path.parent)
    others = {str(one.path.parent) for one in _files.values()} - {folder}
    for _, helper, _ in pkgutil.iter_modules([folder]):
        file = str(getattr(sys.modules.get(helper), "__file__", ""))
        place = os.path.dirname(file.removesuffix("/__init__.py"))
        if place in others:
            what = f"{place} and {folder} both have a module {helper}"
            raise UserError(what, why="Python imports only one of them", fix="rename one")
    module = ModuleType(name)
    vars(module).update(__file__=str(idea.path), print=_print)
    if folder not in sys.path:
        # The file may import others in its folder. They come before those of other ideas, whose
        # folders are at the end, but after every library.
        at = len(sys.path)
        while sys.path[at - 1] in others:
            at -= 1
        sys.path.insert(at, folder)
    # Dataclasses look up their module when they are created.
    sys.modules[name] = module
    _files[name] = idea
    try:
        with running(f"{idea.path.name} cannot be imported"):
            exec(compile(idea.source, str(idea.path), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[name], _files[name]
        raise
    return module


def imported(module: str) -> IdeaFile | None:
    """The file that was imported under this module name, if any."""
    return _files.get(module)


def _print(*values: Any, file: Any = None, **options: Any) -> None:
    builtins.print(*values, file=sys.stderr if file is None else file, **options)


# --- running code of the file


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """Context manager: run an idea's code that defines a run, before any training.

    Its output goes to standard error. Its exceptions become a UserError with the cause and the
    line in the file; Ctrl-C passes through. On exit, the environment, working folder, random
    states and torch's settings are restored, so that a run computes the same here as in a process
    of its own.
    """
    with contextlib.redirect_stdout(sys.stderr), _restored():
        try:
            yield
        except UserError as error:
            why = error.why + _at(_place(error))
            raise UserError(
                f"{what}: {error.what}", why=why, fix=error.fix, code=error.code
            ) from None
        except (Exception, SystemExit) as error:
            raise UserError(
                what, why=_cause(error) + _at(_place(error)), fix=_cure(error)
            ) from None


def explain(error: BaseException) -> UserError | None:
    """Turn an exception into a UserError that says where in an idea's file the run failed.

    Returns None if no idea is loaded, or if the exception should pass unchanged.
    """
    if (
        not _files
        or isinstance(error, UserError)
        or not isinstance(error, (Exception, SystemExit))
    ):
        return None
    place = _place(error)
    if place is not None:
        return UserError(
            f"{place[0].path.name}: {place[2]} failed",
            why=_cause(error) + _at(place),
            fix=_cure(error),
        )
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, (SystemExit, OSError)) or is_out_of_memory(error) or not frames:
        return None  # exit(), or a problem of the machine
    names = ", ".join(dict.fromkeys(idea.path.name for idea in _files.values()))
    at = "/".join(Path(frames[-1].filename).parts[-3:])
    return UserError(
        f"a run of {names} failed",
        why=f"{_cause(error)} ({at}, line {frames[-1].lineno}: {frames[-1].line}); none of "
        "your lines was running",
        fix=f"check the shapes and types that {names} returns",
    )


def _place(error: BaseException) -> tuple[IdeaFile, int, str] | None:
    """The last line of an idea that the error passed through: file, line number, function."""
    if isinstance(error, SyntaxError) and error.lineno:
        for idea in _files.values():
            if str(idea.path) == error.filename:
                return idea, error.lineno, "the file"
    found = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        file = _files.get(frame.f_globals.get("__name__", ""))
        if file is not None and frame.f_code.co_filename == str(file.path):
            found = file, number, frame.f_code.co_qualname
    return found


def _at(place: tuple[IdeaFile, int, str] | None) -> str:
    """The place in parentheses, such as " (my.py, line 12: the line)"."""
    if place is None:
        return ""
    idea, number, _ = place
    lines = idea.source.splitlines()
    text = f": {lines[number - 1].strip()}" if number <= len(lines) else ""
    return f" ({idea.path.name}, line {number}{text})"


def _cause(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it called exit()"
    return traceback.format_exception_only(error)[-1].strip()


def _cure(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"install the package that has {error.name}, with python -m pip install"
    place = _place(error)
    if place is None:
        return ""
    line = place[0].source.splitlines()[place[1] - 1 : place[1]]
    found = (
        ASSIGNED.match("".join(line))
        if isinstance(error, dataclasses.FrozenInstanceError)
        else None
    )
    if found is None:
        return f"correct line {place[1]} of {place[0].path.name}"
    value, *sections, field = found["path"].split(".")
    fields = f"{field}={found['value']}"
    for depth in range(len(sections), 0, -1):
        fields = f"{sections[depth - 1]}=replace({'.'.join([value, *sections[:depth]])}, {fields})"
    return f"{value} = replace({value}, {fields})"


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Context manager: restore the settings that code can change for the whole process."""
    environment = dict(os.environ)
    kept: list[tuple[Callable[[Any], Any], Any]] = [(random.setstate, random.getstate())]
    with contextlib.suppress(OSError):
        kept.append((os.chdir, os.getcwd()))
    if numpy := sys.modules.get("numpy"):
        kept.append((numpy.random.set_state, numpy.random.get_state()))
    if torch := sys.modules.get("torch"):
        for name in ("rng_state", "default_dtype", "num_threads", "float32_matmul_precision"):
            kept.append((getattr(torch, f"set_{name}"), getattr(torch, f"get_{name}")()))
        kept += [
            (torch.set_grad_enabled, torch.is_grad_enabled()),
            (torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()),
        ]
    try:
        yield
    finally:
        for restore, value in kept:
            restore(value)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)


# --- files that the user has run here before


def remember(idea: IdeaFile) -> None:
    """Record that the user has run this source from this path.

    Runs made from it can then be opened without naming the file. A failure to write the record
    is ignored.
    """
    path = cache_dir() / "ideas" / f"{idea.sha256}.json"
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"path": str(idea.path)}, allow_nan=False) + "\n")


def remembered(sha256: str) -> IdeaFile | None:
    """The file with this hash, if the user has run it here and it is still there, unchanged."""
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UserError):
        idea = read_idea(
            json.loads((cache_dir() / "ideas" / f"{sha256}.json").read_text(encoding="utf-8"))[
                "path"
            ]
        )
        return idea if idea.sha256 == sha256 else None
    return None
