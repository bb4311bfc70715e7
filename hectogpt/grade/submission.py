"""Submissions: finding them in files, folders and archives, the hash of their files, and a temporary copy to run."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hectogpt import errors
from hectogpt.errors import UserError

SOLUTION = "model_solution.py"
GRADED_FILES = (SOLUTION, "utils.py", "train.py")
LARGEST = 2_000_000  # bytes of one file
MOST = 60  # files of one submission
DEEPEST = 4  # folders between a path that is given and a submission
SKIPPED = {"__pycache__", ".git", ".venv", "node_modules", "__MACOSX", "tests", "solution"}


@dataclass(frozen=True)
class Submission:
    """name: how it is shown. files: name -> content of its Python files; model_solution.py is among them, unless
    `fault` says why it cannot be read."""

    name: str
    path: Path
    files: dict[str, bytes]
    fault: str = ""

    @property
    def key(self) -> str:
        """A SHA-256 of names and contents: equal submissions get equal grades."""
        found = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            found.update(f"{name}\0{len(content)}\0".encode() + content)
        return found.hexdigest()

    @contextmanager
    def copied(self) -> Iterator[Path]:
        """A temporary folder with the files, which is removed at the end."""
        with tempfile.TemporaryDirectory(prefix="hectogpt-grade-", ignore_cleanup_errors=True) as folder:
            for name, content in self.files.items():
                Path(folder, name).write_bytes(content)
            yield Path(folder)


def find(paths: tuple[Path, ...]) -> list[Submission]:
    """The submissions in these paths, each once, in the order of the paths and then of names.

    A path is a .py file, a .zip archive, a folder with model_solution.py, or a folder with such things inside.
    Raises UserError for a path that does not exist, and for one without a submission.
    """
    found: list[Submission] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no {path}", fix="give a file, a folder or several")
        here = list(_below(path, path, 0))
        if not here:
            raise UserError(
                f"no submission in {path}",
                why=f"no {SOLUTION} and no .zip archive with one is in it, or up to {DEEPEST} folders below",
                fix=f"give the folder with {SOLUTION}",
            )
        found += here
    return _distinct(found)


def _distinct(found: list[Submission]) -> list[Submission]:
    """Each path once, and names that tell them apart."""
    once = {submission.path.resolve(): submission for submission in found}
    names: dict[str, int] = {}
    result = []
    for submission in once.values():
        count = names[submission.name] = names.get(submission.name, 0) + 1
        name = submission.name if count == 1 else f"{submission.name} ({count})"
        result.append(Submission(name, submission.path, submission.files, submission.fault))
    return result


def _below(path: Path, root: Path, depth: int) -> Iterator[Submission]:
    if path.is_file():
        if path.suffix == ".py":
            yield of_file(path, root)
        elif path.suffix == ".zip":
            yield of_archive(path, root)
        return
    if (path / SOLUTION).is_file():
        yield of_folder(path, root)
        return
    if depth < DEEPEST:
        try:
            entries = sorted(path.iterdir())
        except OSError as error:
            raise UserError(f"cannot read {path}", why=error.strerror or "", code=errors.DATA) from None
        for entry in entries:
            if entry.name in SKIPPED or entry.name.startswith("."):
                continue
            # in a folder of submissions, files that are not Python and not archives are no submissions
            if entry.is_dir() or entry.suffix == ".zip" or (entry.suffix == ".py" and entry.name not in GRADED_FILES):
                yield from _below(entry, root, depth + 1)


def _name(path: Path, root: Path) -> str:
    if path == root:
        return path.resolve().name
    return path.relative_to(root).as_posix()


def of_file(path: Path, root: Path) -> Submission:
    """A lone file, under whatever name. utils.py and train.py beside a file named model_solution.py belong to it."""
    if path.name == SOLUTION:
        return of_folder(path.parent, path.parent)
    try:
        return Submission(_name(path, root), path, {SOLUTION: _content(path)})
    except (OSError, ValueError) as error:
        return Submission(_name(path, root), path, {}, str(error))


def of_folder(folder: Path, root: Path) -> Submission:
    """A folder's Python files; not those below it."""
    name = _name(folder, root)
    try:
        paths = sorted(p for p in folder.glob("*.py") if p.is_file())
        paths.sort(key=lambda p: p.name not in GRADED_FILES)
        return Submission(name, folder, {p.name: _content(p) for p in paths[:MOST]})
    except (OSError, ValueError) as error:
        return Submission(name, folder, {}, str(error))


def of_archive(path: Path, root: Path) -> Submission:
    """A .zip archive; the files may be one folder down. Nothing is unpacked to disk here."""
    name = _name(path, root).removesuffix(".zip")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [i for i in archive.infolist() if i.filename.endswith(".py") and "__MACOSX" not in i.filename]
            homes = sorted(
                (i.filename.removesuffix(SOLUTION) for i in infos if Path(i.filename).name == SOLUTION), key=len
            )
            if not homes:
                return Submission(name, path, {}, f"there is no {SOLUTION} in the archive")
            inside = [i for i in infos if i.filename.startswith(homes[0]) and "/" not in i.filename[len(homes[0]) :]]
            files = {}
            for info in inside[:MOST]:
                if info.file_size > LARGEST:
                    raise ValueError(f"{info.filename} has {info.file_size:,} bytes; at most {LARGEST:,} are read")
                with archive.open(info) as file:
                    files[Path(info.filename).name] = file.read(LARGEST)
            return Submission(name, path, files)
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        return Submission(name, path, {}, f"the archive cannot be read: {error}")


def _content(path: Path) -> bytes:
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path.name} has {size:,} bytes; at most {LARGEST:,} are read")
    return path.read_bytes()
