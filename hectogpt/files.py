"""Atomic writes, files from others, their JSON and hashes, locks and the cache folder.

No other module replaces, syncs or locks files. A folder may come from somebody else, so links
are not followed there, and only regular files are opened: a link could lead to one of the user's
own files, and a pipe might never end. `regular` is the only place with this rule.

This module uses only the standard library. Errors of the operating system are passed on unchanged
unless a function says otherwise, because the caller knows what the file was for.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.errors import CheckpointError, Text, UserError

try:
    import fcntl
except ImportError:  # Windows has no flock: only renames protect files there
    fcntl = None  # type: ignore[assignment]


def cache_dir(chosen: Path | str | None = None) -> Path:
    """The cache folder: `chosen`, $HECTOGPT_CACHE, $XDG_CACHE_HOME/hectogpt or ~/.cache/hectogpt.

    A relative or empty $XDG_CACHE_HOME is ignored, as the specification of that variable says.
    Raises UserError (STORAGE) for a user without a home folder.
    """
    chosen = chosen or os.environ.get("HECTOGPT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "hectogpt"
    except RuntimeError as error:
        raise UserError(
            "there is no folder for the cache",
            why=str(error),
            fix="HECTOGPT_CACHE=FOLDER",
            code=errors.STORAGE,
        ) from None


LINK = "it is a link, and links are not followed here"
NOT_REGULAR = "it is not a regular file"
_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # Windows has neither


def regular(path: str, flags: int) -> int:
    """Open a regular file, as the opener in `open(..., opener=regular)`.

    Never waits for the other end of a pipe. Raises OSError for a link and for anything else that
    is not a regular file.
    """
    if os.path.islink(path):
        raise OSError(LINK)
    descriptor = os.open(path, flags | _SAFELY, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(NOT_REGULAR)
    return descriptor


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes. Raises OSError as `regular` does.

    The only links that are followed are those of a Hugging Face cache, from
    NAME/snapshots/REVISION/FILE to NAME/blobs/HASH.
    """
    real = Path(os.path.realpath(path))
    is_blob = real.parent == Path(os.path.realpath(path.parent)).parent.parent / "blobs"
    return open(real if is_blob else path, "rb", opener=regular)


def odd_entries(folder: Path) -> dict[Path, str]:
    """Everything below a folder that is neither a regular file nor a folder, each with the reason.

    No other process should write there at the same time.
    """
    links = {path: path.is_symlink() for path in folder.rglob("*")}
    return {
        path: LINK if is_link else NOT_REGULAR
        for path, is_link in links.items()
        if is_link or not (path.is_file() or path.is_dir())
    }


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context manager: a temporary path to write to, which replaces `path` in one step at the end.

    After the block the new file is on disk, so a power cut leaves the old file or the new one. If
    the block raises an error, the new file is removed. The file gets the permissions of the user's
    umask.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # a link of this name would be followed
        yield temporary
        allow_others(temporary)
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the earlier error is the one to report
            temporary.unlink(missing_ok=True)


def allow_others(path: Path) -> None:
    """Give a file the permissions of the user's umask. Raises OSError.

    Some libraries create files that only their owner can read.
    """
    os.umask(umask := os.umask(0))
    path.chmod(0o666 & ~umask)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file in one step, so that a reader never sees half of it.

    Raises UserError (STORAGE).
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with errors.writing(path), replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    """Replace a file with a JSON object, as `write_atomic` does."""
    text = json.dumps(content, indent=indent, allow_nan=False)
    write_atomic(path, text + "\n")


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, to which several processes may append at the same time.

    The file is locked meanwhile, and the line is on disk when this returns. A last line without a
    line end is removed, because a killed process may have left it incomplete. If it is a complete
    JSON object, as an editor may leave it, it gets a line end instead. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", opener=regular) as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.read()
        end = content.rfind(b"\n") + 1
        whole = is_whole_object(content[end:])
        if not whole:
            file.truncate(end)
        # The file is open for appending, so this is written at its end.
        file.write(b"\n" * whole + line.encode("utf-8") + b"\n")
        file.flush()
        sync(file.fileno())
    if not content:  # the file may be new
        sync_folder(path.parent)


def is_whole_object(line: bytes) -> bool:
    """True if a line is a complete JSON object; the beginning of one never is."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk on which `folder` is, or would be.

    Raises OSError, including when writing is not allowed there: read-only is not the same as full.
    """
    nearest = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir()
    )
    if not os.access(nearest, os.W_OK):
        raise OSError(f"{nearest} cannot be written")
    return shutil.disk_usage(nearest).free


def sync(descriptor: int) -> None:
    """Wait until the content of an open file is on disk."""
    os.fsync(descriptor)


def sync_file(path: Path) -> None:
    """Wait until the content of a closed file is on disk. Raises OSError."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until new names in `folder` are on disk, where folders can be synced.

    Raises OSError if the disk fails.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (
            errno.EIO,
            errno.ENOSPC,
            errno.EDQUOT,
        ):
            # All other errors mean that folders cannot be synced here.
            raise


def check_free(
    folder: Path, may_go: Callable[[list[str]], bool] = lambda names: False, fix: Text = ""
) -> None:
    """Check that `folder` is new, empty or may be replaced. Raises UserError.

    Args:
        folder: the folder.
        may_go: returns True if a folder with these names in it may be replaced.
        fix: the fix in the error.
    """
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    if not os.path.lexists(folder) or (folder.is_dir() and (not names or may_go(names))):
        return
    why = f"it holds {', '.join(names[:8])}" if names else "it is not a folder"
    fix = fix or "name another folder"
    raise UserError(
        f"{folder} is not an empty folder", why=why, fix=fix, kept="what is there, untouched"
    )


@contextlib.contextmanager
def replacing_folder(folder: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Context manager: a new folder to write files to, which replaces `folder` at the end.

    The files are then on disk. If the block raises an error, the new folder is removed. If the
    process is killed, it leaves the old folder, the new one or, between two renames, neither.
    Raises OSError.

    Args:
        folder: the folder to replace; it need not exist.
        check: called before the old folder is removed; raises an error if that folder
            must stay.
    """
    new, old = (
        folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("new", "old")
    )
    try:
        new.mkdir(parents=True)
        yield new
        for path in new.iterdir():
            allow_others(path)
            sync_file(path)
        sync_folder(new)
        check()
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first, so it is never half removed under its own name.

    Raises OSError if it cannot be renamed.
    """
    retired = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    folder.rename(retired)
    shutil.rmtree(retired, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders next to `folder` that killed processes have left.

    The caller holds the folder's lock.
    """
    for kind in ("new", "old"):
        for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.{kind}-*"):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def lock(path: Path, folder: Path, what: str, patience: float = 0.0) -> Iterator[bool]:
    """Context manager: hold a folder's lock file, and remove it at the end.

    Yields False if the file system has no locks. The kernel frees the lock when its holder dies,
    so it is never stale.

    Args:
        path: the lock file.
        folder: the folder, for the message.
        what: what the holder of the lock is doing, for the message.
        patience: seconds to wait for the holder before UserError (LOCKED) is raised.

    Raises OSError if the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    while True:
        with open(path, "a+b", opener=regular) as file:
            try:
                if held := fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() <= deadline:
                    time.sleep(0.05)
                    continue
                holder = os.pread(file.fileno(), 200, 0).decode("utf-8", errors="replace")
                raise UserError(
                    f"{folder} is in use",
                    why=f"{holder or 'another process'} is {what}",
                    fix="wait for it or stop it, or name another folder",
                    kept="what is in it, untouched",
                    code=errors.LOCKED,
                ) from None
            except OSError:
                held = False
            if held and not _is_still(file.fileno(), path):
                continue  # the previous holder removed the file: lock the one that is there now
            if held:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
                file.flush()
            try:
                yield held
            finally:
                with contextlib.suppress(OSError):  # a lock file that remains locks nothing
                    path.unlink(missing_ok=True)
            return


def is_locked(path: Path) -> bool:
    """True if a process holds the lock file `path`. False where that cannot be determined."""
    try:
        with open_regular(path) as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _is_still(descriptor: int, path: Path) -> bool:
    """True if the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def code_hash(folders: Iterable[Path]) -> str:
    """The first digits of a SHA-256 over the Python, C++ and TOML files below these folders.

    It depends on their names and contents.
    """
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".toml", ".cpp", ".h"):
                name = path.relative_to(folder).as_posix().encode()
                found.update(name + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


# --- JSON that somebody else may have written
#
# Only files up to a limit are read, so that reading never runs out of stack or memory.

# Bytes of JSON; our own files have a few thousand, GPT-2's tokenizer has 1.4 million.
LARGEST = 16 << 20
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 64 << 20  # bytes; a checkpoint's manifest names every tensor
DEEPEST = 50  # levels of nesting; our own files have about six


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """All bytes of a regular file.

    Raises OSError, including for a file of more than `largest` bytes.
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
        fix, code: as in UserError.

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
            raise ValueError(f"the value {literal[:40]} is not a JSON number")
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


# --- manifest.json: unlike file formats, it detects flipped bits, even in itself


def write_manifest(folder: Path, names: Iterable[str], facts: dict[str, Any]) -> None:
    """Write the manifest of these files, with `facts` added to their hashes.

    The files must be on disk already. Raises OSError if a file cannot be read, UserError (STORAGE)
    if the manifest cannot be written.
    """
    content = facts | {"files": {name: _describe(folder / name) for name in names}}
    write_json(folder / MANIFEST, content | {"sha256": _hash(content)}, indent=1)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises UserError (CHECKPOINT) if it is missing or damaged."""
    path = folder / MANIFEST
    content = read_json_object(path, largest=LARGEST_MANIFEST)
    found = content.pop("sha256", None)
    files = content.get("files")
    if found != _hash(content) or not isinstance(files, dict):
        raise CheckpointError(f"{path} is damaged", why="its SHA-256 does not match")
    return content


def check_hashes(folder: Path, *names: str) -> set[str]:
    """Compare files, by default all of them, with the folder's manifest, and return their names.

    Raises UserError (CHECKPOINT).
    """
    faults = damage(folder, read_manifest(folder), names or None)
    for name, fault in faults.items():
        if fault:
            fix = (
                f"a copy of the file as it was; `hectogpt check {folder}` says what can be "
                "restored"
            )
            raise CheckpointError(f"{folder / name} is damaged", why=fault, fix=fix)
    return set(faults)


def damage(
    folder: Path, manifest: dict[str, Any], names: Iterable[str] | None = None
) -> dict[str, str]:
    """Describe the fault of each file of a manifest; "" for an unchanged file.

    With `names`, only these files are checked.
    """
    files = manifest["files"]
    wanted = [name for name in (files if names is None else names) if name in files]
    return {name: _fault(folder / Path(name).name, files[name]) for name in wanted}


def _fault(path: Path, expected: Any) -> str:
    try:
        found = _describe(path)
    except (OSError, ValueError) as error:  # ValueError: the name is not valid for a file
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
