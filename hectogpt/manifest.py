"""manifest.json: sizes and SHA-256 of the files of a folder, so that damage is found before it is used.

File formats do not notice a flipped bit or a page of zeros in their data. The manifest does, and it has a hash of its
own. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import sha256_of, write_atomic
from hectogpt.json_files import read_json_object

MANIFEST = "manifest.json"
LARGEST = 64 << 20  # bytes; the manifest of a checkpoint names every tensor


def write_manifest(folder: Path, names: Iterable[str], facts: dict[str, Any]) -> None:
    """Write the manifest of these files of the folder, with `facts` beside their hashes. The files are on disk already.

    Raises OSError if a file cannot be read, UserError (STORAGE) if the manifest cannot be written.
    """
    paths = {name: folder / name for name in names}
    files = {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in paths.items()}
    write_atomic(folder / MANIFEST, _sealed(facts | {"files": files}))


def narrow_manifest(folder: Path, names: Iterable[str]) -> None:
    """Take all other files out of a manifest: they are about to change. The hashes of these stay as they are, for the
    files may have been damaged since. A manifest that is missing or damaged itself is left alone.

    Raises UserError (STORAGE) if it cannot be written.
    """
    try:
        content = read_manifest(folder)
    except UserError:
        return
    content["files"] = {name: content["files"][name] for name in names if name in content["files"]}
    write_atomic(folder / MANIFEST, _sealed(content))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises UserError (CHECKPOINT) if there is none, or if it is damaged itself."""
    path = folder / MANIFEST
    content = read_json_object(path, largest=LARGEST)
    found = content.pop("sha256", None)
    files = content.get("files")
    if found != _hash(content) or not isinstance(files, dict):
        raise UserError(f"{path} is damaged", why="its SHA-256 is another one", code=errors.CHECKPOINT)
    return content


def damage(folder: Path, manifest: dict[str, Any], names: Iterable[str] | None = None) -> list[str]:
    """What is wrong with the files of a manifest (with these, if it names them), in words; [] if all is well."""
    files = manifest["files"]
    wanted = list(files) if names is None else [name for name in names if name in files]
    return [f"{folder / name}: {fault}" for name in wanted if (fault := _fault(folder, name, files[name]))]


def _fault(folder: Path, name: str, expected: Any) -> str:
    path = folder / name
    if path.parent != folder or name in ("", ".", "..") or not isinstance(expected, dict):
        return "the manifest does not say how it should be"
    try:
        if not path.is_file():
            return "it is missing" if not path.exists() else "it is not a regular file"
        size = path.stat().st_size
        if size != expected.get("bytes"):
            return f"it has {size:,} bytes, not {expected.get('bytes')}"
        is_same = sha256_of(path) == expected.get("sha256")
        return "" if is_same else "its content has changed: its SHA-256 is another one"
    except OSError as error:
        return error.strerror or str(error)


def _sealed(content: dict[str, Any]) -> str:
    return json.dumps(content | {"sha256": _hash(content)}, indent=1, allow_nan=False) + "\n"


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
