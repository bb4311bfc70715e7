"""A fork server: torch is loaded once, then each try is a forked child, which takes milliseconds and may die.

torch stays at one thread before any fork: a pool of threads would not be there in the children. The children leave by
os._exit, so nothing of the parent's is run or written twice.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, TypeVar

from hectogpt import errors
from hectogpt.cli import perform

T = TypeVar("T")
WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LIMIT = 300.0  # seconds after which a child hangs
HUNG = 1000  # the code of a child that was ended because it hung


@dataclass(frozen=True)
class Line:
    """One promise: how often it was tried, what went wrong, in words, and in how many seconds."""

    promise: str
    tries: int
    faults: list[str]
    seconds: float


@dataclass(frozen=True)
class Ended:
    """How a child ended. code: as a command's exit code, -N for signal N, HUNG. said: what it wrote to stdout and
    stderr. value: what its work returned, plain values."""

    code: int
    said: str
    value: Any = None

    @property
    def killed(self) -> bool:
        """Whether it was killed, by itself or by us."""
        return self.code == -signal.SIGKILL


class Child:
    """A forked process that does one thing. Errors end it as they end a command, with a message and an exit code."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._answer: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        sys.stdout.flush()
        sys.stderr.flush()
        self.begun = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._do(work)

    def _do(self, work: Callable[[], Any]) -> None:
        def answer() -> None:
            self._answer.write(json.dumps(work()).encode())
            self._answer.flush()

        code: object = errors.BUG
        try:
            os.dup2(self._said.fileno(), 1)
            os.dup2(self._said.fileno(), 2)
            sys.stdout, sys.stderr = (open(n, "w", 1, "utf-8", "replace", closefd=False) for n in (1, 2))  # noqa: SIM115
            perform(answer)
            code = 0
        except SystemExit as leaving:
            code = leaving.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else errors.BUG)

    def send(self, number: int) -> None:
        """Send a signal, if it is still there to get it."""
        os.kill(self.pid, number)  # a child that has ended keeps its number until it is waited for

    def wait(self, kill_after: float | None = None) -> Ended:
        """Wait for its end. kill_after: seconds after its start at which it gets SIGKILL."""
        until, sent = self.begun + (LIMIT if kill_after is None else kill_after), False
        while not (ended := os.waitpid(self.pid, 0 if sent else os.WNOHANG))[0]:
            time.sleep(0.0005)
            if time.monotonic() >= until:
                self.send(signal.SIGKILL)
                sent = True
        code = HUNG if sent and kill_after is None else os.waitstatus_to_exitcode(ended[1])
        texts = []
        for file in (self._said, self._answer):
            with file:
                file.seek(0)
                texts.append(file.read())
        value = json.loads(texts[1]) if code == 0 and texts[1] else None
        return Ended(code, texts[0].decode(errors="replace"), value)


def run(work: Callable[[], Any], kill_after: float | None = None) -> Ended:
    """Do the work in a child, and wait for its end."""
    return Child(work).wait(kill_after)


def values_of(works: Sequence[Callable[[], T]], kill_after: float | None = None) -> list[T]:
    """What these return, each in a child, all at the same time; plain values. Raises RuntimeError for one that does not
    end well."""
    ended = [child.wait(kill_after) for child in [Child(work) for work in works]]
    if failed := [one for one in ended if one.code != 0]:
        raise RuntimeError(f"a child of the proof ended with {failed[0].code}:\n{failed[0].said}")
    return [one.value for one in ended]


def value_of(work: Callable[[], T]) -> T:
    """What the work returns in a child."""
    return values_of([work])[0]


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def over(promise: str, work: Callable[[Any], list[str]], items: Sequence[Any]) -> Line:
    """The line of a promise that is tried on all items by WORKERS children, which fork children of their own. work:
    what went wrong with one, in words. Raises RuntimeError if a worker does not end well."""
    begun, workers = time.monotonic(), max(1, min(WORKERS, len(items)))

    def work_off(number: int) -> list[str]:
        return [f"{item}: {fault}" for item in items[number::workers] for fault in work(item)]

    if workers == 1:
        faults = work_off(0)
    else:
        parts = values_of([partial(work_off, number) for number in range(workers)], 3600)
        faults = [fault for part in parts for fault in part]
    return Line(promise, len(items), faults, time.monotonic() - begun)
