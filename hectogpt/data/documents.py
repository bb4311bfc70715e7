"""The documents of one file: plain text, JSON lines, Parquet or token ids, told apart by the file's ending.

Every reader keeps text byte for byte and reports what it leaves out as a `LeftOut` in the same stream. Raises
UserError (DATA) for what cannot be read without loss, with the offset or the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hectogpt.data.text import cannot_read, cannot_use, read_text
from hectogpt.data.token_files import read_tokens
from hectogpt.data.tokenizer import check_ids, load_tokenizer
from hectogpt.errors import UserError

ROWS_AT_A_TIME = 16  # of a Parquet file
LARGEST_RATIO, SMALL = 200, 64 << 20  # a Parquet file unpacks to so many times its size, or so many bytes, at most
NOTED = 20  # left-out items that a corpus lists one by one; the others are only counted


class Document(NamedTuple):
    """One document of a source.

    label: where it comes from, for messages. content: its text, or its token ids, uint16 [n], without the separator.
    split: train, dev or test if that is settled already, else "".
    """

    label: str
    content: str | np.ndarray
    split: str = ""


class LeftOut(NamedTuple):
    """A part of a source that does not become a document: where it is, and why it is left out."""

    label: str
    why: str

    def __str__(self) -> str:
        return f"left out {self.label}: {self.why}"


class DocumentReader:
    """The documents of a source's stream. Iterating over it collects notes on what the source leaves out."""

    def __init__(self, items: Iterable[Document | LeftOut]) -> None:
        self._items, self._noted, self._count = items, list[LeftOut](), 0

    def __iter__(self) -> Iterator[Document]:
        for item in self._items:
            if isinstance(item, Document):
                yield item
                continue
            self._count += 1
            if len(self._noted) < NOTED:
                self._noted.append(item)

    def notes(self) -> list[str]:
        """What has been left out so far, one message each; the last one counts those that are not listed."""
        more = self._count - len(self._noted)
        return [str(item) for item in self._noted] + ([f"left out {more:,} more"] if more else [])


def read_documents(path: Path, codec: str, binary: bool, column: str = "") -> Iterator[Document | LeftOut]:
    """The documents of a file: .jsonl has one on each line, .parquet in each row, .bin has token ids, any other file is
    one document.

    codec, binary: as in `text.decode`, for plain text. column: as in `read_jsonl`.
    """
    ending = path.suffix.lower()
    if ending == ".jsonl":
        documents = read_jsonl(path, column)
    elif ending == ".parquet":
        documents = read_parquet(path, column)
    elif ending == ".bin":
        documents = _cut_at_separators(path)
    else:
        documents = iter([Document(str(path), read_text(path, codec, binary))])
    for document in documents:
        if isinstance(document.content, str) and not document.content.strip():
            yield LeftOut(document.label, "empty or whitespace only")
        else:
            yield document


def read_jsonl(path: Path, column: str = "") -> Iterator[Document]:
    """One document a line: the field `column`; without it, the field "text" or the only field that holds a string.

    Raises UserError (DATA) naming the line: no JSON object, no such field, a lone surrogate.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    label = f"{path} line {number}"
                    yield Document(label, _text_of_record(line, label, path, column))
    except OSError as error:
        raise cannot_read(str(path), error) from None


def read_parquet(path: Path, column: str = "") -> Iterator[Document]:
    """One document a row: the column `column`; without it, the column "text" or the only one of text. An empty cell is
    an empty document. A few rows are in memory at a time.

    Raises UserError (DATA) for a damaged file and for one without such a column; USAGE without the package pyarrow.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{path} needs the package pyarrow", why="it is an optional dependency", fix='pip install "hectogpt[hf]"'
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            texts = [field.name for field in file.schema_arrow if _is_text(str(field.type))]
            wanted = column_of_text(texts, column)
            if wanted not in texts:
                why = f"its text columns are {', '.join(texts) or 'none'}"
                raise cannot_use(str(path), why, f"set corpus to {path}:{texts[0]}" if texts else "add a text column")
            number, total, most = 0, 0, max(SMALL, LARGEST_RATIO * path.stat().st_size)
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            declared = max((group.total_byte_size for group in groups), default=0)
            for rows in file.iter_batches(batch_size=ROWS_AT_A_TIME, columns=[wanted]) if declared <= most else ():
                for cell in rows.column(0):
                    text = cell.as_py() or ""
                    number, total = number + 1, total + len(text)
                    yield Document(f"{path} row {number - 1}", text)
                if total > most:
                    break
            if max(declared, total) > most:
                why = f"it would unpack to more than {most:,} bytes, {LARGEST_RATIO} times its size"
                raise cannot_use(str(path), why, "write it with cells that differ, or name the text it was made from")
    except (OSError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise cannot_read(str(path), error) from None
        first = (str(error).splitlines() or [type(error).__name__])[0]  # some of pyarrow's errors are OSErrors too
        raise cannot_use(str(path), f"it is no sound Parquet file: {first[:200]}", "copy it again") from None


def _is_text(dtype: str) -> bool:
    kind = dtype.removeprefix("dictionary<values=").partition(",")[0]  # pandas writes categories so
    return kind in ("string", "large_string", "string_view")


def column_of_text(columns: Sequence[str], wanted: str) -> str:
    """The column that holds the text: the wanted one, else "text", else the only one; "" if it cannot be told."""
    return wanted or ("text" if "text" in columns else columns[0] if len(columns) == 1 else "")


def _text_of_record(line: bytes, label: str, path: Path, column: str) -> str:
    try:
        record: Any = json.loads(line.decode("utf-8-sig"), parse_int=len)  # numbers do not matter, however long
    except (ValueError, RecursionError) as error:
        raise cannot_use(label, f"not a JSON record in UTF-8: {error}", "write one JSON object a line") from None
    strings = {k: v for k, v in record.items() if isinstance(v, str)} if isinstance(record, dict) else {}
    wanted = column or ("text" if "text" in strings or len(strings) != 1 else next(iter(strings)))
    if wanted not in strings:
        raise cannot_use(
            label,
            f'no field "{wanted}" with a string; fields with a string: {", ".join(strings) or "none"}',
            f"set corpus to {path}:{next(iter(strings))}" if strings else f'add a field "{wanted}" with the text',
        )
    text = strings[wanted]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        why = f"lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
        raise cannot_use(label, why, "remove it or write it as a pair") from None
    return text


def _cut_at_separators(path: Path) -> Iterator[Document]:
    """The documents of a token file; empty ones are skipped, as no text is lost with them."""
    ids, end_of_text = read_bin(path), load_tokenizer().end_of_text
    start = 0
    for stop in [*np.flatnonzero(ids == end_of_text).tolist(), len(ids)]:
        if stop > start:
            yield Document(f"{path} token {start}", ids[start:stop])
        start = stop + 1


def read_bin(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Read-only uint16 [n] of a token file, every id checked. Raises UserError (DATA) naming file and position.

    mapped: map the file into memory instead of reading it.
    """
    try:
        size = path.stat().st_size
        ids = read_tokens(path, mapped=mapped)
    except OSError as error:
        raise cannot_read(str(path), error) from None
    if size == 0 or size % 2:
        raise cannot_use(str(path), f"{size:,} bytes are no uint16 tokens", "write little-endian uint16 ids, no header")
    check_ids(ids, load_tokenizer().n_vocab, str(path))
    return ids
