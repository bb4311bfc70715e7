"""The text files below a folder as one source."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hectogpt.data.documents import Document, LeftOut, read_documents
from hectogpt.data.sources import HASHED_BYTES, Source, SourceOptions
from hectogpt.data.text import cannot_read, cannot_use, decode, describe_binary
from hectogpt.errors import UserError
from hectogpt.json_files import open_regular

BY_PIECES = (".jsonl", ".parquet")  # files of many documents, which are not read as a whole


@dataclass(frozen=True)
class FolderSource(Source):
    """The text files below a folder. files: their relative paths, sorted by bytes. left_out: what is no file of text by
    its name, size or kind. unreadable: leave out files that cannot be read or decoded, instead of raising an error."""

    folder: Path
    files: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    codec: str
    unreadable: bool

    def documents(self) -> Iterator[Document | LeftOut]:
        yield from self.left_out
        faults: list[LeftOut] = []
        for label in self.files:
            try:
                yield from self._read(label)
            except (OSError, UserError) as error:
                if label.lower().endswith(BY_PIECES):  # some of its documents have been given already
                    raise
                why = error.why if isinstance(error, UserError) else error.strerror or str(error)
                faults.append(LeftOut(label, why))
        if faults and not self.unreadable:
            raise cannot_use(
                self.name,
                f"{len(faults)} of {len(self.files)} files: {listed(faults)}",
                "set encoding to latin-1, or set force to True to leave them out",
            )
        yield from faults

    def _read(self, label: str) -> Iterator[Document | LeftOut]:
        """The documents of one file. Raises OSError, and UserError if it cannot be decoded."""
        path = self.folder / label
        if label.lower().endswith(BY_PIECES):
            yield from read_documents(path, self.codec, binary=False)
            return
        with open_regular(path) as file:
            raw = file.read()
        if why := describe_binary(raw, self.codec):
            yield LeftOut(label, f"binary, {why}")
            return
        text = decode(raw, str(path), self.codec, binary=False)
        yield Document(str(path), text) if text.strip() else LeftOut(label, "whitespace only")


def open_folder(name: str, folder: Path, options: SourceOptions) -> FolderSource:
    """The text files below a folder. Hidden files are ignored; empty and binary ones are left out, and links to what
    lies outside the folder. Raises UserError (DATA) for a folder without files of text."""
    files, left_out = _walk(folder)
    if not files:
        why = f"it holds no text file ({listed(left_out) or 'the folder is empty'})"
        raise cannot_use(name, why, "name a folder with text files")
    size, fingerprint = _measure(name, folder, files, options.codec)
    settled = (str(folder.resolve()), size, fingerprint, folder, tuple(files), tuple(left_out))
    return FolderSource(name, *settled, options.codec, options.skip_unreadable)


def listed(items: list[LeftOut]) -> str:
    """The first eight of these for a message."""
    more = f"; and {len(items) - 8} more" if len(items) > 8 else ""
    return "; ".join(f"{label}: {why}" for label, why in items[:8]) + more


def _walk(folder: Path) -> tuple[list[str], list[LeftOut]]:
    """The files below a folder by their relative paths, sorted by bytes, and what is left out.

    Links to folders are not followed, so that loops end. Links to files outside the folder are not followed either: who
    trains on a folder from elsewhere and publishes the model must not publish a file of their own.
    """
    inside = os.path.join(os.path.realpath(folder), "")
    files: list[str] = []
    left_out: list[LeftOut] = []

    def fail(error: OSError) -> None:
        raise cannot_read(str(folder), error)

    for path, folders, names in os.walk(folder, onerror=fail):
        below = os.path.relpath(path, folder)
        label = "" if below == "." else below + os.sep
        left_out += [
            LeftOut(label + inner, "a link to a folder")
            for inner in folders
            if inner[0] != "." and os.path.islink(os.path.join(path, inner))
        ]
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        for inner in names:
            if not inner.startswith("."):
                why = _why_left_out(os.path.join(path, inner), inside)
                if why:
                    left_out.append(LeftOut(label + inner, why))
                else:
                    files.append(label + inner)
    return sorted(files, key=os.fsencode), sorted(left_out, key=lambda item: os.fsencode(item.label))


def _why_left_out(path: str, inside: str) -> str:
    """Why a file is left out unread; "" for one that is not."""
    try:
        status = os.stat(path)
    except OSError:
        return "not a file (a broken link?)"
    if not stat.S_ISREG(status.st_mode):
        return "not a file (a broken link?)"
    if os.path.islink(path) and not os.path.realpath(path).startswith(inside):
        return "a link to a file outside the folder"
    if status.st_size == 0:
        return "empty"
    return "a token file; name it by itself" if path.lower().endswith(".bin") else ""


def _measure(name: str, folder: Path, files: list[str], codec: str) -> tuple[int, str]:
    """Bytes of the files, and a hash of their paths, contents and of how they are read. Above HASHED_BYTES sizes and
    times stand for the contents. A file that cannot be read counts by its times, too."""
    digest = hashlib.sha256(f"{codec} False".encode())
    try:
        states = [os.stat(folder / label) for label in files]
    except OSError as error:
        raise cannot_read(name, error) from None
    size = sum(state.st_size for state in states)
    for label, state in zip(files, states, strict=True):
        found = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
        if size <= HASHED_BYTES and os.access(folder / label, os.R_OK):
            found = hashlib.sha256((folder / label).read_bytes()).hexdigest()
        digest.update(f"{label}\0{found}\n".encode("utf-8", "surrogateescape"))
    return size, digest.hexdigest()
