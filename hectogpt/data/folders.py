"""The text files below a folder as one source. What was found out about each file is remembered, so that an unchanged
folder of 100,000 files is recognised without reading them."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from hectogpt.data.documents import Document, LeftOut, read_documents
from hectogpt.data.sources import HASHED_BYTES, Source, SourceOptions
from hectogpt.data.text import cannot_read, cannot_use, decode, describe_binary
from hectogpt.errors import UserError
from hectogpt.files import write_atomic
from hectogpt.json_files import open_regular

# A file that was changed less than this before it was read may change again within one tick of its file system's
# clock, and would then look the same. FAT's clock has the longest tick, two seconds.
SETTLED_NS = 2_000_000_000
WORTH_FILES, WORTH_BYTES = 1000, 16 << 20  # folders with fewer and smaller files are read anew each time
SEEN_FORMAT = "hectogpt seen files 1"


@dataclass(frozen=True)
class FolderSource(Source):
    """The text files below a folder. labels: their relative paths, sorted by bytes. left_out: the other files."""

    folder: Path
    labels: tuple[str, ...]
    codec: str
    left_out: tuple[LeftOut, ...]

    def documents(self) -> Iterator[Document | LeftOut]:
        yield from self.left_out
        for label in self.labels:
            yield from read_documents(self.folder / label, self.codec, binary=False)


class Place(NamedTuple):
    """A file below the folder: its relative path, and the state by which a change of it shows. state: size, time of
    the last change of content and of anything, inode; None if it is not a file or may not be looked at."""

    label: str
    state: tuple[int, int, int, int] | None
    why: str = ""


class Walk(NamedTuple):
    """What is below a folder. files: label, state and why (of Place) of all that are not hidden, sorted by the bytes of
    their paths. outside: what is left out unlooked at. failed: what cannot be read."""

    files: list[tuple[str, tuple[int, int, int, int] | None, str]]
    outside: list[LeftOut]
    failed: list[LeftOut]

    def digest(self) -> str:
        """A hash of the walk. As long as it is the same, so is what the files hold."""
        return hashlib.sha256(repr(tuple(self)).encode()).hexdigest()


class Finding(NamedTuple):
    """What reading a file told. why_no_text: "" if it is text. sha256: of its bytes, "" if it was not computed."""

    why_no_text: str
    sha256: str


def open_folder(name: str, folder: Path, options: SourceOptions, seen_at: Path | None = None) -> FolderSource:
    """The text files below a folder. Hidden files are ignored; empty and binary ones are left out, and links to what
    lies outside the folder.

    seen_at: a file of the cache that remembers what was found out about each file; None reads them all.

    Raises UserError (DATA) naming all files that cannot be read or decoded, unless `options.skip_unreadable`.
    """
    codec = options.codec
    walk = _walk(folder)
    seen, digest = SeenFiles(seen_at, f"{os.fspath(folder.resolve())}\0{codec}"), walk.digest()
    if (known := seen.recall(digest)) is not None:
        left_out = [LeftOut(*item) for item in known["left_out"]]
        not_text = {item.label for item in left_out}
        labels = tuple(label for label, _, _ in walk.files if label not in not_text)
        return _folder_source(name, folder, labels, codec, left_out, known["size"], known["fingerprint"])
    places, left_out, unreadable = [Place(*file) for file in walk.files], walk.outside, walk.failed
    texts: list[Place] = []
    for place in places:
        if place.why:
            left_out.append(LeftOut(place.label, place.why))
            continue
        try:
            if why := seen.find(folder, place, codec).why_no_text:
                left_out.append(LeftOut(place.label, why))
            else:
                texts.append(place)
        except OSError as error:
            unreadable.append(LeftOut(place.label, error.strerror or str(error)))
        except UserError as error:
            unreadable.append(LeftOut(place.label, error.why))
    if unreadable and not options.skip_unreadable:
        shown = "; ".join(f"{label}: {why}" for label, why in unreadable[:8])
        shown += f"; and {len(unreadable) - 8} more" if len(unreadable) > 8 else ""
        raise cannot_use(
            name,
            f"{len(unreadable)} of {len(places)} files: {shown}",
            "set encoding to latin-1, or set force to True to leave them out",
        )
    if not texts:
        why = "; ".join(f"{label}: {why}" for label, why in left_out[:8]) or "the folder is empty"
        raise cannot_use(name, f"it holds no text file ({why})", "name a folder with text files")
    size, fingerprint = _measure(name, folder, texts, codec, seen)
    summary = {"digest": digest, "left_out": left_out, "size": size, "fingerprint": fingerprint}
    seen.save(None if unreadable else summary)
    labels = tuple(place.label for place in texts)
    return _folder_source(name, folder, labels, codec, left_out + unreadable, size, fingerprint)


def _folder_source(
    name: str,
    folder: Path,
    labels: tuple[str, ...],
    codec: str,
    left_out: list[LeftOut],
    size: int,
    fingerprint: str,
) -> FolderSource:
    return FolderSource(
        name=name,
        identity=str(folder.resolve()),
        size=size,
        fingerprint=fingerprint,
        folder=folder,
        labels=labels,
        codec=codec,
        left_out=tuple(left_out),
    )


def _walk(folder: Path) -> Walk:
    """Look at the folder: one call of the system for each file, and little more, as there may be 100,000.

    Links to folders are not followed, so that loops end. Links to files outside the folder are not followed either: who
    trains on a folder from elsewhere and publishes the model must not publish a file of their own.
    """
    inside = os.path.join(os.path.realpath(folder), "")
    walk = Walk([], [], [])
    waiting = [""]
    while waiting:
        below = waiting.pop()
        start = f"{below}/" if below else ""
        try:
            with os.scandir(os.path.join(folder, below)) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    label = start + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(label)
                    elif entry.is_symlink() and (why := _why_not_followed(entry.path, inside)):
                        walk.outside.append(LeftOut(label, why))
                    else:
                        walk.files.append((label, *_look(entry)))
        except OSError as error:
            walk.failed.append(LeftOut(str(error.filename), error.strerror or str(error)))
    # ASCII sorts as its bytes do; other text does not where a name has bytes that are not UTF-8.
    in_ascii = all(map(str.isascii, map(itemgetter(0), walk.files)))
    walk.files.sort(key=None if in_ascii else lambda file: os.fsencode(file[0]))
    walk.outside.sort()
    walk.failed.sort()
    return walk


def _why_not_followed(link: str, inside: str) -> str:
    """Why a symbolic link is left out; "" for one to a file inside the folder, and for a broken one."""
    target = os.path.realpath(link)
    if os.path.isdir(target):
        return "a link to a folder"
    return "" if target.startswith(inside) or not os.path.lexists(target) else "a link to a file outside the folder"


def _look(entry: os.DirEntry[str]) -> tuple[tuple[int, int, int, int] | None, str]:
    """State and why of an entry's Place."""
    try:
        status = entry.stat()
    except OSError as error:
        gone = isinstance(error, FileNotFoundError) or entry.is_symlink()
        return None, "not a file (a broken link?)" if gone else error.strerror or str(error)
    if not stat.S_ISREG(status.st_mode):
        return None, "not a file (a broken link?)"
    if status.st_size == 0:
        return None, "empty"
    if entry.name.lower().endswith(".bin"):
        return None, "a token file; name it by itself"
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino), ""


def _state(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _measure(name: str, folder: Path, texts: list[Place], codec: str, seen: SeenFiles) -> tuple[int, str]:
    """Bytes of the text files, and a hash of their paths, contents and of how they are read. Above HASHED_BYTES sizes
    and times stand for the contents."""
    size = sum(place.state[0] for place in texts if place.state)
    digest = hashlib.sha256(f"{codec} False".encode())
    for place in texts:
        assert place.state is not None
        if size <= HASHED_BYTES:
            try:
                found = seen.find(folder, place, codec, hashed=True).sha256
            except OSError as error:
                raise cannot_read(name, error) from None
        else:
            found = " ".join(map(str, place.state))
        digest.update(f"{place.label}\0{found}\n".encode("utf-8", "surrogateescape"))
    return size, digest.hexdigest()


class SeenFiles:
    """What was found out about the files of a folder, by path and state, and about the folder as a whole.

    Kept in a file of the cache. Its first line has the SHA-256 of the rest, and the summary of the folder with its own;
    a damaged file counts as absent. A file whose last change was less than two seconds before it was read is not
    remembered, nor is a summary then: it may have changed since without a change of its times.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key
        self._summary: dict[str, Any] | None = None
        self._content = b""  # what was found out, not parsed yet
        self._found: dict[str, tuple[tuple[int, ...], Finding]] = {}
        self._used: dict[str, tuple[tuple[int, ...], Finding]] = {}
        self._news = self._bytes = self._unsettled = 0
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            self._read()

    def recall(self, digest: str) -> dict[str, Any] | None:
        """The summary of the folder if a walk of it has this digest: left_out, size, fingerprint."""
        return self._summary if self._summary is not None and self._summary["digest"] == digest else None

    def find(self, folder: Path, place: Place, codec: str, hashed: bool = False) -> Finding:
        """What is in a file: from memory, or by reading it. hashed: its hash is needed.

        Raises OSError, and UserError if it cannot be decoded.
        """
        assert place.state is not None
        if self._content:
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                self._parse()
            self._content = b""
        known = self._used.get(place.label) or self._found.get(place.label)
        if known is not None and known[0] == place.state and (known[1].sha256 or not hashed):
            self._used[place.label] = known
            return known[1]
        began = time.time_ns()
        finding, state = _read_file(folder / place.label, codec, hashed)
        changed = max(state[1], state[2])
        if state == place.state and changed + SETTLED_NS < began:
            self._used[place.label] = (state, finding)
            self._news, self._bytes = self._news + 1, self._bytes + state[0]
        else:
            self._unsettled += 1
        return finding

    def _read(self) -> None:
        if self._path is None:
            return
        with open_regular(self._path) as file:
            first, content = file.readline().decode().strip(), file.read()
        seal, _, rest = first.partition(" ")
        if hashlib.sha256(content).hexdigest() != seal:
            return
        self._content = content
        summary_seal, _, summary = rest.partition(" ")
        if (
            hashlib.sha256(f"{seal} {self._key} {summary}".encode("utf-8", "surrogateescape")).hexdigest()
            == summary_seal
        ):
            self._summary = json.loads(summary)

    def _parse(self) -> None:
        saved = json.loads(self._content)
        if saved["format"] != SEEN_FORMAT or saved["key"] != self._key:
            return
        columns = (saved[name] for name in ("labels", "sizes", "mtimes", "ctimes", "inodes", "whys", "sha256"))
        self._found = {
            label: ((size, mtime, ctime, inode), Finding(why, sha256))
            for label, size, mtime, ctime, inode, why, sha256 in zip(*columns, strict=True)
        }

    def save(self, summary: dict[str, Any] | None) -> None:
        """Keep what was found out, if that was work. A cache that cannot be written is no reason to stop."""
        without = self._summary is None and len(self._found) >= WORTH_FILES  # written by an older version
        if self._path is None or not (self._news >= WORTH_FILES or self._bytes >= WORTH_BYTES or without):
            return
        states = [state for state, _ in self._used.values()]
        findings = [finding for _, finding in self._used.values()]
        saved: dict[str, Any] = {"format": SEEN_FORMAT, "key": self._key, "labels": list(self._used)}
        saved |= {name: [s[i] for s in states] for i, name in enumerate(("sizes", "mtimes", "ctimes", "inodes"))}
        saved |= {"whys": [f.why_no_text for f in findings], "sha256": [f.sha256 for f in findings]}
        content = json.dumps(saved, allow_nan=False).encode()
        seal, first = hashlib.sha256(content).hexdigest(), ""
        if summary is not None and not self._unsettled:
            told = json.dumps(summary, allow_nan=False)
            key = f"{seal} {self._key} {told}".encode("utf-8", "surrogateescape")
            first = f" {hashlib.sha256(key).hexdigest()} {told}"
        with suppress(OSError, UserError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, f"{seal}{first}\n".encode() + content)


def _read_file(path: Path, codec: str, hashed: bool) -> tuple[Finding, tuple[int, int, int, int]]:
    """What is in a file, and its state before it was read. Raises OSError, UserError if it cannot be decoded."""
    with open_regular(path) as file:
        state = _state(os.fstat(file.fileno()))
        lines = path.suffix.lower() in (".jsonl", ".parquet")  # read piece by piece when it is used
        if lines and not hashed:
            return Finding("", ""), state
        raw = file.read()
        if _state(os.fstat(file.fileno()))[:3] != state[:3]:
            state = (-1, *state[1:])  # it changed while it was read: not to be remembered
    if lines:
        return Finding("", hashlib.sha256(raw).hexdigest()), state
    if why := describe_binary(raw, codec):
        return Finding(f"binary, {why}", ""), state
    decode(raw, str(path), codec, binary=False)
    if not raw.strip():
        return Finding("whitespace only", ""), state
    return Finding("", hashlib.sha256(raw).hexdigest() if hashed or len(raw) <= HASHED_BYTES else ""), state
