"""A child process that is asked one thing as JSON on its standard input and answers in lines of JSON on its output.

What is run apart in this way cannot take the caller with it: a crash, a leak or an endless loop ends the child alone.
The caller takes the child with it, however it ends: the child's standard input stays open as long as the caller lives,
and its end ends the child. Used for the trials of a comparison; the child's module calls `answer`.

`Child` is one that runs the code of others: its answers come as frames of raw bytes, what it prints is counted and
capped, and it is killed when it falls silent. `frames.Frames` is that child's side.

`python -m hectogpt.worker MODULE` is the child's side: it watches over the caller, and runs the module.
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
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from hectogpt import frames

_ROOT = Path(__file__).resolve().parents[1]  # the child imports the same files as the caller
LAST_WORDS = 100_000  # bytes that are kept of what a child writes beside its answer
_requests: SimpleQueue[bytes] = SimpleQueue()  # in the child: the line that it was sent


@dataclass(frozen=True)
class Outcome:
    """How a child ended. error: None if it ended well, else in a few words how ("exit code 1", "SIGKILL", a time-out).
    last_words: the end of what it wrote to standard error, and to standard output beside its answer."""

    error: str | None
    last_words: str


class CancelledError(Exception):
    """A child was killed because its caller asked for it."""


def ask(
    module: str,
    request: dict[str, Any],
    on_message: Callable[[dict[str, Any]], None],
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    cancelled: threading.Event | None = None,
) -> Outcome:
    """Run `python -m module` with `request` on its standard input and pass on each message that it prints.

    timeout: seconds after which the child is killed. environment: variables for it beside this process's. cancelled:
    once set, the child is killed and CancelledError is raised. The child is killed as well when this function is left
    by an exception (Ctrl-C, an error in on_message), and ends when this process dies; with it those that it has
    started. Lines that are not JSON objects are the child's own output: they are kept with its last words.
    """
    path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryFile() as complaints:
        child = subprocess.Popen(
            [sys.executable, "-m", "hectogpt.worker", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
            start_new_session=True,  # Ctrl-C reaches the caller alone, which ends the child
        )
        last = math.inf if timeout is None else time.monotonic() + timeout
        watch = None if timeout is None and cancelled is None else _Watch(child, math.inf, last, cancelled)
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it ended before it read; the exit code tells
                child.stdin.write(json.dumps(request, allow_nan=False) + "\n")
                child.stdin.flush()  # and stays open: its end would tell that this process has died
            for line in child.stdout:
                message = message_of(line)
                if message is None:
                    os.write(complaints.fileno(), line.encode("utf-8"))  # the child writes behind it: one position
                else:
                    on_message(message)
            code = child.wait()
        finally:
            if watch:
                watch.stop()
            if child.poll() is None:
                kill(child)
                child.wait()
            child.stdout.close()
            with suppress(BrokenPipeError):
                child.stdin.close()
        complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - LAST_WORDS))
        last_words = complaints.read().decode("utf-8", errors="replace").strip()
    if watch and watch.why == "cancelled":
        raise CancelledError
    if watch and watch.why:
        return Outcome(f"it was stopped after {timeout:g} s", last_words)
    if code == 0:
        return Outcome(None, last_words)
    return Outcome(signal.Signals(-code).name if code < 0 else f"exit code {code}", last_words)


def kill(child: subprocess.Popen[Any]) -> None:
    """End it with what it has started, which may hold its output open. The child leads a group of its own."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()


def message_of(line: str) -> dict[str, Any] | None:
    """The JSON object that a line is, if it is one."""
    with suppress(ValueError):
        message = json.loads(line)
        return message if isinstance(message, dict) else None
    return None


def answer(reply: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]) -> None:
    """The child's side: read the request, print each message of the reply as one line.

    While the reply is made, `print` goes to standard error, so that a user's own code cannot break the protocol.
    """
    request, lines = json.loads(_requests.get()), sys.stdout
    sys.stdout = sys.stderr
    try:
        for message in _checked(reply(request)):
            print(message, file=lines, flush=True)
    finally:
        sys.stdout = lines


def _checked(messages: Iterable[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        yield json.dumps(message, allow_nan=False)


# --- a child that runs the code of others -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """Another way to start a child, in a container say. start: a command line that runs `python -m hectogpt.worker
    MODULE` elsewhere and passes its three standard streams on. stop: one that ends whatever `start` leaves behind."""

    start: tuple[str, ...]
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Ending:
    """How such a child ended. how: "done" (it sent its last frame), "late" (silent for too long, or too long in all),
    "flood" (it printed too much), "cancelled", "broken" (rubbish came), or "ended" (before its last frame).
    code: its exit code, minus a signal's number, if it ended by itself. last_words: the end of what it printed."""

    how: str
    code: int | None
    last_words: str


class Child:
    """A child that runs the code of others: `python -m module` in `folder`, started and waiting for its request.

    environment: its variables, all of them. program: starts it in another way. It ends when this process does. Raises
    OSError for a program that is not there.
    """

    def __init__(
        self, module: str, folder: Path, environment: Mapping[str, str], program: Program | None = None
    ) -> None:
        self._program, self._asked = program, False
        self._process = subprocess.Popen(
            program.start if program else [sys.executable, "-m", "hectogpt.worker", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**environment, "PYTHONPATH": str(_ROOT)},
            start_new_session=True,
        )

    def listen(
        self,
        request: dict[str, Any],
        on_frame: Callable[[dict[str, Any], bytes], None],
        *,
        first_seconds: float,
        seconds: float,
        total_seconds: float,
        output_bytes: int,
        cancelled: threading.Event | None = None,
    ) -> Ending:
        """Ask it, pass on each frame that it sends until the one with {"done": true}, then end it with all that it has
        started; an exception ends it too.

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
            with suppress(BrokenPipeError):
                child.stdin.write(json.dumps(request | {"token": token}, allow_nan=False).encode() + b"\n")
                child.stdin.flush()
            while True:
                try:
                    frame = frames.read(child.stdout, token)
                except ValueError:
                    how = "broken"
                    break
                if frame is None:
                    break
                watch.deadline = time.monotonic() + seconds
                if frame[0].get("done") is True:
                    how = "done"
                    break
                on_frame(*frame)
            if how == "ended" or (self._program and how == "done"):  # a container is taken away by its program
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
        """End it, with processes that it has left behind. Returns the exit code that it had by then: containers tell a
        signal as 128 + its number."""
        child = self._process
        code = child.poll()
        kill(child)
        child.wait()
        if self._program:
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(self._program.stop, capture_output=True, timeout=30, check=False)
            code = 128 - code if code is not None and code > 128 else code
        for stream in (child.stdout, child.stdin, None if self._asked else child.stderr):  # _Printed closes the last
            with suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()
        return code


class _Watch:
    """A thread that kills the child at its deadline. why: "late" or "flood" if it was killed for that."""

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


def request() -> bytes:
    """In a child: the line that it was sent, or the next lines of those that it is fed."""
    return _requests.get()


def serve(module: str) -> None:
    """The child's side: run the module as a program, and end with all that it has started when the caller dies."""
    pipe = os.dup(0)  # a file descriptor that no process inherits which the module may start
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # code that reads standard input finds it empty, and does not wait
    os.close(nothing)
    threading.Thread(target=_watch, args=(pipe,), daemon=True).start()
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _watch(pipe: int) -> None:
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
    from hectogpt import worker  # this file a second time, as the module that `answer` is called in

    worker.serve(sys.argv[1])
