"""Token files on disk: train.bin, dev.bin, test.bin (headerless little-endian uint16) and index.json beside them.

The index holds counts, the tokenizer's hash and a SHA-256 for every block, a range of tokens of one file. A folder is
written under a temporary name and renamed, so it is whole or absent. Reading checks every bit against the index.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hectogpt import errors, files
from hectogpt.data.tokenizer import Tokenizer
from hectogpt.errors import UserError

SPLITS = ("train", "dev", "test")
TOKEN = np.dtype("<u2")
INDEX = "index.json"
FORMAT = "hectogpt token shards 1"  # in the index and in cache keys; there the blocks are called shards
BLOCK_TOKENS = 1 << 25  # 64 MiB: the range that one hash covers and that a message can name
MEMORY_LIMIT = 1 << 30  # bytes; larger corpora are mapped instead of read
LOCK_PATIENCE_S = 600.0  # for a builder that writes nothing


class EncodedChunk(NamedTuple):
    """Encoded documents of one split.

    ids: uint16 [n], a separator after each document. n_documents: their number. n_bytes: bytes of text they stand for.
    """

    split: str
    ids: np.ndarray
    n_documents: int
    n_bytes: int


class SplitWriter:
    """The file of one split, hashed while it is written. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path, self.n_tokens, self.n_documents, self.n_bytes = path, 0, 0, 0
        self._file_hash, self._block_hash = hashlib.sha256(), hashlib.sha256()
        self._blocks: list[dict[str, Any]] = []
        self._file = path.open("wb")

    def append(self, chunk: EncodedChunk) -> None:
        """Write a chunk's ids. Raises OSError."""
        self.n_documents, self.n_bytes = self.n_documents + chunk.n_documents, self.n_bytes + chunk.n_bytes
        ids = chunk.ids
        while len(ids):
            head = ids[: BLOCK_TOKENS - self.n_tokens % BLOCK_TOKENS]
            raw = head.astype(TOKEN, copy=False).tobytes()
            self._file.write(raw)
            self._file_hash.update(raw)
            self._block_hash.update(raw)
            self.n_tokens += len(head)
            if self.n_tokens % BLOCK_TOKENS == 0:
                self._end_block()
            ids = ids[len(head) :]

    def _end_block(self) -> None:
        start = len(self._blocks) * BLOCK_TOKENS
        self._blocks.append({"start": start, "tokens": self.n_tokens - start, "sha256": self._block_hash.hexdigest()})
        self._block_hash = hashlib.sha256()

    def finish(self) -> dict[str, Any]:
        """Wait until the file is on disk, close it and return its entry in the index. Raises OSError."""
        if self.n_tokens > len(self._blocks) * BLOCK_TOKENS:
            self._end_block()
        self._file.flush()
        files.sync(self._file.fileno())
        self.close()
        return {
            "file": self.path.name,
            "tokens": self.n_tokens,
            "documents": self.n_documents,
            "bytes": self.n_bytes,
            "sha256": self._file_hash.hexdigest(),
            "shards": self._blocks,
        }

    def close(self) -> None:
        """Close the file as it is."""
        self._file.close()


class TokenFolderWriter:
    """A new folder of token files that takes the place of `folder` when it is committed.

    A context manager; without `commit` the old folder stays, and nothing is left of the new one. The caller holds
    `lock_folder(folder)`. Raises UserError (STORAGE) when the disk refuses.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        self._new = partial_folder(folder)
        self._writers: dict[str, SplitWriter] = {}

    def __enter__(self) -> TokenFolderWriter:
        try:
            with _storage_errors(self._folder):
                shutil.rmtree(self._new, ignore_errors=True)
                self._new.mkdir(parents=True)
                for split in SPLITS:
                    self._writers[split] = SplitWriter(self._new / f"{split}.bin")
        except UserError:
            self.__exit__()
            raise
        return self

    def append(self, chunk: EncodedChunk) -> None:
        """Write the next chunk of its split."""
        with _storage_errors(self._folder):
            self._writers[chunk.split].append(chunk)

    def commit(self, about: dict[str, Any]) -> None:
        """Write the index, in which `about` describes the source, and put the folder in its place.

        Raises UserError (DATA) if a split is empty.
        """
        with _storage_errors(self._folder):
            entries = {split: writer.finish() for split, writer in self._writers.items()}
        if empty := [split for split in SPLITS if not entries[split]["tokens"]]:
            raise UserError(
                f"{about['source']}: no document falls into {' and '.join(empty)}",
                why="documents are assigned to train, dev and test by their hash, 85 : 7.5 : 7.5",
                fix="name a source with more documents (about 100 are safe)",
                code=errors.DATA,
            )
        index = {
            "format": FORMAT,
            "dtype": "uint16 little-endian",
            "n_vocab": self._tokenizer.n_vocab,
            "end_of_text": self._tokenizer.end_of_text,
            "tokenizer": {"name": self._tokenizer.name, "sha256": self._tokenizer.sha256},
            "splits": entries,
            **about,
        }
        with _storage_errors(self._folder):
            with (self._new / INDEX).open("wb") as file:
                file.write(render_index(index))
                file.flush()
                files.sync(file.fileno())
            files.replace_folder(self._new, self._folder)

    def __exit__(self, *error: object) -> None:
        for writer in self._writers.values():
            with contextlib.suppress(OSError):  # a full disk refuses what is still in the buffer
                writer.close()
        shutil.rmtree(self._new, ignore_errors=True)


def partial_folder(folder: Path) -> Path:
    """The name beside `folder` under which its builder writes a new one."""
    return folder.with_name(f".{folder.name}.new-partial")


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the right to build `folder`, and remove what killed builders have left beside it.

    Raises UserError: LOCKED if another process holds it for ten minutes and writes nothing, STORAGE if there can be no
    lock file.
    """
    with contextlib.ExitStack() as stack:
        with _storage_errors(folder):
            path, written = folder.with_name(f".{folder.name}.lock"), -1
            while True:
                try:
                    what = "building these token files"
                    locked = stack.enter_context(files.lock(path, what, LOCK_PATIENCE_S))
                    break
                except UserError:  # a large corpus takes hours
                    before, written = written, _bytes_in(partial_folder(folder))
                    if written == before or not written:
                        raise
        if locked:
            files.remove_leftovers(folder)
        yield


def _bytes_in(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of the block into a UserError (STORAGE)."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write token files to {folder}",
            why=error.strerror or str(error),
            fix="free some space, or name another folder: HECTOGPT_CACHE=FOLDER",
            kept="the source text, and older token files if there were any",
            code=errors.STORAGE,
        ) from error


def read_index(folder: Path, fix: str) -> dict[str, Any]:
    """The index of a folder. Raises UserError (DATA), which proposes `fix`, if one bit of it is not as written."""
    path = folder / INDEX
    try:
        raw = path.read_bytes()
        index = json.loads(raw)
        body = {key: value for key, value in index.items() if key != "sha256"}
        sound = index.get("format") == FORMAT and render_index(body) == raw
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise damage_error(path, f"it cannot be read: {error}", fix) from None
    if not sound:
        raise damage_error(path, "it is not what was written: its own SHA-256 or format line differs", fix)
    return index


def damage_error(path: Path, why: str, fix: str) -> UserError:
    """The error for a token file or an index that is not as it was written."""
    return UserError(f"token files are damaged: {path}", why=why, fix=fix, code=errors.DATA)


def read_splits(
    folder: Path, index: dict[str, Any], tokenizer: Tokenizer, fix: str, check: bool = True
) -> dict[str, np.ndarray]:
    """Split -> read-only uint16 [n]; with `check` every block is compared with its SHA-256 (about 0.7 s per GB).

    Raises UserError (DATA), which proposes `fix`, naming file, block and token range; or if the files were made with
    another tokenizer than `tokenizer`.
    """
    if index["tokenizer"]["sha256"] != tokenizer.sha256:
        raise UserError(
            f"token files {folder} were made with another vocabulary",
            why=f"tokenizer SHA-256 {index['tokenizer']['sha256'][:16]}..., here {tokenizer.sha256[:16]}...",
            fix=fix,
            code=errors.DATA,
        )
    mapped = sum(index["splits"][split]["tokens"] for split in SPLITS) * TOKEN.itemsize > MEMORY_LIMIT
    return {split: _read_split(folder, index["splits"][split], mapped, fix, check) for split in SPLITS}


def _read_split(folder: Path, entry: dict[str, Any], mapped: bool, fix: str, check: bool) -> np.ndarray:
    path = folder / entry["file"]
    try:
        size = path.stat().st_size
        tokens = read_tokens(path, mapped=mapped)
    except OSError as error:
        raise damage_error(path, f"it cannot be read: {error.strerror or error}", fix) from None
    if size != entry["tokens"] * TOKEN.itemsize or len(tokens) != entry["tokens"]:
        raise damage_error(path, f"{size:,} bytes, the index says {entry['tokens']:,} tokens of 2", fix)
    for number, block in enumerate(entry["shards"] if check else ()):
        start, stop = block["start"], block["start"] + block["tokens"]
        if hashlib.sha256(tokens[start:stop].data).hexdigest() != block["sha256"]:
            why = f"SHA-256 of block {number} (tokens {start:,} to {stop - 1:,}) differs from the index"
            raise damage_error(path, why, fix)
    return tokens


def read_tokens(path: Path, *, mapped: bool) -> np.ndarray:
    """Read-only uint16 [n] of a headerless file, in memory or mapped; an odd last byte is ignored. Raises OSError."""
    if mapped and (count := path.stat().st_size // TOKEN.itemsize):
        return np.memmap(path, dtype=TOKEN, mode="r", shape=(count,))
    raw = path.read_bytes()
    return np.frombuffer(raw, dtype=TOKEN, count=len(raw) // TOKEN.itemsize)


def render_index(index: dict[str, Any]) -> bytes:
    """The index as the bytes on disk: sorted, indented, with the hash of the rest."""
    body = json.dumps(index, sort_keys=True, allow_nan=False)
    sealed = index | {"sha256": hashlib.sha256(body.encode()).hexdigest()}
    return json.dumps(sealed, sort_keys=True, allow_nan=False, indent=1).encode() + b"\n"
