"""Sources of documents: files, a data set of the Hugging Face hub, and token files used as they are. Folders are in
folders.py.

Each kind of source is a frozen class. `documents()` yields its documents in a fixed order, with their bytes kept, and
a `LeftOut` for what it leaves out.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hectogpt.data.documents import Document, LeftOut, column_of_text, read_documents
from hectogpt.data.hub import check_hub_answers
from hectogpt.data.text import cannot_read, cannot_use
from hectogpt.errors import UserError

# Codecs of Python that read a notation, not an encoding of text: half of what they give is not what a file says.
NOT_OF_TEXT = {"unicode_escape", "raw_unicode_escape", "undefined", "punycode", "idna", "utf-7"}
NOT_OF_TEXT |= {name.replace("_", "-") for name in NOT_OF_TEXT}
HASHED_BYTES = 64 << 20  # sources up to this size are recognised by their content, larger ones by size and times


@dataclass(frozen=True)
class SourceOptions:
    """How text files are read.

    encoding: one of Python's text encodings. binary: accept a single file that looks binary, or like a table, as plain
    text. skip_unreadable: leave files of a folder out that cannot be read or decoded, instead of raising an error. The
    binary files of a folder are always left out.
    """

    encoding: str = "utf-8"
    binary: bool = False
    skip_unreadable: bool = False

    @property
    def codec(self) -> str:
        """Python's own name of the encoding. Raises UserError (USAGE) if there is no such text encoding."""
        name = ""
        with contextlib.suppress(LookupError, ValueError):  # ValueError: a name with a NUL
            with contextlib.suppress(UnicodeDecodeError):
                b"  ".decode(self.encoding)  # hex and its like are codecs, but not of text
            name = codecs.lookup(self.encoding).name
        if not name or name in NOT_OF_TEXT:
            close = difflib.get_close_matches(self.encoding[:60], ["utf-8", "utf-16", "latin-1", "cp1252"], 1)
            raise UserError(
                f"unknown text encoding {self.encoding[:60]!r}",
                why="it must be one of Python's, of plain text",
                fix=f"set encoding to {(close or ['latin-1'])[0]}",
            )
        return name

    @property
    def key(self) -> str:
        """What tells these options from others in the cache."""
        if self.binary == self.skip_unreadable:
            force = str(self.binary)  # as in caches from before `force` became two options
        else:
            force = "binary" if self.binary else "skip_unreadable"
        return f"{self.encoding}\0{force}"


@dataclass(frozen=True)
class Source(ABC):
    """A source of documents.

    name: as the user wrote it. identity: what tells it from other sources in the cache. size: bytes, for the progress
    bar, None if unknown. fingerprint: changes when the content does; "" for hub data, which is read once.
    """

    name: str
    identity: str
    size: int | None
    fingerprint: str

    @abstractmethod
    def documents(self) -> Iterator[Document | LeftOut]:
        """Read the source from its start. Raises UserError (DATA) for a part that cannot be read without loss."""


@dataclass(frozen=True)
class FileSource(Source):
    """Local files in a given order; each is one document or, by its ending, several (`read_documents`).

    column: the field of .jsonl records that holds the text, "" to find it.
    """

    paths: tuple[Path, ...]
    codec: str
    binary: bool
    column: str = ""

    def documents(self) -> Iterator[Document | LeftOut]:
        for path in self.paths:
            yield from read_documents(path, self.codec, self.binary, self.column)


@dataclass(frozen=True)
class HubSource(Source):
    """A split of a text data set of the Hugging Face hub, read as a stream: neither memory nor disk hold the whole.

    column: the one that holds the text, "" to find it. A part of a split, as in train[:1%], is downloaded first.
    """

    dataset: str
    column: str
    split: str

    def documents(self) -> Iterator[Document | LeftOut]:
        rows, column = self._load()
        for number, row in enumerate(rows.select_columns([column])):
            text = row[column]
            if isinstance(text, str) and text.strip():
                yield Document(f"{self.name} row {number}", text)
            else:
                yield LeftOut(f"row {number}", "empty")

    def _load(self) -> tuple[Any, str]:
        """The data set's rows and the column that holds its text."""
        try:
            check_hub_answers("datasets", self.dataset)  # before the import, which takes a second
            import datasets

            rows = datasets.load_dataset(self.dataset, split=self.split, streaming="[" not in self.split)
            if rows.features is None:  # of a stream, whose first rows tell
                rows = rows._resolve_features()
        except ImportError:
            raise UserError(
                f"corpus {self.name} needs the package datasets",
                why="it is an optional dependency",
                fix='pip install "hectogpt[hf]"',
            ) from None
        except (OSError, ValueError, RuntimeError) as error:  # offline, unknown name, no such split: all from the hub
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise cannot_use(
                self.name,
                f"the Hugging Face hub did not give {self.dataset} ({self.split}): {first[:200]}",
                'where there is a network, run  python -c "import datasets; '
                f"datasets.load_dataset('{self.dataset}', split='{self.split}').to_json('corpus.jsonl')\"  "
                "then copy corpus.jsonl here and set corpus to corpus.jsonl",
            ) from None
        dtypes = {name: getattr(feature, "dtype", "") for name, feature in rows.features.items()}
        strings = [name for name, dtype in dtypes.items() if dtype in ("string", "large_string")]
        column = column_of_text(strings, self.column)
        if column not in strings:
            why = f"its text columns are {', '.join(strings) or 'none'}"
            raise cannot_use(self.name, why, f"set corpus to hf:{self.dataset}:COLUMN")
        return rows, column


@dataclass(frozen=True)
class TokenFiles:
    """train.bin, dev.bin and test.bin in one folder, used as they are: nothing is split or encoded.

    paths: split -> file.
    """

    name: str
    paths: dict[str, Path]


def open_files(
    name: str, identity: str, files: Sequence[tuple[str, Path]], codec: str, binary: bool, column: str = ""
) -> FileSource:
    """The source of these (label, path), in this order. Raises UserError (DATA) for a file that cannot be read."""
    size, fingerprint = _measure(name, files, f"{codec} {binary}")
    return FileSource(name, identity, size, fingerprint, tuple(path for _, path in files), codec, binary, column)


def _measure(name: str, files: Sequence[tuple[str, Path]], reading: str) -> tuple[int, str]:
    """Bytes of these (label, path) and a hash of labels, contents and of how they are read."""
    try:
        stats = [path.stat() for _, path in files]
        size = sum(stat.st_size for stat in stats)
        digest = hashlib.sha256(reading.encode())
        for (label, path), stat in zip(files, stats, strict=True):
            if size <= HASHED_BYTES:
                state = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                state = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
            digest.update(f"{label}\0{state}\n".encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise cannot_read(name, error) from None
    return size, digest.hexdigest()
