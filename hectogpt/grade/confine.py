"""What keeps a submission's code in: Landlock where the kernel has it, and an audit hook of Python."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

NETWORK = ("connect", "getaddrinfo", "gethostbyname", "bind", "sendto", "sendmsg")
NETWORK_EVENTS = {f"socket.{name}" for name in NETWORK}
PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"}
ONE_PATH = {f"os.{name}" for name in ("remove", "rmdir", "truncate", "chmod", "chown", "mkdir", "utime", "setxattr")}
ONE_PATH |= {"shutil.rmtree", "sqlite3.connect"}
TWO_PATHS = {"os.rename", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Landlock, linux/landlock.h: rights to write, and the calls' numbers, which are the same on all processors.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF, NO_NEW_PRIVILEGES = 444, 445, 446, 38
WRITE_FILE, TRUNCATE, REFER = 1 << 1, 1 << 14, 1 << 13
CHANGES = WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # remove and make files of every kind


def shut_in(folder: Path) -> None:
    """From now on: no network, no other programs, no changes of files outside the folder. Neither can be taken back.
    Code that works around Python is stopped by Landlock alone, and only from changing files."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            write_only_below(folder)
    inside, own = os.path.realpath(folder), os.getpid()
    busy = threading.local()

    def outside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        real = os.path.realpath(os.fsdecode(path))
        return not (real == inside or real.startswith(inside + os.sep) or real == os.devnull or path == ":memory:")

    def changed(event: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The paths that an event changes; a folder's descriptor beside them counts as one outside."""
        if event == "open":
            return arguments[:1] if isinstance(arguments[2], int) and arguments[2] & WRITING else ()
        if event in TWO_PATHS:
            elsewhere = any(isinstance(one, int) and one >= 0 for one in arguments[2:])
            return ("/",) if elsewhere else arguments[int(event == "os.symlink") : 2]
        return arguments[:1] if event in ONE_PATH else ()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in NETWORK_EVENTS:
            raise PermissionError("no network while grading")
        if event in PROGRAMS:
            raise PermissionError("no other programs while grading")
        if event in ("os.kill", "os.killpg") and arguments[0] != own:
            raise PermissionError("no signals to others while grading")
        if not getattr(busy, "now", False) and (paths := changed(event, arguments)):
            busy.now = True
            try:
                if any(outside(path) for path in paths):
                    raise PermissionError("no changes outside the submission's folder while grading")
            finally:
                busy.now = False

    sys.addaudithook(hook)


def write_only_below(folder: Path) -> None:
    """Let this thread, and all that it starts, change files below the folder alone, and shared memory. Raises OSError
    where the kernel has no Landlock."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: Any) -> int:
        result: int = libc.syscall(ctypes.c_long(number), *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), "Landlock")
        return result

    version = call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    rights = CHANGES | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    handled = struct.pack("=Q", rights)
    ruleset = call(CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), ctypes.c_uint32(0))
    try:
        for path, allowed in ((folder, rights), ("/dev/shm", rights), ("/dev/null", rights & (WRITE_FILE | TRUNCATE))):
            with suppress(FileNotFoundError):
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                rule = struct.pack("=Qi", allowed, place)
                call(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0))
                os.close(place)
        if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no_new_privs")
        call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
