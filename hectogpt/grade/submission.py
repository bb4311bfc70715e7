"""Find submissions in files, folders and archives, and read them."""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from hectogpt import errors
from hectogpt.assignment.parts import SOURCES
from hectogpt.errors import UserError

SOLUTION = "model_solution.py"
USAGE = f"hectogpt grade FOLDER, with the folder that holds {SOLUTION}"
LARGEST = 2_000_000  # bytes; a larger file is refused
MOST = 60  # files read from one submission
DEEPEST = 4  # levels of folders searched below a given path
LOOKS = re.compile(
    r"^\s*(import|from)\s+(hectogpt|reference|inspect|ctypes)\b|sys\.modules|_getframe|f_back|f_locals"
    r"|get_objects|__subclasses__|__import__|import_module|spec_from_file|(?<![.\w])(exec|eval)\(|model_solution\.py"
)
# The path of a Python file, which may be inside packages.
NAME = re.compile(r"([A-Za-z_]\w{0,60}/){0,4}\w[\w.-]{0,100}\.py")
# A file of a flat export; Canvas writes NAME_USER_FILE_train-1.py.
FLAT = re.compile(r"^(.+?)_((?<=\d_)\d+_)?(model_solution|train|utils)(-\d+)?\.py$")
UNREAD = (".ipynb", ".gz", ".tgz", ".rar", ".7z")
NOTHING = f"no {SOLUTION} can be read from it"
LINK = "it is a link; links are not followed"
SKIPPED = {"__pycache__", ".git", ".venv", "node_modules", "__MACOSX", "tests", "solution"}


@dataclass(frozen=True)
class Submission:
    """The files that a student handed in.

    name: the name shown in results.
    path: the file, folder or archive that it was read from.
    files: name -> content of each Python file, including model_solution.py.
    fault: why it cannot be graded; "" if it can.
    """

    name: str
    path: Path
    files: dict[str, bytes]
    fault: str = ""

    @property
    def key(self) -> str:
        """The SHA-256 of names and contents: equal submissions get equal grades."""
        found = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            found.update(f"{name}\0{len(content)}\0".encode() + content)
        return found.hexdigest()

    def looks(self) -> tuple[str, ...]:
        """Return up to 20 lines that a teacher may want to read.

        They mention the grader, or use ways to inspect the program that runs the submission.
        """
        found = (
            f"{name}:{n}: {line.strip()[:160]}"
            for name, content in sorted(self.files.items())
            for n, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1)
            if LOOKS.search(line)
        )
        return tuple(islice(found, 20))


def find(paths: tuple[Path, ...]) -> list[Submission]:
    """Return the submissions in these paths, each once, sorted by name within a path.

    A path is a .py file, a .zip archive, a folder with model_solution.py, or a folder with any of
    these inside. If a direct subfolder of such a folder holds no submission, it is returned as a
    submission with a fault. If several paths are given, so is each path without a submission.

    Raises UserError for a path that does not exist, and for a single path without a submission.
    """
    found: dict[str, Submission] = {}
    for path in paths:
        if not path.exists():
            raise UserError(
                f"{path} does not exist",
                fix=USAGE,
            )
        here = list(_below(path, path, 0))
        if all(one.fault in (NOTHING, LINK) for one in here):
            if len(paths) == 1:
                raise UserError(
                    f"no submission in {path}",
                    why=f"no {SOLUTION} and no .zip archive with one is in it, or up to "
                    f"{DEEPEST} folders below",
                    fix=f"give the folder with {SOLUTION}",
                )
            here = [
                Submission(_name(path, path), path, {}, NOTHING)
            ]  # one student's fault must not stop the others
        found |= {os.path.abspath(one.path): one for one in here}  # does not resolve links
    names: Counter[str] = Counter()
    for key, one in found.items():
        names[one.name] += 1
        if (n := names[one.name]) > 1:
            found[key] = replace(one, name=f"{one.name} ({n})")
    return list(found.values())


def find_one(paths: tuple[Path, ...]) -> Submission:
    """Return the only submission in these paths.

    If there is none, or more than one, return a submission with a fault that tells the student so.

    Raises UserError if the first path does not exist.
    """
    try:
        found = find(paths)
    except UserError:
        if not paths[0].exists():
            raise
        found = []
    found = [one for one in found if not one.fault] or found
    if len(found) == 1:
        return found[0]
    fault = (
        f"there is no {SOLUTION} in what was handed in; hand it in together with utils.py and "
        "train.py"
    )
    if found:
        names = ", ".join(one.name for one in found[:4])
        fault = (
            f"there is more than one submission in what was handed in ({names}); hand in one "
            f"{SOLUTION}"
        )
    return Submission(paths[0].resolve().name, paths[0], {}, fault)


def _below(path: Path, root: Path, depth: int) -> Iterator[Submission]:
    """Yield the submissions in a path.

    A folder directly below `root` that holds no submission yields a submission with a fault, and
    so does an archive or a notebook there that is not read.
    """
    name = _name(path, root)
    if (path.is_file() and path.suffix in (".py", ".zip")) or (path / SOLUTION).is_file():
        yield read_submission(path, name.removesuffix(".zip"))
    elif path.is_dir() and depth < DEEPEST:
        # In a folder of submissions, only archives and Python files count.
        try:
            entries = sorted(
                p for p in path.iterdir() if p.name not in SKIPPED and not p.name.startswith(".")
            )
        except OSError as error:
            raise errors.unreadable(path, error) from None
        for entry in entries:
            inside = (
                []
                if entry.is_symlink()
                or entry.name in SOURCES
                or _of_student(entry)[SOLUTION] != entry
                else list(_below(entry, root, depth + 1))
            )
            if not inside and depth == 0 and (entry.is_dir() or entry.suffix in UNREAD):
                inside = [
                    Submission(entry.name, entry, {}, LINK if entry.is_symlink() else NOTHING)
                ]
            yield from inside


def _of_student(path: Path) -> dict[str, Path]:
    """Return the files, by the assignment's names, of the student who handed in this one.

    In a flat folder they are next to it. Without a model_solution.py there, it counts as that.
    """
    who = FLAT.sub(r"\1", path.name)
    found = {
        FLAT.sub(r"\3.py", one.name): one
        for one in path.parent.glob(f"{glob.escape(who)}_*.py")
        if FLAT.sub(r"\1", one.name) == who and not one.is_symlink()
    }
    return found if SOLUTION in found else {SOLUTION: path}


def _name(path: Path, root: Path) -> str:
    return path.resolve().name if path == root else path.relative_to(root).as_posix()


def read_submission(path: Path, name: str) -> Submission:
    """Read a submission from a folder, a .zip archive, or a single file with any name.

    A folder is read with its packages. In an archive, model_solution.py may be in any folder; if
    there are several, the one with the shortest path is used. utils.py and train.py next to
    model_solution.py belong to the submission. Links are not followed, because they may lead to
    the teacher's files. Archives are not unpacked to disk.
    """
    if path.name == SOLUTION:
        path, name = path.parent, path.parent.resolve().name
    try:
        if path.is_dir():
            return Submission(name, path, _contents(dict(_files(path, path))))
        if path.suffix != ".zip":
            return Submission(name, path, _contents(_of_student(path)))
        with zipfile.ZipFile(path) as archive:
            links = {
                one.filename for one in archive.infolist() if stat.S_ISLNK(one.external_attr >> 16)
            }
            names = [n for n in archive.namelist() if n not in links]
            homes = [n.removesuffix(SOLUTION) for n in names if n.rpartition("/")[2] == SOLUTION]
            if not homes and links:
                raise ValueError(f"{min(links)} in it is a link; links are not followed")
            if not homes and (inner := [n for n in names if n.endswith(".zip")]):
                raise ValueError(
                    f"there is an archive in the archive, {inner[0]}: unpack it first"
                )
            home = min(homes, key=len, default="")
            below = {
                n.removeprefix(home): zipfile.Path(archive, n) for n in names if n.startswith(home)
            }
            return Submission(
                name,
                path,
                _contents({n: p for n, p in below.items() if not SKIPPED & {*n.split("/")}}),
            )
    except (
        Exception
    ) as error:  # zlib.error, LZMAError, EOFError and others: grade the rest of the class
        damaged = path.suffix == ".zip" and not isinstance(error, ValueError)
        fault = f"the archive cannot be read: {error}" if damaged else str(error)
        return Submission(name, path, {}, fault)


def _contents(inside: Mapping[str, Path | zipfile.Path]) -> dict[str, bytes]:
    """Read the Python files among these, up to MOST, starting with the assignment's.

    Raises ValueError if model_solution.py is missing, a file is too large, or one of the
    assignment's files is UTF-16.
    """
    if SOLUTION not in inside:
        raise ValueError(f"no {SOLUTION} in it is a regular file; links are not followed")
    python = sorted(
        filter(NAME.fullmatch, inside),
        key=lambda name: (name not in SOURCES, name.count("/"), name),
    )
    found = {name: _content(inside[name]) for name in python[:MOST]}
    if wide := [
        n
        for n in SOURCES
        if found.get(n, b"").startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    ]:
        raise ValueError(f"{wide[0]} is UTF-16, which Python does not read: save it as UTF-8")
    return found


def _files(folder: Path, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path below the root, path) for a folder's files and for Python files in packages."""
    for path in folder.iterdir():
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            continue
        if (
            path.is_dir()
            and name.count("/") < DEEPEST
            and path.name.isidentifier()
            and path.name not in SKIPPED
        ):
            yield from _files(path, root)
        elif path.is_file() and (folder == root or path.suffix == ".py"):
            yield name, path


def _content(file: Path | zipfile.Path) -> bytes:
    with file.open("rb") as opened:
        content: bytes = opened.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{file.name} has more than {LARGEST:,} bytes")
    return content
