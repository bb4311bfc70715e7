"""The documents of one file, plain text, JSON lines or token ids, and the split of each.

Text is kept byte for byte: nothing is replaced, and line ends and byte order marks stay. What is left out comes as a
message in the same stream. Raises UserError (DATA) for what cannot be read without loss, with the offset or the line.

A document goes to train, dev or test by the hash of its content, so adding or reordering documents changes nothing. A
source of few documents is cut into passages first, so that a single book has a dev and a test split too.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hectogpt import errors
from hectogpt.data.token_files import SPLITS, TOKEN, read_tokens, token_type
from hectogpt.data.tokenizer import Tokenizer, check_ids, load_tokenizer, lone_surrogate
from hectogpt.errors import UserError, set_to
from hectogpt.json_files import open_regular


class NoTextError(UserError):
    """The error for a file that is empty, or holds no text in any encoding."""


class Document(NamedTuple):
    """One document of a source.

    label: where it comes from, for messages. content: its text, or its token ids, uint16 [n], without the separator.
    split: train, dev or test if that is settled already, else "".
    """

    label: str
    content: str | np.ndarray
    split: str = ""


def left_out(label: str, why: str) -> str:
    """What a source gives in place of a part that does not become a document."""
    return f"left out {label}: {why}"


@dataclass(frozen=True)
class Source:
    """A source of documents.

    name: as the user wrote it. identity: what tells it from other sources in the cache. size: bytes, for the progress
    bar, None if unknown. fingerprint: changes when the content does; "" for hub data, which is read once. documents:
    reads the source from its start; it raises UserError (DATA) for a part that cannot be read without loss.
    """

    name: str
    identity: str
    size: int | None
    fingerprint: str
    documents: Callable[[], Iterator[Document | str]]


def cannot_use(name: str, why: str, fix: str) -> UserError:
    """The error for a corpus, a file or a line that cannot be used."""
    shown = name if len(name) <= 200 else f"{name[:200]}..."
    return UserError(f"cannot use {shown} as a corpus", why=why, fix=fix, code=errors.DATA)


def cannot_read(name: str, error: OSError) -> UserError:
    """The error for a file that the operating system does not let us read."""
    where = f"{error.filename}: " if error.filename and str(error.filename) != name else ""
    return cannot_use(name, where + errors.reason_of(error), "check the path and its permissions")


def read_documents(path: Path, column: str = "") -> Iterator[Document | str]:
    """The documents of a file: .jsonl has one on each line, .bin has token ids, any other file is one document.

    column: the field that holds the text; without it, "text" or the only one that holds text.
    """
    ending = path.suffix.lower()
    if ending == ".jsonl":
        documents = _read_jsonl(path, column)
    elif ending == ".bin":
        documents = _cut_at_separators(path)
    else:
        documents = iter([Document(str(path), read_text(path))])
    for document in documents:
        if isinstance(document.content, str) and not document.content.strip():
            yield left_out(document.label, "empty or whitespace only")
        else:
            yield document


def column_of_text(columns: Sequence[str], wanted: str) -> str:
    """The column that holds the text: the wanted one, else "text", else the only one; "text" if it is not clear."""
    return wanted or (columns[0] if len(columns) == 1 else "text")


# --- records ----------------------------------------------------------------------------------------------------------


def _read_jsonl(path: Path, column: str) -> Iterator[Document]:
    """Raises UserError (DATA) naming the line: no JSON object, no such field, a lone surrogate."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    label = f"{path} line {number}"
                    yield Document(label, _text_of_record(line, label, path, column))
    except OSError as error:
        raise cannot_read(str(path), error) from None


def _text_of_record(line: bytes, label: str, path: Path, column: str) -> str:
    try:
        record: Any = json.loads(line.decode("utf-8-sig"), parse_int=len)  # numbers do not matter, however long
    except (ValueError, RecursionError) as error:
        raise cannot_use(label, f"not a JSON record in UTF-8: {error}", "write one JSON object a line") from None
    strings = {k: v for k, v in record.items() if isinstance(v, str)} if isinstance(record, dict) else {}
    wanted = column_of_text(list(strings), column)
    if wanted not in strings:
        raise cannot_use(
            label,
            f'no field "{wanted}" with a string; fields with a string: {", ".join(strings) or "none"}',
            set_to("corpus", f"{path}:{next(iter(strings))}") if strings else f'add a field "{wanted}" with the text',
        )
    if why := lone_surrogate(strings[wanted]):
        raise cannot_use(label, why, "remove it or write it as a pair")
    return strings[wanted]


# --- token ids --------------------------------------------------------------------------------------------------------


def _cut_at_separators(path: Path) -> Iterator[Document]:
    """The documents of a token file; empty ones are skipped, as no text is lost with them."""
    ids, end_of_text = read_bin(path), load_tokenizer().end_of_text
    start = 0
    for stop in [*np.flatnonzero(ids == end_of_text).tolist(), len(ids)]:
        if stop > start:
            yield Document(f"{path} token {start}", ids[start:stop])
        start = stop + 1


def read_bin(path: Path, tokenizer: Tokenizer | None = None, *, mapped: bool = False) -> np.ndarray:
    """Read-only ids [n] of a token file, every id checked. Raises UserError (DATA) naming file and position.

    tokenizer: whose ids they are, GPT-2's unless given. mapped: map the file into memory instead of reading it.
    """
    n_vocab = (tokenizer or load_tokenizer()).n_vocab
    dtype = token_type(n_vocab)
    try:
        size = path.stat().st_size
        ids = read_tokens(path, mapped=mapped, dtype=dtype)
    except OSError as error:
        raise cannot_read(str(path), error) from None
    if size == 0 or size % dtype.itemsize:
        fix = f"write little-endian {dtype.name} ids, no header"
        raise cannot_use(str(path), f"{size:,} bytes are no {dtype.name} tokens", fix)
    check_ids(ids, n_vocab, str(path))
    return ids


# --- plain text -------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A whole file as text. Raises UserError (DATA), also for a file without text."""
    try:
        with open_regular(path) as file:
            raw = file.read()
    except OSError as error:
        raise cannot_read(str(path), error) from None
    if not raw.strip():
        what = "whitespace only" if raw else "empty"
        raise NoTextError(
            f"{path} holds no text",
            why=f"it is {what} ({len(raw):,} bytes)",
            fix="name a file with text",
            code=errors.DATA,
        )
    return decode(raw, str(path))


def decode(raw: bytes, label: str) -> str:
    """UTF-8 as text; label: what messages call the bytes. Raises NoTextError for binary ones, and UserError (DATA) with
    offset and line instead of replacing a byte."""
    if b"\0" in raw and not raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        why = f"NUL byte at offset {raw.index(0):,}"
        raise NoTextError(f"{label} is binary, not text", why=why, fix="name a text file", code=errors.DATA)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{label} is not UTF-8 text",
            why=f"byte 0x{raw[error.start]:02x} at offset {error.start:,} (line {line:,}): {error.reason}",
            fix="save it as UTF-8, with an editor or with iconv",
            code=errors.DATA,
        ) from None


# --- the split of each document ---------------------------------------------------------------------------------------

TRAIN_SHARE, DEV_SHARE = 0.85, 0.925  # upper bounds of a document's number in [0, 1): train, dev, test
MANY_DOCUMENTS = 1000  # so many documents fill every split without help
LEAST_SHARE = 0.02  # documents are cut into passages if dev or test would get less than this share of them
PASSAGES, SHORTEST, LONGEST = 128, 64, 8192  # passages to aim at, and their bounds in characters
SPLIT_RULE = "u = first 8 bytes of the document's SHA-256 / 2**64; train u < 0.85, dev u < 0.925, else test"


def split_of(content: str | np.ndarray, salt: bytes = b"") -> str:
    """The split that a document belongs to: train, dev or test, by a number in [0, 1): the first 8 bytes, big-endian,
    of the SHA-256 of `salt` and the UTF-8 text (or the ids as little-endian uint16), divided by 2**64."""
    raw = content.encode("utf-8") if isinstance(content, str) else content.astype(TOKEN).tobytes()
    number = int.from_bytes(hashlib.sha256(salt + raw).digest()[:8], "big") / 2**64
    return "train" if number < TRAIN_SHARE else "dev" if number < DEV_SHARE else "test"


def assign_splits(documents: list[Document], name: str) -> tuple[list[Document], bool]:
    """The documents with a split each, or passages of them if whole ones leave a split (nearly) empty; and whether the
    text repeats itself, so that passages are assigned by their number too, and equal ones are in several splits.

    name: the source's, for labels. Raises UserError (DATA) for text that is too short to be split.
    """
    whole = [document._replace(split=split_of(document.content)) for document in documents]
    if fills_every_split(whole):
        return whole, False
    total = sum(len(document.content) for document in documents)
    for repetitive in (False, True) if total >= PASSAGES * SHORTEST else (False,):
        length = min(max(total // PASSAGES, SHORTEST), LONGEST)
        parts: list[Document] = []
        while length >= SHORTEST and len(parts) < MANY_DOCUMENTS:
            texts = [text for document in documents for text in cut_passages(document.content, length)]
            parts = [
                Document(f"{name} passage {number}", text, split_of(text, b"%d " % number if repetitive else b""))
                for number, text in enumerate(texts)
            ]
            if fills_every_split(parts):
                return parts, repetitive
            length //= 2
    raise UserError(
        f"{name} is too short to be split: {total:,} characters or tokens in {len(documents)} documents",
        why=f"train, dev and test need text each, in passages of at least {SHORTEST} characters",
        fix=f"at least {PASSAGES * SHORTEST:,} characters, or train.bin, dev.bin and test.bin of your own",
        code=errors.DATA,
    )


def fills_every_split(documents: Iterable[Document]) -> bool:
    """Whether train, dev and test have LEAST_SHARE of the text each."""
    sizes = dict.fromkeys(SPLITS, 0)
    for document in documents:
        sizes[document.split] += len(document.content)
    return min(sizes.values()) >= LEAST_SHARE * sum(sizes.values())


_BREAKS = [re.compile(p) for p in (r"\n[^\S\n]*\n\s*|\r[^\S\r\n]*\r\s*", r"\n|\r(?!\n)", r"\s(?=\S)")]


def cut_passages(content: str | np.ndarray, length: int) -> Iterator[str | np.ndarray]:
    """Consecutive parts that join to `content`.

    Text is cut into `length` to 2 * length characters, after a blank line if there is one, else after a line, else
    after a space; the last part may be shorter. Ids are cut into length // 4 of them.
    """
    if not isinstance(content, str):
        step = max(length // 4, 1)
        yield from (content[i : i + step] for i in range(0, len(content), step))
        return
    start = 0
    while len(content) - start > 2 * length:
        lo, hi = start + length, start + 2 * length
        breaks = (pattern.search(content, lo, hi) for pattern in _BREAKS)
        stop = next((match.end() for match in breaks if match), hi)
        yield content[start:stop]
        start = stop
    yield content[start:]
