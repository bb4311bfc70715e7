"""Atomic writes, files from others, locks and the cache folder.

No other module replaces, syncs or locks files. A folder may come from somebody else, so nothing in
it is opened through a link, and nothing that is not a regular file: a link could lead to one of
the user's own files, and a pipe might never end. `regular` is the one place of this rule.

This module uses only the standard library. Errors of the operating system are passed on unchanged
unless a function says otherwise, because the caller knows what the file was for.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path

from hectogpt import errors
from hectogpt.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no flock: renames alone keep files whole there
    fcntl = None  # type: ignore[assignment]


def cache_dir(chosen: Path | str | None = None) -> Path:
    """The cache folder: `chosen`, $HECTOGPT_CACHE, $XDG_CACHE_HOME/hectogpt or ~/.cache/hectogpt.

    A relative or empty $XDG_CACHE_HOME is ignored, as its specification says. Raises UserError
    (STORAGE) for a user without a home folder.
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
    """Everything below a folder that is neither a file nor a folder, and what it is instead.

    No other process should write there meanwhile.
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
    the block raises, nothing is left of the new file. It gets the permissions of the user's umask.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # a link of this name would be written through
        yield temporary
        allow_others(temporary)
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before it is what matters
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


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, to which several processes may append at the same time.

    The file is locked meanwhile, and the line is on disk when this returns. A last line without
    its line end is removed if it is incomplete, as a killed process may leave it; a complete JSON
    object, as an editor may leave it, gets its line end. Raises OSError.
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
        # Opened for appending: lands at the end in any case.
        file.write(b"\n" * whole + line.encode("utf-8") + b"\n")
        file.flush()
        sync(file.fileno())
    if not content:  # the name may be new
        sync_folder(path.parent)


def is_whole_object(line: bytes) -> bool:
    """True if a line is a complete JSON object; the beginning of one never is."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk on which `folder` is, or would be.

    Raises OSError, also if writing is not allowed there: a read-only disk is not full.
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
    """Make new names in `folder` durable, where folders can be synced.

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
            # Others tell that folders cannot be synced here.
            raise


def check_free(
    folder: Path, may_go: Callable[[list[str]], bool] = lambda names: False, fix: str = ""
) -> None:
    """Refuse to write to an existing folder that is not empty. Raises UserError.

    Args:
        folder: the folder.
        may_go: returns True for a list of names that may be replaced.
        fix: what the error proposes.
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

    The files are then on disk. If the block raises, nothing is left of the new folder. If the
    process is killed, there is the old folder, the new one or, for an instant, neither. Raises
    OSError.

    Args:
        folder: the folder to replace; it need not exist.
        check: called before the old folder is removed; raises an error if that holds something
            that must stay.
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
    """Remove a folder such that nobody ever finds half of it under its name.

    Raises OSError if it cannot be renamed.
    """
    retired = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    folder.rename(retired)
    shutil.rmtree(retired, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left of new and old versions of `folder`.

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
        what: what its holder is doing, for the message.
        patience: seconds to wait for another holder before UserError (LOCKED) is raised.

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
                continue  # the holder before has removed the file: lock the one that is there now
            if held:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
                file.flush()
            try:
                yield held
            finally:
                with contextlib.suppress(OSError):  # a lock file that stays locks nothing
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
    """True if the open file is still the one with this name."""
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
