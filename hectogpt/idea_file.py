"""A user's own Python file with an idea in it: read, imported when the user names it, known by the hash of its source.

Importing a file runs it. Nothing here imports a file that the user has not named, on this machine, in a command or a
call: a run folder that somebody else made says which file it needs, and that is all it can do.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import json
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType, ModuleType

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import cache_dir, write_atomic
from hectogpt.serialization import IDEA_MODULE, register_classes


@dataclass(frozen=True)
class IdeaFile:
    """A file and its source as it was read. Another source is another idea, whatever the file's name."""

    path: Path
    source: str

    @cached_property
    def sha256(self) -> str:
        """The hash of the source."""
        return hashlib.sha256(self.source.encode("utf-8")).hexdigest()

    def keep(self, copy: Path) -> None:
        """Write a copy of the source, if there is none. Raises UserError (STORAGE)."""
        if not copy.exists():
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot write {copy}", why=error.strerror or str(error), code=errors.STORAGE) from None
            write_atomic(copy, self.source)


def read_idea(path: Path | str) -> IdeaFile:
    """Read a file without running it. Raises UserError for one that cannot be read or is not Python source."""
    path = Path(path).expanduser()
    try:
        return IdeaFile(path.resolve(), path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}", fix="hectogpt idea FILE.py writes an example") from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"cannot read {path}", why=why or str(error)) from None


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the source that was read, even if the file has changed since; writes no bytecode."""

    def __init__(self, name: str, idea: IdeaFile) -> None:
        super().__init__(name, str(idea.path))
        self.idea = idea

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.idea.source.encode("utf-8"), str(self.idea.path))


def load_idea(idea: IdeaFile) -> ModuleType:
    """Import an idea, once per source, and make its classes the ones that `serialization.load` finds by name.

    What it prints goes to standard error. Raises UserError with the cause and the line if it cannot be imported.
    """
    name = IDEA_MODULE + idea.sha256[:16]
    module = sys.modules.get(name)
    if module is None:
        loader = _Loader(name, idea)
        spec = importlib.util.spec_from_loader(name, loader, origin=str(idea.path))
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        module.__file__ = str(idea.path)
        folder = str(idea.path.parent)
        if folder not in sys.path:
            sys.path.append(folder)  # for what the file imports from beside it
        sys.modules[name] = module  # dataclasses look their module up while they are made
        try:
            with running(idea, f"{idea.path.name} cannot be imported"):
                loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    register_classes(module)
    return module


@contextlib.contextmanager
def running(idea: IdeaFile, what: str) -> Iterator[None]:
    """Run code of an idea: what it prints goes to standard error, and what it raises becomes a UserError that names the
    cause and the line in the idea's file. Ctrl-C passes."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except UserError as error:
        where = _line_of(idea, error)
        raise UserError(f"{what}: {error.what}", why=error.why + where, fix=error.fix, code=error.code) from None
    except (Exception, SystemExit) as error:
        cause = traceback.format_exception_only(error)[-1].strip()
        raise UserError(what, why=cause + _line_of(idea, error), fix=f"mend {idea.path}") from None


def _line_of(idea: IdeaFile, error: BaseException) -> str:
    """ " (line 12: the line)" for the last line of the file that the error passed through."""
    if isinstance(error, SyntaxError) and error.filename == str(idea.path):
        number = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        number = next((f.lineno for f in reversed(frames) if f.filename == str(idea.path)), None)
    lines = idea.source.splitlines()
    return f" (line {number}: {lines[number - 1].strip()})" if number and number <= len(lines) else ""


def remember(idea: IdeaFile) -> None:
    """Note that the user has run this source from this place, so that runs made from it can be opened without naming
    the file again. A cache that cannot be written is no reason to stop."""
    path = cache_dir() / "ideas" / f"{idea.sha256}.json"
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"path": str(idea.path)}) + "\n")


def remembered(sha256: str) -> IdeaFile | None:
    """The file with this hash, if the user has run it here before and it is still where it was, unchanged."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UserError):
        idea = read_idea(json.loads((cache_dir() / "ideas" / f"{sha256}.json").read_text(encoding="utf-8"))["path"])
        return idea if idea.sha256 == sha256 else None
    return None
