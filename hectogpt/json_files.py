"""JSON files that somebody else may have written, and manifests of a folder's files.

A file is opened only if it is regular, and read only up to a size. manifest.json has sizes and
SHA-256 of a folder's files, so that damage is found before a file is used.

This module uses only the standard library. It never waits for a pipe, reads a device without end,
or runs out of stack or memory.
"""

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

# Bytes of JSON; our own files have a few thousand, GPT-2's tokenizer has 1.4 million.
LARGEST = 16 << 20
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 64 << 20  # bytes; a checkpoint's manifest names every tensor
DEEPEST = 50  # levels of nesting; our own files have about six


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """All bytes of a regular file.

    Raises OSError, also if it has more than `largest` bytes.
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
    """The JSON object in a file.

    Args:
        path: the file.
        largest: the most bytes to read.
        nan_as_none: as in `parse_json_object`.
        fix, code: of the error.

    Raises UserError for a file that is missing, not regular, too large, not UTF-8 or not a JSON
    object.
    """
    try:
        return parse_json_object(read_bytes(path, largest), nan_as_none=nan_as_none)
    except (OSError, ValueError) as error:
        raise errors.unreadable(path, error, fix=fix, code=code) from None


def parse_json_object(content: bytes, *, nan_as_none: bool = False) -> dict[str, Any]:
    """Parse a JSON object in UTF-8. Raises ValueError with the reason for anything else.

    nan_as_none: nan, infinity and 1e999, which JSON lacks, become None; otherwise they are
    refused.
    """

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
    """The number of objects and arrays nested inside each other in a JSON value."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


# --- manifest.json, which notices flipped bits (file formats do not), even in itself


def write_manifest(folder: Path, names: Iterable[str], facts: dict[str, Any]) -> None:
    """Write the manifest of these files, with `facts` added to their hashes.

    The files are on disk already. Raises OSError if a file cannot be read, UserError (STORAGE) if
    the manifest cannot be written.
    """
    content = facts | {"files": {name: _describe(folder / name) for name in names}}
    write_atomic(
        folder / MANIFEST,
        json.dumps(content | {"sha256": _hash(content)}, indent=1, allow_nan=False) + "\n",
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises UserError (CHECKPOINT) if it is missing or damaged."""
    path = folder / MANIFEST
    content = read_json_object(path, largest=LARGEST_MANIFEST)
    found = content.pop("sha256", None)
    files = content.get("files")
    if found != _hash(content) or not isinstance(files, dict):
        raise UserError(
            f"{path} is damaged", why="its SHA-256 does not match", code=errors.CHECKPOINT
        )
    return content


def check_hashes(folder: Path, *names: str) -> set[str]:
    """Compare files, by default all, with the folder's manifest, and return their names.

    Raises UserError (CHECKPOINT).
    """
    faults = damage(folder, read_manifest(folder), names or None)
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
    """The fault of each file of a manifest as text; "" for an unchanged file.

    With `names`, only these files are checked.
    """
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
        else f"its {found['bytes']:,} bytes have changed: the SHA-256 does not match"
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
