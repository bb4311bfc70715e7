"""Token files on disk: train.bin, dev.bin, test.bin (headerless little-endian uint16) and index.json beside them.

The index holds counts, the tokenizer's hash and a SHA-256 for every shard, a range of tokens of one file. A folder
is written under a temporary name, synced and renamed, so it is either whole or absent; one process builds at a time.
Refuses to load anything that differs from its index by a bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import errors
from hectogpt.data.tokenizer import Tokenizer
from hectogpt.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: no lock; the rename alone still keeps a folder whole
    fcntl = None  # type: ignore[assignment]

SPLITS = ("train", "dev", "test")
TOKEN = np.dtype("<u2")
INDEX = "index.json"
FORMAT = "hectogpt token shards 1"
SHARD_TOKENS = 1 << 25  # 64 MiB: the range that one hash covers and a message can name
MEMORY_LIMIT = 1 << 30  # bytes; larger corpora are mapped instead of read
LOCK_PATIENCE_S = 600.0


class SplitWriter:
    """One split's file, hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self.path, self.tokens, self.documents, self.bytes = path, 0, 0, 0
        self._file = path.open("wb")
        self._whole, self._part, self._shards = hashlib.sha256(), hashlib.sha256(), list[dict[str, Any]]()

    def append(self, ids: np.ndarray, documents: int, n_bytes: int) -> None:
        """ids: uint16 [n], `documents` documents that stand for n_bytes bytes of text."""
        self.documents, self.bytes = self.documents + documents, self.bytes + n_bytes
        while len(ids):
            head = ids[: SHARD_TOKENS - self.tokens % SHARD_TOKENS]
            raw = head.astype(TOKEN, copy=False).tobytes()
            self._file.write(raw)
            self._whole.update(raw)
            self._part.update(raw)
            self.tokens, ids = self.tokens + len(head), ids[len(head) :]
            if self.tokens % SHARD_TOKENS == 0:
                self._end_shard()

    def _end_shard(self) -> None:
        start = len(self._shards) * SHARD_TOKENS
        record = {"start": start, "tokens": self.tokens - start, "sha256": self._part.hexdigest()}
        self._shards.append(record)
        self._part = hashlib.sha256()

    def close(self) -> dict[str, Any]:
        """Sync the file and return its part of the index."""
        if self.tokens > len(self._shards) * SHARD_TOKENS:
            self._end_shard()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {
            "file": self.path.name,
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
            "sha256": self._whole.hexdigest(),
            "shards": self._shards,
        }

    def abandon(self) -> None:
        self._file.close()


Piece = tuple[str, np.ndarray, int, int]  # split, ids, documents, bytes of text


def write(folder: Path, pieces: Iterable[Piece], about: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Write a whole folder of shards, replacing an older one; the caller holds `locked(folder)`.

    pieces: ids in order, each with its split. about: what the index says of the source; `problems` in it may grow
    while `pieces` are read. Raises UserError (STORAGE) when the disk refuses; nothing half is left either way.
    """
    temporary = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    retired = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    writers: dict[str, SplitWriter] = {}
    try:
        temporary.mkdir(parents=True)
        writers.update((split, SplitWriter(temporary / f"{split}.bin")) for split in SPLITS)
        for split, ids, documents, n_bytes in pieces:
            writers[split].append(ids, documents, n_bytes)
        index = {
            "format": FORMAT,
            "dtype": "uint16 little-endian",
            "n_vocab": tokenizer.n_vocab,
            "end_of_text": tokenizer.end_of_text,
            "tokenizer": {"name": tokenizer.name, "sha256": tokenizer.sha256},
            "splits": {split: writer.close() for split, writer in writers.items()},
            **about,
        }
        if empty := [split for split in SPLITS if not index["splits"][split]["tokens"]]:
            raise UserError(
                f"{about['source']}: no document falls into {' and '.join(empty)}",
                why="documents are dealt to train, dev and test by their hash, 85 : 7.5 : 7.5",
                fix="more documents (about 100 are safe)",
                code=errors.DATA,
            )
        with (temporary / INDEX).open("wb") as file:
            file.write(_rendered(index))
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(temporary)
        if folder.exists():
            folder.rename(retired)
        temporary.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        for writer in writers.values():
            writer.abandon()
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def storage_error(folder: Path, error: OSError) -> UserError:
    """What to tell when the cache cannot be written."""
    return UserError(
        f"cannot write token shards to {folder}",
        why=f"{error.strerror or error}",
        fix="free some space, or name another folder: HECTOGPT_CACHE=FOLDER",
        kept="the source text, and older shards if there were any",
        code=errors.STORAGE,
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the right to build `folder`; wait for another builder, LOCKED after ten minutes.

    The kernel frees the lock when its holder dies, so it is never stale.
    """
    path = folder.with_name(f".{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise storage_error(folder, error) from error
    with file:
        if fcntl is not None and _acquire(file.fileno(), path):
            for leftover in folder.parent.glob(f".{folder.name}.*-*"):  # of builders that were killed
                shutil.rmtree(leftover, ignore_errors=True)
        yield


def _acquire(descriptor: int, path: Path) -> bool:
    """Take the lock; False where the filesystem has none (the rename alone must do)."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{path} is locked",
                    why=f"another process has been building these token shards for {LOCK_PATIENCE_S:.0f} s",
                    fix="wait for it or stop it, then try again",
                    code=errors.LOCKED,
                ) from None
            time.sleep(0.05)
        except OSError:
            return False


def read_index(folder: Path, repair: str) -> dict[str, Any]:
    """The index, if every byte of it is what we wrote. `repair` is the command that a message proposes."""
    path = folder / INDEX
    try:
        raw = path.read_bytes()
        index = json.loads(raw)
        body = {key: value for key, value in index.items() if key != "sha256"}
        sound = index.get("format") == FORMAT and _rendered(body) == raw
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise damaged(path, f"it cannot be read: {error}", repair) from None
    if not sound:
        raise damaged(path, "it is not what was written: its own SHA-256 or format line differs", repair)
    return index


def damaged(path: Path, why: str, repair: str) -> UserError:
    """What to tell when a file of shards is not what its index says."""
    return UserError(f"token shards are damaged: {path}", why=why, fix=repair, code=errors.DATA)


def load(folder: Path, index: dict[str, Any], tokenizer: Tokenizer, repair: str) -> dict[str, np.ndarray]:
    """Split -> read-only uint16 [tokens], every shard checked against its SHA-256 (about 0.7 s per GB).

    Raises UserError (DATA) naming file, shard and token range, or a tokenizer other than `tokenizer`.
    """
    if index["tokenizer"]["sha256"] != tokenizer.sha256:
        raise UserError(
            f"token shards {folder} were made with another vocabulary",
            why=f"tokenizer SHA-256 {index['tokenizer']['sha256'][:16]}..., here {tokenizer.sha256[:16]}...",
            fix=repair,
            code=errors.DATA,
        )
    arrays = {}
    mapped = sum(index["splits"][split]["tokens"] for split in SPLITS) * TOKEN.itemsize > MEMORY_LIMIT
    for split in SPLITS:
        record = index["splits"][split]
        path = folder / record["file"]
        try:
            size = path.stat().st_size
            arrays[split] = tokens = read_tokens(path, mapped=mapped)
        except OSError as error:
            raise damaged(path, f"it cannot be read: {error.strerror or error}", repair) from None
        if size != record["tokens"] * TOKEN.itemsize or len(tokens) != record["tokens"]:
            raise damaged(path, f"{size:,} bytes, the index says {record['tokens']:,} tokens of 2", repair)
        for number, shard in enumerate(record["shards"]):
            start, stop = shard["start"], shard["start"] + shard["tokens"]
            if hashlib.sha256(tokens[start:stop].data).hexdigest() != shard["sha256"]:
                why = f"SHA-256 of shard {number} (tokens {start:,} to {stop - 1:,}) differs from the index"
                raise damaged(path, why, repair)
    return arrays


def read_tokens(path: Path, *, mapped: bool) -> np.ndarray:
    """Read-only uint16 [n] of a headerless file, in memory or mapped; an odd last byte is left out."""
    if mapped and (count := path.stat().st_size // TOKEN.itemsize):
        return np.memmap(path, dtype=TOKEN, mode="r", shape=(count,))
    raw = path.read_bytes()
    return np.frombuffer(raw, dtype=TOKEN, count=len(raw) // TOKEN.itemsize)


def _rendered(index: dict[str, Any]) -> bytes:
    """The index as the bytes on disk: sorted, indented, with the hash of the rest."""
    body = json.dumps(index, sort_keys=True, allow_nan=False)
    sealed = index | {"sha256": hashlib.sha256(body.encode()).hexdigest()}
    return json.dumps(sealed, sort_keys=True, allow_nan=False, indent=1).encode() + b"\n"


def _sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable, where folders can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
