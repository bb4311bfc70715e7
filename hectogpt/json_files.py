"""Files that somebody else may have written: opened only if they are regular, read only up to a
size, parsed as JSON. And manifest.json: sizes and SHA-256 of a folder's files, so that damage is
found before it is used.

Standard library only. Nothing here waits for a pipe, reads a device without end, or runs out of
stack or memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import open_regular, write_atomic

LARGEST = (
    16 << 20
)  # bytes of JSON that are read; our own files have a few thousand, GPT-2's tokenizer 1.4 million
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 64 << 20  # bytes; that of a checkpoint names every tensor
DEEPEST = 50  # objects inside each other; our own files have about six


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """All bytes of a regular file of at most `largest` bytes. Raises OSError, also for a larger
    file.
    """
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > largest:
            raise OSError(f"it has {size:,} bytes, and at most {largest:,} are read")
        return file.read()


def read_json_object(
    path: Path,
    *,
    largest: int = LARGEST,
    nan_as_none: bool = False,
    fix: str = "",
    code: int = errors.CHECKPOINT,
) -> dict[str, Any]:
    """The JSON object that a file holds.

    largest: bytes that are read at most. nan_as_none: as in `parse_json_object`.

    Raises UserError (`code`, proposing `fix`) for a file that is missing, no regular file, too
    large, no UTF-8 or no JSON object."""
    try:
        return parse_json_object(read_bytes(path, largest), nan_as_none=nan_as_none)
    except (OSError, ValueError) as error:
        raise errors.unreadable(path, error, fix=fix, code=code) from None


def parse_json_object(content: bytes, *, nan_as_none: bool = False) -> dict[str, Any]:
    """The JSON object that `content` is, UTF-8. Raises ValueError with the reason for anything
    else.

    nan_as_none: nan, infinity and 1e999, which JSON lacks, become None; otherwise they are
    refused."""

    def number(literal: str) -> float | None:
        value = float(literal)
        if not math.isfinite(value) and not nan_as_none:
            raise ValueError(f"it holds {literal[:40]}, which is no JSON number")
        return value if math.isfinite(value) else None

    try:
        found = json.loads(content.decode("utf-8"), parse_constant=number, parse_float=number)
        depth = _depth(found)
    except RecursionError:
        found = {}
        depth = DEEPEST + 1
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    if depth > DEEPEST:
        raise ValueError("its objects are nested too deeply")
    return found


def _depth(value: Any) -> int:
    """How many objects and arrays are inside each other in a JSON value."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


# --- manifest.json: file formats do not notice a flipped bit; the manifest does, and has a hash of
# its own ------------


def write_manifest(folder: Path, names: Iterable[str], facts: dict[str, Any]) -> None:
    """Write the manifest of these files of the folder, with `facts` beside their hashes. The files
    are on disk already.

    Raises OSError if a file cannot be read, UserError (STORAGE) if the manifest cannot be written.
    """
    content = facts | {"files": {name: _describe(folder / name) for name in names}}
    write_atomic(
        folder / MANIFEST,
        json.dumps(content | {"sha256": _hash(content)}, indent=1, allow_nan=False) + "\n",
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises UserError (CHECKPOINT) if there is none, or if it is
    damaged itself."""
    path = folder / MANIFEST
    content = read_json_object(path, largest=LARGEST_MANIFEST)
    found = content.pop("sha256", None)
    files = content.get("files")
    if found != _hash(content) or not isinstance(files, dict):
        raise UserError(
            f"{path} is damaged", why="its SHA-256 is another one", code=errors.CHECKPOINT
        )
    return content


def check_hashes(folder: Path, *names: str) -> set[str]:
    """Compare files with the folder's manifest. Returns the names that are in it. Raises UserError
    (CHECKPOINT).
    """
    faults = damage(folder, read_manifest(folder), names)
    for name, fault in faults.items():
        if fault:
            fix = (
                f"a copy of the file as it was; `hectogpt check {folder}` says what can be made "
                "again"
            )
            raise UserError(
                f"{folder / name} is damaged", why=fault, fix=fix, code=errors.CHECKPOINT
            )
    return set(faults)


def damage(
    folder: Path, manifest: dict[str, Any], names: Iterable[str] | None = None
) -> dict[str, str]:
    """What is wrong with each file of a manifest (with these, if it names them), in words; "" if
    it is as it was."""
    files = manifest["files"]
    wanted = [name for name in (files if names is None else names) if name in files]
    return {name: _fault(folder / Path(name).name, files[name]) for name in wanted}


def _fault(path: Path, expected: Any) -> str:
    try:
        found = _describe(path)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return errors.reason_of(error)
    return (
        ""
        if found == expected
        else f"it has {found['bytes']:,} other bytes: its SHA-256 is another one"
    )


def _describe(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, allow_nan=False).encode()
    ).hexdigest()
