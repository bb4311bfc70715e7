"""A corpus: three disjoint token streams, train, dev and test, made once from a named source and cached.

A document goes to a split by its SHA-256, so equal documents never meet across splits and a split does not change
when documents are added. Refuses a source whose splits would be empty.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import errors
from hectogpt.data import shards
from hectogpt.data.source import Document, Source, read_bin, resolve
from hectogpt.data.split import LAW, MANY_DOCUMENTS, dealt, split_of
from hectogpt.data.tokenizer import Tokenizer, load_tokenizer
from hectogpt.errors import UserError

TASK_CHARACTERS = 1 << 19  # what one thread tokenises at a time


@dataclass(frozen=True, eq=False)
class Corpus:
    """train, dev, test: read-only uint16 [tokens], each document followed by the tokenizer's end_of_text.

    sha256: split -> hash of its tokens as little-endian uint16. n_documents: split -> count. problems: what was left
    out of the source and why. folder: where the token files are.
    """

    name: str
    train: np.ndarray
    dev: np.ndarray
    test: np.ndarray
    sha256: dict[str, str]
    n_documents: dict[str, int]
    tokenizer: Tokenizer
    folder: Path
    problems: tuple[str, ...] = ()

    @property
    def n_vocab(self) -> int:
        """Number of ids of the tokenizer."""
        return self.tokenizer.n_vocab


def cache_folder(cache: Path | str | None = None) -> Path:
    """Where token shards are kept: `cache`, $HECTOGPT_CACHE, $XDG_CACHE_HOME/hectogpt or ~/.cache/hectogpt."""
    chosen = cache or os.environ.get("HECTOGPT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "hectogpt"


def open_corpus(
    source: str = "sotu",
    *,
    encoding: str = "utf-8",
    cache: Path | str | None = None,
    progress: bool | None = None,
    force: bool = False,
) -> Corpus:
    """The corpus of a source; tokenised on first use, from the cache afterwards.

    source: sotu; tinystories (the assignment's 1 %); hf:NAME or hf:NAME:COLUMN; a text file (one document); a folder
    of text files; a .jsonl (one document a line); a .bin of uint16 ids; train.bin with dev.bin and test.bin beside
    it, or their folder (used as they are). A source with so few documents that dev or test would stay (nearly)
    empty is cut into passages at blank lines, else at line ends or spaces, about 128 of them, and those are dealt.
    encoding: of text files. progress: show a bar on stderr; None: if that is a terminal. force: take text with NUL
    bytes; leave undecodable files of a folder out.

    Raises UserError: DATA for anything wrong with the source, the vocabulary or the shards, STORAGE for a cache that
    cannot be written, LOCKED if another process builds it for ten minutes.
    """
    place = _Place(source, encoding, cache, force)
    if place.source.splits:
        return place.given_splits(place.source.splits)
    if not place.is_fresh():
        with shards.locked(place.folder):
            if not place.is_fresh():  # another process may have built it while we waited
                place.build(progress, None)
    return place.load()


def build(
    source: str = "sotu",
    *,
    encoding: str = "utf-8",
    cache: Path | str | None = None,
    progress: bool | None = None,
    force: bool = False,
    workers: int | None = None,
) -> Path:
    """Tokenise a source (again) and return the folder of its shards; the same bytes for any number of workers.

    workers: threads (tiktoken releases the interpreter lock), None: as many as cores. Raises as `open_corpus`.
    """
    place = _Place(source, encoding, cache, force)
    if place.source.splits:
        return place.source.splits["train"].parent
    with shards.locked(place.folder):
        place.build(progress, workers)
    return place.folder


def verify(
    source: str = "sotu", *, encoding: str = "utf-8", cache: Path | str | None = None, force: bool = False
) -> list[str]:
    """What is wrong with the token files of a source: messages, none if they are sound or not built yet.

    Raises UserError (DATA) if the source itself is unusable.
    """
    place = _Place(source, encoding, cache, force)
    try:
        if place.source.splits:
            place.given_splits(place.source.splits)
        elif place.folder.exists():
            place.load()
    except UserError as error:
        return [str(error)]
    return []


def repair(
    source: str = "sotu",
    *,
    encoding: str = "utf-8",
    cache: Path | str | None = None,
    progress: bool | None = None,
    force: bool = False,
) -> list[str]:
    """Tokenise a source again if its shards are damaged; returns what `verify` found before.

    Raises UserError (DATA) for token files of the user's own (train.bin, dev.bin, test.bin): only their maker can.
    """
    found = verify(source, encoding=encoding, cache=cache, force=force)
    if found:
        place = _Place(source, encoding, cache, force)
        if place.source.splits:
            raise UserError(
                f"cannot repair {source}",
                why=f"these files are used as they are, not made from text here; {found[0].splitlines()[0]}",
                fix="make them again, or name the text they come from",
                code=errors.DATA,
            )
        build(source, encoding=encoding, cache=cache, progress=progress, force=force)
    return found


class _Place:
    """A source together with the folder its shards live in."""

    def __init__(self, name: str, encoding: str, cache: Path | str | None, force: bool) -> None:
        self.tokenizer = load_tokenizer()
        self.source = resolve(name, encoding, force)
        key = f"{shards.FORMAT}\0{self.source.identity}\0{encoding}\0{force}\0{self.tokenizer.sha256}"
        slug = re.sub(r"[^A-Za-z0-9]+", "-", self.source.identity)[-40:].strip("-") or "corpus"
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        self.folder = cache_folder(cache) / f"{slug}-{digest[:12]}"
        options = (f" --encoding {encoding}" if encoding != "utf-8" else "") + (" --force" if force else "")
        self.repair = f"hectogpt data repair {name}{options}"

    def is_fresh(self) -> bool:
        """Whether shards of the source as it is now exist. Raises UserError (DATA) for a damaged index."""
        if not self.folder.exists():
            return False
        index = shards.read_index(self.folder, self.repair)
        return not self.source.fingerprint or index["fingerprint"] == self.source.fingerprint

    def load(self) -> Corpus:
        return self._corpus(self.folder, shards.read_index(self.folder, self.repair), self.repair)

    def _corpus(self, folder: Path, index: dict[str, Any], repair: str) -> Corpus:
        arrays = shards.load(folder, index, self.tokenizer, repair)
        splits = index["splits"]
        return Corpus(
            name=self.source.name,
            sha256={split: splits[split]["sha256"] for split in shards.SPLITS},
            n_documents={split: splits[split]["documents"] for split in shards.SPLITS},
            tokenizer=self.tokenizer,
            folder=folder,
            problems=tuple(index["problems"]),
            train=arrays["train"],
            dev=arrays["dev"],
            test=arrays["test"],
        )

    def given_splits(self, files: dict[str, Path]) -> Corpus:
        """Token files used as they are; checked against index.json if it lies beside them, else id by id."""
        folder = files["train"].parent
        if (folder / shards.INDEX).is_file():
            repair = f"make {folder} again with `hectogpt data repair` and the source it was made from"
            return self._corpus(folder, shards.read_index(folder, repair), repair)
        mapped = sum(path.stat().st_size for path in files.values()) > shards.MEMORY_LIMIT
        arrays = {split: read_bin(path, mapped=mapped) for split, path in files.items()}
        ends = {split: np.count_nonzero(ids == self.tokenizer.end_of_text) for split, ids in arrays.items()}
        return Corpus(
            name=self.source.name,
            sha256={split: hashlib.sha256(ids.data).hexdigest() for split, ids in arrays.items()},
            n_documents={
                split: int(ends[split]) + int(ids[-1] != self.tokenizer.end_of_text) for split, ids in arrays.items()
            },
            tokenizer=self.tokenizer,
            folder=folder,
            train=arrays["train"],
            dev=arrays["dev"],
            test=arrays["test"],
        )

    def build(self, progress: bool | None, workers: int | None) -> None:
        """Tokenise the source and replace its folder; the caller holds the lock."""
        documents = iter(self.source.documents())
        first = list(islice(documents, MANY_DOCUMENTS))
        if not first:
            raise UserError(
                f"{self.source.name} holds no text",
                why="; ".join(self.source.problems[:3]) or "it has no documents",
                fix="name a source with text",
                code=errors.DATA,
            )
        passage = 0
        if len(first) < MANY_DOCUMENTS:
            first, passage, repetitive = dealt(first, self.source.name)
            if repetitive:
                self.source.problems.append("the text repeats itself: equal passages are in more than one split")
        about = {
            "source": self.source.identity,
            "fingerprint": self.source.fingerprint,
            "split": LAW,
            "passages": passage,
            "problems": self.source.problems,
        }
        with _bar(self.source, progress) as advance:
            pieces = _tokenised(chain(first, documents), self.tokenizer, workers or _cores(), advance)
            shards.write(self.folder, pieces, about, self.tokenizer)


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    task: list[Document] = []
    size = 0
    for document in documents:
        task.append(document)
        size += len(document.content)
        if size >= TASK_CHARACTERS:
            yield task
            task, size = [], 0
    if task:
        yield task


def _tokenised(
    documents: Iterable[Document], tokenizer: Tokenizer, workers: int, advance: Callable[[int], None]
) -> Iterator[shards.Piece]:
    """Pieces in the order of the documents, however many threads make them; few are held at a time."""

    def work(task: list[Document]) -> list[shards.Piece]:
        if not hasattr(own, "tokenizer"):
            own.tokenizer = tokenizer if workers == 1 else tokenizer.for_another_thread()
        ids: dict[str, list[np.ndarray]] = {split: [] for split in shards.SPLITS}
        sizes = dict.fromkeys(shards.SPLITS, 0)
        for document in task:
            content = document.content
            split = document.split or split_of(content)
            if isinstance(content, str):
                new = own.tokenizer.encode(content)
                sizes[split] += len(content) if content.isascii() else len(content.encode())
            else:
                new = content
                sizes[split] += int(tokenizer.token_bytes[content].sum())
            ids[split] += [new, separator]
        return [(s, np.concatenate(parts), len(parts) // 2, sizes[s]) for s, parts in ids.items() if parts]

    own = threading.local()
    separator = np.array([tokenizer.end_of_text], dtype=np.uint16)
    if workers == 1:
        for task in _tasks(documents):
            yield from _advanced(work(task), advance)
        return
    running: deque[Future[list[shards.Piece]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for task in _tasks(documents):
                running.append(pool.submit(work, task))
                if len(running) > 2 * workers:
                    yield from _advanced(running.popleft().result(), advance)
            while running:
                yield from _advanced(running.popleft().result(), advance)
        finally:
            for future in running:
                future.cancel()


def _advanced(pieces: list[shards.Piece], advance: Callable[[int], None]) -> list[shards.Piece]:
    advance(sum(n_bytes for *_, n_bytes in pieces))
    return pieces


@contextmanager
def _bar(origin: Source, progress: bool | None) -> Iterator[Callable[[int], None]]:
    """The function to call with bytes done: a bar on stderr, or nothing."""
    terminal = sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"
    if not (terminal if progress is None else progress):
        yield lambda n_bytes: None
        return
    from rich import progress as rich  # here, so that opening a cached corpus does not pay for it
    from rich.console import Console

    columns = (rich.TextColumn("tokenising {task.description}"), rich.BarColumn(), rich.DownloadColumn())
    with rich.Progress(*columns, rich.TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(origin.name, total=origin.size)
        yield lambda n_bytes: bar.advance(task, n_bytes)
