"""The documents of a file of text, and the split of each.

Text is kept byte for byte: nothing is replaced, and line ends and byte order marks stay. What is
left out comes as a message in the same stream. Raises UserError (DATA) for what cannot be read
without loss, with the offset or the line.

A document goes to train, dev or test by the hash of its content, so adding or reordering documents
changes nothing. A source of few documents is cut into passages first, so that a single book has a
dev and a test split too."""

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
    """The error for a file that holds no text in any encoding."""


class Document(NamedTuple):
    """One document of a source.

    label: where it comes from, for messages. split: train, dev or test if that is settled already,
    else ""."""

    label: str
    text: str
    split: str = ""


def left_out(label: str, why: str) -> str:
    """What a source gives in place of a part that does not become a document."""
    return f"left out {label}: {why}"


@dataclass(frozen=True)
class Source:
    """A source of documents.

    name: as the user wrote it. identity: what tells it from other sources in the cache. size:
    bytes, for the progress bar, None if unknown. fingerprint: changes when the content does; ""
    for hub data, which is read once. read: the documents from the start, and messages about what
    is left out; it raises UserError (DATA) for a part that cannot be read without loss."""

    name: str
    identity: str
    size: int | None
    fingerprint: str
    read: Callable[[], Iterator[Document | str]]

    def documents(self) -> Iterator[Document]:
        """The documents alone."""
        return (item for item in self.read() if isinstance(item, Document))


def cannot_use(name: str, why: str, fix: str) -> UserError:
    """The error for a corpus, a file or a line that cannot be used."""
    shown = name if len(name) <= 200 else f"{name[:200]}..."
    return UserError(f"cannot use {shown} as a corpus", why=why, fix=fix, code=errors.DATA)


def read_documents(path: Path, column: str = "text") -> Iterator[Document | str]:
    """The documents of a file: .jsonl has one on each line, in the field `column`; .bin has ids;
    others are one.
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
    """The file that a path leads to: a user may name a text by a link. Links inside a folder are
    left out before.
    """
    return Path(os.path.realpath(path))


def _read_ids(path: Path) -> Iterator[Document]:
    """The text of GPT-2's token ids, uint16, in which end-of-text separates documents. Raises
    UserError (DATA).
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
            why = f"its ids are no UTF-8 text: {error.reason}"
            fix = "end it, and begin it, at a document's end"
            raise cannot_use(label, why, fix) from None


def _read_jsonl(path: Path, column: str) -> Iterator[Document]:
    """Raises UserError (DATA) naming the line: no JSON object, no such field, a lone surrogate."""
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
        record: Any = json.loads(
            line.decode("utf-8-sig"), parse_int=len
        )  # numbers do not matter, however long
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
    """A whole file of UTF-8. Raises NoTextError for one that is binary, and UserError (DATA) with
    offset and line instead of replacing a byte."""
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
# ---

TRAIN_SHARE = 0.85
DEV_SHARE = 0.925  # upper bounds of a document's number in [0, 1): train, dev, test
MANY_DOCUMENTS = 1000  # so many documents fill every split without help
LEAST_SHARE = (
    0.02  # documents are cut into passages if dev or test would get less than this share of them
)
PASSAGES = 128
SHORTEST = 64
LONGEST = 8192  # passages to aim at, and their bounds in characters
SPLIT_RULE = (
    "u = first 8 bytes of the document's SHA-256 / 2**64; train u < 0.85, dev u < 0.925, else test"
)


def split_of(text: str) -> str:
    """The split that a document belongs to: train, dev or test, by a number in [0, 1): the first 8
    bytes, big-endian, of the SHA-256 of the UTF-8 text, divided by 2**64."""
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64
    return "train" if number < TRAIN_SHARE else "dev" if number < DEV_SHARE else "test"


def assign_splits(documents: list[Document], name: str, noted: list[str]) -> list[Document]:
    """The documents with a split each, or passages of them if whole ones leave a split (nearly)
    empty.

    name: the source's, for labels. noted: gets a message if the text repeats itself, so that equal
    passages are in several splits. Raises UserError (DATA) for text that is too short to be split.
    """
    whole = [document._replace(split=split_of(document.text)) for document in documents]
    if fills_every_split(whole):
        return whole
    total = sum(len(document.text) for document in documents)
    # Where the hashes of the passages leave a split empty, those with their numbers before them
    # may not.
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
    """Whether train, dev and test have LEAST_SHARE of the text each."""
    sizes = dict.fromkeys(SPLITS, 0)
    for document in documents:
        sizes[document.split] += len(document.text)
    return min(sizes.values()) >= LEAST_SHARE * sum(sizes.values())


_BREAKS = [
    re.compile(p) for p in (r"\n[^\S\n]*\n\s*|\r[^\S\r\n]*\r\s*", r"\n|\r(?!\n)", r"\s(?=\S)")
]


def cut_passages(text: str, length: int) -> Iterator[str]:
    """Consecutive parts that join to the text, of `length` to 2 * length characters; the last may
    be shorter. They end after a blank line if there is one, else after a line, else after a
    space."""
    start = 0
    while len(text) - start > 2 * length:
        lo = start + length
        hi = start + 2 * length
        breaks = (pattern.search(text, lo, hi) for pattern in _BREAKS)
        stop = next((match.end() for match in breaks if match), hi)
        yield text[start:stop]
        start = stop
    yield text[start:]
