"""Encodes documents into token ids with several threads; the result is the same for any number of them."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from hectogpt.data.documents import Document
from hectogpt.data.splits import split_of
from hectogpt.data.token_files import SPLITS, EncodedChunk
from hectogpt.data.tokenizer import Tokenizer
from hectogpt.display import printable

TASK_CHARACTERS = 1 << 19  # what one thread encodes at a time


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer, workers: int) -> Iterator[list[EncodedChunk]]:
    """Consecutive documents, encoded: at most one chunk for each split. Few of them are in memory at a time.

    Documents without a split get theirs by hash. workers: threads; tiktoken releases the interpreter lock.
    """
    if workers == 1:
        for task in _group(documents):
            yield _encode_task(task, tokenizer)
        return
    own = threading.local()

    def start() -> None:
        own.tokenizer = tokenizer.for_another_thread()

    def work(task: list[Document]) -> list[EncodedChunk]:
        return _encode_task(task, own.tokenizer)

    running: deque[Future[list[EncodedChunk]]] = deque()
    with ThreadPoolExecutor(workers, initializer=start) as pool:
        try:
            for task in _group(documents):
                running.append(pool.submit(work, task))
                if len(running) > 2 * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _group(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Consecutive documents in groups of at least TASK_CHARACTERS characters, but for the last."""
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


def _encode_task(task: list[Document], tokenizer: Tokenizer) -> list[EncodedChunk]:
    """At most one chunk for each split."""
    separator = np.array([tokenizer.end_of_text], dtype=np.uint16)
    ids: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for document in task:
        content = document.content
        split = document.split or split_of(content)
        if isinstance(content, str):
            new = tokenizer.encode(content)
            sizes[split] += len(content) if content.isascii() else len(content.encode())
        else:
            new = content
            sizes[split] += int(tokenizer.token_bytes[content].sum())
        ids[split] += [new, separator]
    return [
        EncodedChunk(s, np.concatenate(parts, dtype=np.uint16, casting="unsafe"), len(parts) // 2, sizes[s])
        for s, parts in ids.items()
        if parts
    ]


@contextmanager
def show_progress(name: str, size: int | None, show: bool | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr for encoding `size` bytes; yields the function that takes the number of bytes just done.

    show: None for "if stderr is a terminal". Without a bar the function does nothing.
    """
    terminal = sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"
    if not (terminal if show is None else show):
        yield lambda n_bytes: None
        return
    from rich import progress as rich  # here, so that opening a cached corpus does not import it
    from rich.console import Console

    columns = (rich.TextColumn("tokenising {task.description}", markup=False), rich.BarColumn(), rich.DownloadColumn())
    with rich.Progress(*columns, rich.TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(printable(name), total=size)
        yield lambda n_bytes: bar.advance(task, n_bytes)
