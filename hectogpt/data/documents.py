"""The documents of a text file, and the split of each.

Text is kept byte for byte: nothing is replaced, and line ends and byte order marks stay. Parts
that are left out appear as messages in the same stream. Raises UserError (DATA), with the offset
or the line, for anything that cannot be read without loss.

A document goes to train, dev or test by the hash of its content, so adding or reordering documents
does not move the others. A source of few documents is cut into passages first, so that even a
single book has a dev and a test split.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hectogpt import errors
from hectogpt.data.token_files import SPLITS, read_unchecked
from hectogpt.data.tokenizer import load_tokenizer
from hectogpt.errors import UserError, set_to
from hectogpt.files import open_regular


class NoTextError(UserError):
    """The error for a file that is not text in any encoding."""


class Document(NamedTuple):
    """One document of a source.

    Attributes:
        label: where it comes from, for messages.
        text: its text.
        split: train, dev or test if that is decided already, else "".
    """

    label: str
    text: str
    split: str = ""


def left_out(label: str, why: str) -> str:
    """The message for a part of a source that does not become a document."""
    return f"left out {label}: {why}"


@dataclass(frozen=True)
class Source:
    """A source of documents.

    Attributes:
        name: as the user wrote it.
        identity: distinguishes it from other sources in the cache.
        size: in bytes, for the progress bar; None if unknown.
        fingerprint: changes when the content does; "" for data from the hub, which is read once.
        read: yields the documents, and messages about what is left out. Raises UserError (DATA)
            for a part that cannot be read without loss.
    """

    name: str
    identity: str
    size: int | None
    fingerprint: str
    read: Callable[[], Iterator[Document | str]]

    def documents(self) -> Iterator[Document]:
        """Yield only the documents."""
        return (item for item in self.read() if isinstance(item, Document))


def cannot_use(name: str, why: str, fix: str) -> UserError:
    """The error for a corpus, a file or a line that cannot be used."""
    shown = name if len(name) <= 200 else f"{name[:200]}..."
    return UserError(f"cannot use {shown} as a corpus", why=why, fix=fix, code=errors.DATA)


def read_documents(path: Path, column: str = "text") -> Iterator[Document | str]:
    """Yield the documents of a file: several for .jsonl and .bin, otherwise one.

    Each line of a .jsonl is a document, in the field `column`; a .bin holds token ids.
    """
    ending = path.suffix.lower()
    if ending == ".jsonl":
        documents = _read_jsonl(path, column)
    else:
        documents = (
            _read_ids(path) if ending == ".bin" else iter([Document(str(path), read_text(path))])
        )
    for document in documents:
        yield (
            document
            if document.text.strip()
            else left_out(document.label, "empty or whitespace only")
        )


def _named(path: Path) -> Path:
    """The file that a path leads to.

    The user may name a text by a link; links inside a folder have been left out before.
    """
    return Path(os.path.realpath(path))


def _read_ids(path: Path) -> Iterator[Document]:
    """Yield the texts of GPT-2's token ids (uint16), in which end-of-text separates documents.

    Raises UserError (DATA).
    """
    tokenizer = load_tokenizer()
    ids = read_unchecked(_named(path), tokenizer)
    end = tokenizer.end_of_text
    for number, part in enumerate(np.split(ids, np.flatnonzero(ids == end) + 1)):
        label = f"{path} document {number}"
        try:
            yield Document(
                label, tokenizer.decode_bytes(part[part != end].tolist()).decode("utf-8")
            )
        except UnicodeDecodeError as error:
            why = f"its ids are not UTF-8 text: {error.reason}"
            fix = "cut the file only between documents"
            raise cannot_use(label, why, fix) from None


def _read_jsonl(path: Path, column: str) -> Iterator[Document]:
    """Yield the documents of a .jsonl file.

    Raises UserError (DATA) that names the line if it is not a JSON object, lacks the field, or
    holds a lone surrogate.
    """
    try:
        with open_regular(_named(path)) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    label = f"{path} line {number}"
                    yield Document(label, _text_of_record(line, label, path, column))
    except OSError as error:
        raise errors.unreadable(path, error) from None


def _text_of_record(line: bytes, label: str, path: Path, column: str) -> str:
    try:
        # Numbers are not needed, and int() refuses very long ones.
        record: Any = json.loads(line.decode("utf-8-sig"), parse_int=len)
        strings = (
            {k: v for k, v in record.items() if isinstance(v, str)}
            if isinstance(record, dict)
            else {}
        )
        strings.get(column, "").encode()  # half of a surrogate pair has no UTF-8 form
    except (ValueError, RecursionError) as error:
        raise cannot_use(
            label, f"not a JSON record in UTF-8: {error}", "write one JSON object a line"
        ) from None
    if column not in strings:
        why = (
            f'no field "{column}" with a string; fields with a string: '
            f"{', '.join(strings) or 'none'}"
        )
        fix = (
            set_to("corpus", f"{path}:{next(iter(strings))}")
            if strings
            else f'add a field "{column}" with the text'
        )
        raise cannot_use(label, why, fix)
    return strings[column]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises NoTextError if it is binary, and UserError (DATA) with offset and line instead of
    replacing a byte.
    """
    try:
        with open_regular(_named(path)) as file:
            raw = file.read()
    except OSError as error:
        raise errors.unreadable(path, error) from None
    if b"\0" in raw and not raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        why = f"it is binary: NUL byte at offset {raw.index(0):,}"
        raise NoTextError(
            f"{path} holds no text", why=why, fix="name a text file", code=errors.DATA
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8 text",
            why=f"byte 0x{raw[error.start]:02x} at offset {error.start:,} (line {line:,}): "
            f"{error.reason}",
            fix="save it as UTF-8, with an editor or with iconv",
            code=errors.DATA,
        ) from None


# --- the split of each document

TRAIN_SHARE = 0.85
# Upper bounds of a document's number in [0, 1) for train and dev; the rest is test.
DEV_SHARE = 0.925
MANY_DOCUMENTS = 1000  # this many documents always fill every split
# Documents are cut into passages if a split would get less than this share of the text.
LEAST_SHARE = 0.02
PASSAGES = 128
SHORTEST = 64
LONGEST = 8192  # number of passages, and their shortest and longest length in characters
SPLIT_RULE = (
    "u = first 8 bytes of the document's SHA-256 / 2**64; train u < 0.85, dev u < 0.925, else test"
)


def split_of(text: str) -> str:
    """The split of a document: train, dev or test, by a number in [0, 1).

    The number is the first 8 bytes, big-endian, of the SHA-256 of the UTF-8 text, divided by
    2**64.
    """
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64
    return "train" if number < TRAIN_SHARE else "dev" if number < DEV_SHARE else "test"


def assign_splits(documents: list[Document], name: str, noted: list[str]) -> list[Document]:
    """Assign a split to each document, or to passages if documents leave a split (nearly) empty.

    Args:
        documents: the documents.
        name: the source's name, for labels.
        noted: gets a message if the text repeats itself, so that equal passages are in several
            splits.

    Raises UserError (DATA) if the text is too short to be split.
    """
    whole = [document._replace(split=split_of(document.text)) for document in documents]
    if fills_every_split(whole):
        return whole
    total = sum(len(document.text) for document in documents)
    # If the hashes of the passages leave a split empty, hash them again with their numbers before
    # them.
    for draw in range(4 if total >= PASSAGES * SHORTEST else 1):
        length = min(max(total // PASSAGES, SHORTEST), LONGEST)
        parts = list[Document]()
        while length >= SHORTEST and len(parts) < MANY_DOCUMENTS:
            texts = [
                text for document in documents for text in cut_passages(document.text, length)
            ]
            parts = [
                Document(f"{name} {n}", text, split_of(f"{n} " * draw + text))
                for n, text in enumerate(texts)
            ]
            if fills_every_split(parts):
                if draw and len(set(texts)) < len(texts):
                    noted.append(
                        "the text repeats itself: equal passages are in more than one split"
                    )
                return parts
            length //= 2
    raise UserError(
        f"{name} is too short to be split: {total:,} characters in {len(documents)} documents",
        why=f"train, dev and test need text each, in passages of at least {SHORTEST} characters",
        fix=f"at least {PASSAGES * SHORTEST:,} characters",
        code=errors.DATA,
    )


def fills_every_split(documents: Iterable[Document]) -> bool:
    """True if train, dev and test each have at least LEAST_SHARE of the text."""
    sizes = dict.fromkeys(SPLITS, 0)
    for document in documents:
        sizes[document.split] += len(document.text)
    return min(sizes.values()) >= LEAST_SHARE * sum(sizes.values())


_BREAKS = [
    re.compile(p) for p in (r"\n[^\S\n]*\n\s*|\r[^\S\r\n]*\r\s*", r"\n|\r(?!\n)", r"\s(?=\S)")
]


def cut_passages(text: str, length: int) -> Iterator[str]:
    """Yield consecutive parts of `length` to 2 * length characters; the last may be shorter.

    A part ends after a blank line if there is one, otherwise after a line, otherwise after a
    space.
    """
    start = 0
    while len(text) - start > 2 * length:
        lo = start + length
        hi = start + 2 * length
        breaks = (pattern.search(text, lo, hi) for pattern in _BREAKS)
        stop = next((match.end() for match in breaks if match), hi)
        yield text[start:stop]
        start = stop
    yield text[start:]
