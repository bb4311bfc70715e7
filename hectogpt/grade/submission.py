"""Submissions: finding them in files, folders and archives, their limits, and a temporary copy to run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hectogpt import errors, files
from hectogpt.errors import UserError

SOLUTION = "model_solution.py"
GRADED_FILES = (SOLUTION, "utils.py", "train.py")
LARGEST = 2_000_000  # bytes of one file
MOST = 60  # files of one submission
DEEPEST = 4  # folders between a path that is given and a submission
TEMPORARY, LOCK = "hectogpt-grade-", "lock"  # how temporary folders begin, and the file in them that is locked
LOOKS = re.compile(
    r"^\s*(import|from)\s+(hectogpt|reference|inspect|ctypes|gc)\b|sys\.modules|_getframe|f_back|f_locals|get_objects"
    r"|__subclasses__|__import__|import_module|spec_from_file|\bexec\(|\beval\(|model_solution\.py"
)
NAME = re.compile(r"\w[\w.-]{0,100}\.py")
SKIPPED = {"__pycache__", ".git", ".venv", "node_modules", "__MACOSX", "tests", "solution"}


@dataclass(frozen=True)
class Limits:
    """seconds: the longest silence, that is the time of one setting. start_seconds: until the child is ready, which
    includes loading torch. total_seconds: of all children of a submission. memory, output: bytes."""

    seconds: float = 10.0
    start_seconds: float = 60.0
    total_seconds: float = 90.0
    memory: int = 2 << 30
    output: int = 1 << 20


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

    def looks(self) -> list[str]:
        """Lines that a teacher may want to see: where the files look at the grader, or at the program around them."""
        found = []
        for name, content in sorted(self.files.items()):
            for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
                if LOOKS.search(line):
                    found.append(f"{name}:{number}: {line.strip()[:160]}")
        return found[:20]

    def write(self, folder: Path) -> None:
        """Copy the files into a folder; whoever can reach it may read them."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o644)


@contextmanager
def temporary() -> Iterator[Path]:
    """An empty temporary folder, which is removed at the end. A container's user may read it; other users of this
    machine may not, because the folder around it is the grader's own. The lock in that tells a later grader that this
    one lives."""
    with (
        tempfile.TemporaryDirectory(prefix=TEMPORARY, ignore_cleanup_errors=True) as outer,
        files.lock(Path(outer, LOCK), "grading"),
    ):
        folder = Path(outer, "submission")
        folder.mkdir()
        folder.chmod(0o755)
        yield folder


def remove_leftovers() -> None:
    """Remove the temporary copies of graders that were killed: folders of this user whose lock nobody holds. Where
    there are no locks (Windows), nothing happens."""
    for outer in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with suppress(OSError, AttributeError, UserError):  # gone, no users here, or locked: its grader lives
            told = outer.lstat()
            if not stat.S_ISDIR(told.st_mode) or told.st_uid != os.geteuid() or not (outer / LOCK).exists():
                continue
            with files.lock(outer / LOCK, "grading", patience=0.0) as held:
                if held:
                    shutil.rmtree(outer, ignore_errors=True)


def find(paths: tuple[Path, ...]) -> list[Submission]:
    """The submissions in these paths, each once, in the order of the paths and then of names.

    A path is a .py file, a .zip archive, a folder with model_solution.py, or a folder with such things inside; in that
    one, a folder of somebody who handed in nothing that can be graded is a submission with a fault.
    Raises UserError for a path that does not exist, and for one without a submission.
    """
    found: list[Submission] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no {path}", fix="give a file, a folder or several")
        here = list(_below(path, path, 0))
        if not here and len(paths) > 1:  # one of a class must not stop the others
            here = [Submission(_name(path, path), path, {}, f"there is no {SOLUTION} in it")]
        if not here:
            raise UserError(
                f"no submission in {path}",
                why=f"no {SOLUTION} and no .zip archive with one is in it, or up to {DEEPEST} folders below",
                fix=f"give the folder with {SOLUTION}",
            )
        found += here + list(_empty_handed(path, here))
    once = {os.path.abspath(submission.path): submission for submission in found}  # links stay themselves
    names: Counter[str] = Counter()
    result = []
    for submission in once.values():
        names[submission.name] += 1
        count = f" ({names[submission.name]})" if names[submission.name] > 1 else ""
        result.append(replace(submission, name=submission.name + count))
    return result


def find_one(paths: tuple[Path, ...]) -> Submission:
    """The one submission in these paths. Where there is none, or more than one, it has a fault that tells a student so:
    nobody may take that for an error of the grader. Raises UserError for a path that does not exist."""
    try:
        found = find(paths)
    except UserError:
        if not paths[0].exists():
            raise
        found = []
    if len(found) == 1:
        return found[0]
    fault = f"there is no {SOLUTION} in what was handed in; hand it in together with utils.py and train.py"
    if found:
        names = ", ".join(one.name for one in found[:4])
        fault = f"there is more than one submission in what was handed in ({names}); hand in one {SOLUTION}"
    return Submission(paths[0].resolve().name, paths[0], {}, fault)


def _empty_handed(root: Path, found: list[Submission]) -> Iterator[Submission]:
    """The folders right below `root` in which there was nothing to grade."""
    if not root.is_dir() or any(one.path == root for one in found):
        return
    for entry in sorted(root.iterdir()):
        looked_at = entry.is_dir() and entry.name not in SKIPPED and not entry.name.startswith(".")
        if looked_at and not any(one.path == entry or entry in one.path.parents for one in found):
            why = "it is a link; links are not followed" if entry.is_symlink() else f"there is no {SOLUTION} in it"
            yield Submission(entry.name, entry, {}, why)


def _below(path: Path, root: Path, depth: int) -> Iterator[Submission]:
    if path.is_file():
        if path.suffix == ".py":
            yield of_file(path, _name(path, root))
        elif path.suffix == ".zip":
            yield of_archive(path, _name(path, root).removesuffix(".zip"))
    elif (path / SOLUTION).is_file():
        yield of_folder(path, _name(path, root))
    elif depth < DEEPEST:
        try:
            entries = sorted(path.iterdir())
        except OSError as error:
            raise UserError(f"cannot read {path}", why=error.strerror or "", code=errors.DATA) from None
        for entry in entries:
            if entry.name in SKIPPED or entry.name.startswith(".") or entry.is_symlink():
                continue
            # in a folder of submissions, files that are not Python and not archives are no submissions
            if entry.is_dir() or entry.suffix == ".zip" or (entry.suffix == ".py" and entry.name not in GRADED_FILES):
                yield from _below(entry, root, depth + 1)


def _name(path: Path, root: Path) -> str:
    return path.resolve().name if path == root else path.relative_to(root).as_posix()


def of_file(path: Path, name: str) -> Submission:
    """A lone file, under whatever name. utils.py and train.py beside a file named model_solution.py belong to it."""
    if path.name == SOLUTION:
        return of_folder(path.parent, path.parent.resolve().name)
    try:
        return Submission(name, path, {SOLUTION: _content(path)})
    except (OSError, ValueError) as error:
        return Submission(name, path, {}, str(error))


def of_folder(folder: Path, name: str) -> Submission:
    """A folder's Python files; not those below it, and no links: they may lead to files of the teacher's."""
    try:
        paths = {path.name: path for path in folder.iterdir() if path.is_file() and not path.is_symlink()}
        if SOLUTION not in paths:
            return Submission(name, folder, {}, f"there is no {SOLUTION} in it that is a file; links are not followed")
        return Submission(name, folder, {n: _content(paths[n]) for n in _chosen(paths)})
    except (OSError, ValueError) as error:
        return Submission(name, folder, {}, str(error))


def of_archive(path: Path, name: str) -> Submission:
    """A .zip archive; the files may be one folder down. Nothing is unpacked to disk here."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist() if "__MACOSX" not in info.filename}
            homes = [n.removesuffix(SOLUTION) for n in infos if n.rpartition("/")[2] == SOLUTION]
            if not homes:
                return Submission(name, path, {}, f"there is no {SOLUTION} in the archive")
            home = min(homes, key=len)
            inside = {n.removeprefix(home): info for n, info in infos.items() if n.startswith(home)}
            content = {}
            for n in _chosen(inside):
                _check_size(n, inside[n].file_size)
                with archive.open(inside[n]) as file:
                    content[n] = file.read(LARGEST)
            return Submission(name, path, content)
    except Exception as error:  # zlib.error, LZMAError, EOFError and others: one archive must not stop a class
        return Submission(name, path, {}, f"the archive cannot be read: {error}")


def _chosen(names: Iterable[str]) -> list[str]:
    """The names of Python files that are read, those that are graded first."""
    python = sorted(name for name in names if NAME.fullmatch(name))
    return sorted(python, key=lambda name: name not in GRADED_FILES)[:MOST]


def _content(path: Path) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        _check_size(path.name, os.fstat(file.fileno()).st_size)
        return file.read(LARGEST)


def _check_size(name: str, size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"{name} has {size:,} bytes; at most {LARGEST:,} are read")
