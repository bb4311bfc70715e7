"""Token files on disk: train.bin, dev.bin and test.bin, with an index.json.

They are headerless little-endian uint16. For a vocabulary other than GPT-2's, the folder also has
its merges.txt. The index holds counts, the tokenizer's hash and the SHA-256 of each file. A folder
is written under a temporary name and renamed, so it is complete or absent. With `check`, reading
compares the hash of each file with the index.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import errors, files
from hectogpt.data.tokenizer import (
    MERGES,
    MOST_IDS,
    Tokenizer,
    check_ids,
    load_tokenizer,
    read_merges,
)
from hectogpt.errors import DataError, SetTo, UserError
from hectogpt.files import parse_json_object, read_bytes

SPLITS = ("train", "dev", "test")
TOKEN = np.dtype("<u2")
INDEX = "index.json"
FORMAT = "hectogpt token shards 1"  # in the index and in cache keys
LOCK_PATIENCE_S = 600.0  # seconds to wait while another process builds the folder
# The only files that a folder of this program holds.
FILES = frozenset((*(f"{split}.bin" for split in SPLITS), INDEX, MERGES))


def find_splits(name: str) -> Path | None:
    """The folder with train.bin, dev.bin and test.bin, named directly or by its train.bin."""
    path = Path(os.path.expanduser(name))
    folder = path.parent if path.name == "train.bin" else path
    return folder if all(os.path.lexists(folder / f"{split}.bin") for split in SPLITS) else None


def check_folder(folder: Path) -> None:
    """Refuse to replace a folder unless it is empty, or holds only token files of this program.

    Raises UserError.
    """

    def may_go(names: list[str]) -> bool:
        with contextlib.suppress(UserError):
            return FILES.issuperset(names) and bool(read_index(folder))
        return False

    files.check_free(folder, may_go, SetTo("out", "another folder"))


def find_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a corpus, found by the corpus's name.

    A folder of token files with a merges.txt has its own tokenizer; every other corpus has
    GPT-2's. Raises UserError (DATA).
    """
    folder = find_splits(name)
    if folder is None or not os.path.lexists(folder / MERGES):
        return load_tokenizer()
    tokenizer = read_merges(folder / MERGES, folder.name)
    if tokenizer.n_vocab > MOST_IDS:
        why = f"it has {tokenizer.n_vocab:,} ids, and token files hold 16-bit numbers"
        raise DataError(
            f"the vocabulary in {folder} is too large",
            why=why,
            fix="use a smaller one",
        )
    return tokenizer


def write_folder(
    folder: Path,
    tokenizer: Tokenizer,
    documents: Iterable[tuple[str, np.ndarray]],
    about: dict[str, Any],
) -> None:
    """Write documents as a new folder of token files, which replaces `folder`.

    If writing fails, the old folder stays and the new one is removed. The caller must hold
    `lock_folder(folder)`.

    Args:
        folder: the folder to replace.
        tokenizer: the tokenizer that made the ids.
        documents: split and ids [n] of each document, with the separator last.
        about: facts about the source for the index; read after the last document, so that
            `documents` can still add to them.

    Raises UserError (DATA) if a split is empty, and OSError if writing fails.
    """
    hashes = {split: hashlib.sha256() for split in SPLITS}
    entries: dict[str, dict[str, Any]] = {
        s: {"file": f"{s}.bin", "tokens": 0, "documents": 0} for s in SPLITS
    }
    with files.replacing_folder(folder, lambda: check_folder(folder)) as new:
        with contextlib.ExitStack() as stack:
            opened = {
                split: stack.enter_context((new / f"{split}.bin").open("wb")) for split in SPLITS
            }
            for split, ids in documents:
                raw = ids.astype(TOKEN).tobytes()
                entry = entries[split]
                opened[split].write(raw)
                hashes[split].update(raw)
                entry["tokens"] += len(ids)
                entry["documents"] += 1
        if empty := [split for split in SPLITS if not entries[split]["tokens"]]:
            raise DataError(
                f"{about['source']}: no document falls into {' and '.join(empty)}",
                why="documents are assigned to train, dev and test by their hash, 85 : 7.5 : 7.5",
                fix="name a source with more documents (about 100 are safe)",
            )
        index = {
            "format": FORMAT,
            "dtype": "uint16 little-endian",
            "n_vocab": tokenizer.n_vocab,
            "end_of_text": tokenizer.end_of_text,
            "tokenizer": {"name": tokenizer.name, "sha256": tokenizer.sha256},
            "splits": {
                split: entry | {"sha256": hashes[split].hexdigest()}
                for split, entry in entries.items()
            },
            **about,
        }
        (new / INDEX).write_bytes(render_index(index))
        if not tokenizer.is_gpt2:
            (new / MERGES).write_bytes(tokenizer.merges + b"\n")


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Context manager: lock `folder` to build it, and remove files that killed builders left.

    Raises UserError: LOCKED if another process holds the lock for ten minutes, STORAGE if the lock
    or a file in the block cannot be written.
    """
    lock = files.lock(
        folder.with_name(f".{folder.name}.lock"),
        folder,
        "building its token files",
        LOCK_PATIENCE_S,
    )
    fix = "free some space, or name another folder: HECTOGPT_CACHE=FOLDER"
    kept = "the source text, and older token files if there were any"
    with errors.writing(f"token files to {folder}", fix=fix, kept=kept), lock as own:
        if own:
            files.remove_leftovers(folder)
        yield


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a folder.

    Raises UserError (DATA) if a single bit of it has changed, or if this program did not write it.
    """
    path = folder / INDEX
    try:
        raw = read_bytes(path)
        index = parse_json_object(raw)
        body = {key: value for key, value in index.items() if key != "sha256"}
        if index.get("format") != FORMAT or render_index(body) != raw:
            raise ValueError(
                "it has changed since it was written: its own SHA-256 or format line differs"
            )
        entries = [index["splits"][split] for split in SPLITS]
        texts = [
            index["fingerprint"],
            index["tokenizer"]["sha256"],
            *(entry["sha256"] for entry in entries),
        ]
        counts = [entry[name] for entry in entries for name in ("tokens", "documents")]
        kinds = {str: texts + index["problems"], int: counts}
        if any(type(value) is not kind for kind, values in kinds.items() for value in values):
            raise ValueError("its fields are not those that this program writes")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _unusable(path, error) from None
    return index


def _unusable(path: Path, error: Exception) -> UserError:
    """The error for a file that is missing, damaged or cannot be opened."""
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return errors.unreadable(path, error)
    return damage_error(path, f"it cannot be read: {errors.reason_of(error)}")


def damage_error(path: Path, why: str, what: str = "token files are damaged") -> UserError:
    """The error for a token file or an index that differs from what was written."""
    fix = (
        f"remove {path.parent}: the cache is rebuilt when next used; for your own folder, run "
        "`hectogpt data build`"
    )
    return DataError(f"{what}: {path}", why=why, fix=fix)


def read_splits(
    folder: Path, index: dict[str, Any], tokenizer: Tokenizer, check: bool = True
) -> dict[str, np.ndarray]:
    """Read a folder: split -> read-only ids [n].

    With `check`, each file is compared with its SHA-256 (about 0.7 s per GB). Raises UserError
    (DATA) for a damaged file, and for files that were made with a different tokenizer.
    """
    if index["tokenizer"]["sha256"] != tokenizer.sha256:
        why = (
            f"tokenizer SHA-256 {index['tokenizer']['sha256'][:16]}..., here "
            f"{tokenizer.sha256[:16]}..."
        )
        raise damage_error(
            folder / INDEX, why, "token files were made with a different vocabulary"
        )
    return {
        split: _read_split(folder / f"{split}.bin", index["splits"][split], check)
        for split in SPLITS
    }


def _read_split(path: Path, entry: dict[str, Any], check: bool) -> np.ndarray:
    try:
        tokens = _map(path)
        if len(tokens) != entry["tokens"]:
            raise ValueError(f"{len(tokens):,} tokens, but the index says {entry['tokens']:,}")
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None
    if check and hashlib.sha256(tokens.data).hexdigest() != entry["sha256"]:
        raise damage_error(path, "its SHA-256 differs from the index")
    return tokens


def _map(path: Path) -> np.ndarray:
    """Map a token file: read-only ids [n]. Raises OSError, and ValueError for an invalid size."""
    with files.open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) == 0 or size % TOKEN.itemsize:
            raise ValueError(f"{size:,} bytes are not uint16 tokens")
        return np.memmap(file, dtype=TOKEN, mode="r")


def read_unchecked(path: Path, tokenizer: Tokenizer) -> np.ndarray:
    """Read a token file without an index, and check every id. Returns read-only ids [n].

    Raises UserError (DATA) that names file and position.
    """
    try:
        tokens = _map(path)
    except (OSError, ValueError) as error:
        fix = "write headerless little-endian uint16 ids" if isinstance(error, ValueError) else ""
        raise errors.unreadable(path, error, fix=fix) from None
    check_ids(tokens, tokenizer.n_vocab, str(path))
    return tokens


def render_index(index: dict[str, Any]) -> bytes:
    """The index as sorted and indented JSON, with the hash of its other fields."""
    body = json.dumps(index, sort_keys=True, allow_nan=False)
    sealed = index | {"sha256": hashlib.sha256(body.encode()).hexdigest()}
    return json.dumps(sealed, sort_keys=True, allow_nan=False, indent=1).encode() + b"\n"
