"""One child process: it is sent a request, and answers in frames; it has limits, and its last words are kept.

What is run apart in this way cannot take the caller with it: a crash, a leak or an endless loop ends the child alone.
The caller takes the child with it, however it ends: the child's standard input stays open as long as the caller lives,
and its end ends the child. Used for trials (`ask`, `answer`) and for code of others (`Child`, `Frames`).

A frame is a line of JSON and behind it raw bytes. The line holds their number and a token that only the request has
told: what code of others writes to the pipe by accident is no frame. Standard library only.

`python -m hectogpt.process MODULE` is the child's side: it watches over the caller, and runs the module.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

_ROOT = Path(__file__).resolve().parents[1]  # the child imports the same files as the caller
LAST_WORDS = 100_000  # bytes that are kept of what a child writes beside its answer
FRAME_BYTES = 64 << 20  # the largest body of a frame that is believed
_requests: SimpleQueue[bytes] = SimpleQueue()  # in the child: the line that it was sent

# --- the caller's side ------------------------------------------------------------------------------------------------


class CancelledError(Exception):
    """A child was killed because its caller asked for it."""


@dataclass(frozen=True)
class Outcome:
    """How a child ended that was asked. error: None if it ended well, else in a few words how ("exit code 1",
    "SIGKILL", a time-out). last_words: the end of what it wrote beside its answer."""

    error: str | None
    last_words: str


def ask(
    module: str,
    request: dict[str, Any],
    on_message: Callable[[dict[str, Any]], None],
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    cancelled: threading.Event | None = None,
) -> Outcome:
    """Run `python -m module`, which calls `answer`, with this request, and pass on each message of its reply.

    timeout: seconds after which the child is killed. environment: variables for it beside this process's. cancelled:
    once set, the child is killed and CancelledError is raised. The child is killed as well when this function is left
    by an exception (Ctrl-C, an error in on_message), and ends when this process dies; with it those that it has
    started.
    """
    child = Child(module, environment={**os.environ, **(environment or {})})
    total = math.inf if timeout is None else timeout
    ending = child.listen(
        request, lambda header, body: on_message(json.loads(body)), total_seconds=total, cancelled=cancelled
    )
    if ending.how == "cancelled":
        raise CancelledError
    error = None if ending.code == 0 else f"exit code {ending.code}"
    if ending.how == "late":
        error = f"it was stopped after {timeout:g} s"
    elif ending.code is not None and ending.code < 0:
        error = signal.Signals(-ending.code).name
    return Outcome(error, ending.last_words)


@dataclass(frozen=True)
class Ending:
    """How a child ended. how: "done" (it sent its last frame), "late" (silent for too long, or too long in all),
    "flood" (it printed too much), "cancelled", "broken" (rubbish came), or "ended" (before its last frame).
    code: its exit code, minus a signal's number, if it ended by itself. last_words: the end of what it printed."""

    how: str
    code: int | None
    last_words: str


class Child:
    """`python -m module` in `folder`, started and waiting for its request. environment: its variables, all of them. It
    ends when this process does."""

    def __init__(self, module: str, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        path = [str(_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        self._asked = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hectogpt.process", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**environment, "PYTHONPATH": os.pathsep.join(path)},
            start_new_session=True,  # Ctrl-C reaches the caller alone, which ends the child
        )

    def listen(
        self,
        request: dict[str, Any],
        on_frame: Callable[[dict[str, Any], bytes], None],
        *,
        first_seconds: float = math.inf,
        seconds: float = math.inf,
        total_seconds: float = math.inf,
        output_bytes: int = sys.maxsize,
        cancelled: threading.Event | None = None,
    ) -> Ending:
        """Send the request, pass on each frame until the one with {"done": true} or the child's end, then end it with
        all that it has started; an exception ends it too.

        first_seconds, seconds: the longest silence before the first frame and after it. output_bytes: what it may
        print. cancelled: once set, ends the child.
        """
        child, self._asked = self._process, True
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        begun, token = time.monotonic(), secrets.token_hex(16)
        watch = _Watch(child, begun + first_seconds, begun + total_seconds, cancelled)
        printed = _Printed(child.stderr, output_bytes, watch)
        how = "ended"
        try:
            with suppress(BrokenPipeError):  # it ended before it read; the exit code tells
                child.stdin.write(json.dumps(request | {"token": token}, allow_nan=False).encode() + b"\n")
                child.stdin.flush()  # and stays open: its end would tell that this process has died
            while how == "ended":
                try:
                    frame = read_frame(child.stdout, token)
                except (ValueError, RecursionError):
                    how = "broken"
                    break
                if frame is None:
                    break
                watch.deadline = time.monotonic() + seconds
                if frame[0].get("done") is True:
                    how = "done"
                else:
                    on_frame(*frame)
            if how == "ended":
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=5)
        finally:
            watch.stop()
            code = self.end()
            printed.thread.join(timeout=5)
        return Ending(watch.why or how, None if watch.why else code, printed.text())

    def is_alive(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def end(self) -> int | None:
        """End it, with processes that it has left behind. Returns the exit code that it had by then."""
        child = self._process
        code = child.poll()
        kill(child)
        child.wait()
        for stream in (child.stdout, child.stdin, None if self._asked else child.stderr):  # _Printed closes the last
            with suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()
        return code


def kill(child: subprocess.Popen[Any]) -> None:
    """End it with what it has started, which may hold its output open. The child leads a group of its own."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()


def read_frame(stream: IO[bytes], token: str) -> tuple[dict[str, Any], bytes] | None:
    """A header and its body; None at the end of the stream. Raises ValueError or RecursionError for what is no frame,
    or lacks the token."""
    line = stream.readline(1 << 20)
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    size = header.get("bytes", 0) if isinstance(header, dict) and header.pop("token", None) == token else -1
    if not isinstance(size, int) or not 0 <= size <= FRAME_BYTES:
        raise ValueError("not a frame")
    body = stream.read(size)
    return (header, body) if len(body) == size else None


class _Watch:
    """A thread that kills the child at its deadline. why: "late", "flood" or "cancelled" if it was killed for that."""

    def __init__(
        self, child: subprocess.Popen[Any], deadline: float, last: float, cancelled: threading.Event | None
    ) -> None:
        self.child, self.deadline, self.last, self.why, self.cancelled = child, deadline, last, "", cancelled
        self._over = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            if time.monotonic() > min(self.deadline, self.last):
                self.kill("late")
            if self.cancelled is not None and self.cancelled.is_set():
                self.kill("cancelled")

    def kill(self, why: str) -> None:
        if not self._over.is_set():
            self.why = self.why or why
            self._over.set()
            kill(self.child)

    def stop(self) -> None:
        self._over.set()


class _Printed:
    """A thread that reads what the child prints, keeps the end of it, and has the child killed if it is too much."""

    def __init__(self, stream: IO[bytes], limit: int, watch: _Watch) -> None:
        self.stream, self.limit, self.watch, self.kept = stream, limit, watch, b""
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        count = 0
        with suppress(OSError, ValueError), self.stream:
            while data := os.read(self.stream.fileno(), 1 << 16):
                count += len(data)
                self.kept = (self.kept + data)[-LAST_WORDS:]
                if count > self.limit:
                    self.watch.kill("flood")

    def text(self) -> str:
        return self.kept.decode("utf-8", errors="replace").strip()


# --- the child's side -------------------------------------------------------------------------------------------------


class Frames:
    """The child's answers. Made before the module runs: from then on standard output is standard error, for every
    library, and only this object can answer."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._file = os.fdopen(os.dup(1), "wb")  # no process inherits this descriptor
        os.dup2(2, 1)
        self._owner, self._token = os.getpid(), ""

    def receive(self) -> dict[str, Any]:
        """The request. Before it nothing can be sent."""
        request: dict[str, Any] = json.loads(_requests.get())
        self._token = request.pop("token")
        return request

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send one frame. A copy of this process, forked by the code of others, ends instead."""
        if os.getpid() != self._owner:
            os._exit(0)
        line = json.dumps({**header, "bytes": len(body), "token": self._token}, allow_nan=False).encode()
        self._file.write(line + b"\n" + body)
        self._file.flush()

    def done(self) -> None:
        """Send the last frame, and end this process at once."""
        self.send({"done": True})
        os._exit(0)


_frames: list[Frames] = []  # the one of this process, if it is a child


def frames() -> Frames:
    """What this process, a child, answers with."""
    return _frames[0]


def answer(reply: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]) -> None:
    """Send each message of the reply to the request that `ask` sent."""
    for message in reply(frames().receive()):
        frames().send({}, json.dumps(message, allow_nan=False).encode())


def request() -> bytes:
    """In the child of a feed: the next lines that it is fed."""
    return _requests.get()


def serve(module: str, framed: bool = True) -> None:
    """Run the module as a program, and end with all that it has started when the caller dies."""
    if framed:
        _frames.append(Frames())
    pipe = os.dup(0)  # a file descriptor that no process inherits which the module may start
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # code that reads standard input finds it empty, and does not wait
    os.close(nothing)
    threading.Thread(target=_watch_caller, args=(pipe,), daemon=True).start()
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _watch_caller(pipe: int) -> None:
    """Read the request; then wait for the end of the pipe, which only the caller's end closes."""
    line = b""
    while data := os.read(pipe, 1 << 16):
        line += data
        if line.endswith(b"\n"):
            _requests.put(line)
            line = b""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        with suppress(OSError):  # an audit hook may forbid it
            os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    from hectogpt import process  # this file a second time, as the module that `answer` is called in

    process.serve(sys.argv[1], "lines" not in sys.argv)
