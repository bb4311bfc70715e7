"""A child process that receives requests and answers in frames, within limits.

A crash, a leak or an endless loop in the child harms only the child. The child ends when its
caller ends, for whatever reason: the child's standard input stays open only as long as the caller
lives. Children are used for trials, for the tests of a kit, and for untrusted code.

A frame is one line of JSON, followed by raw bytes. The line holds a message, the number of bytes,
and a token that only the requests contain, so accidental output of untrusted code is never taken
for a frame. This module uses only the standard library.

`python -m hectogpt.process MODULE` is the child's side: it watches the caller and runs the module.
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
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from hectogpt import sandbox
from hectogpt.sandbox import Policy

_ROOT = Path(__file__).resolve().parents[1]  # the child imports the same files as the caller
LAST_WORDS = 100_000  # bytes kept from the end of a child's output on stderr
MESSAGE_BYTES = 8 << 20
BODY_BYTES = 64 << 20  # a frame with a longer body is refused

# --- the caller's side


class CancelledError(Exception):
    """A child was killed because its caller asked for it."""


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    Attributes:
        how: "done" (it sent its last frame), "late" (silent for too long, or too slow in all),
            "flood" (it printed too much), "cancelled", "broken" (it sent something that is not a
            frame), or "ended" (it ended before its last frame).
        code: its exit code, or the negative number of the signal that killed it; None if this
            process ended it.
        last_words: the end of its output on stderr.
    """

    how: str
    code: int | None
    last_words: str

    @property
    def error(self) -> str | None:
        """A short reason, such as "exit code 1" or "SIGKILL"; None if it ended well."""
        if self.code is None:
            return "no answer in time" if self.how == "late" else self.how
        return (
            (signal.Signals(-self.code).name if self.code < 0 else f"exit code {self.code}")
            if self.code
            else None
        )


class Child:
    """A process `python -m module` in `folder`, waiting for its first request.

    It ends when this process does. Its answers can be read only once.

    Attributes:
        process: the process; for a sealed child, the program that holds the sandbox.
        ending: how it ended; None while it runs.
    """

    def __init__(
        self,
        module: str,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        policy: Policy | None = None,
    ) -> None:
        """Start the process.

        Args:
            module: the module to run.
            folder: its working folder.
            environment: all its environment variables; None takes those of this process.
            policy: the policy of the sandbox that it starts in, sealed where possible.
        """
        environment = os.environ if environment is None else environment
        path = [str(_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        plain = [sys.executable, "-m", "hectogpt.process", module]
        self.process = subprocess.Popen(
            plain if policy is None else sandbox.command(module, policy),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**environment, "PYTHONPATH": os.pathsep.join(path)},
            # With this, Ctrl-C reaches only the caller, which ends the child and its group.
            start_new_session=True,
        )
        self.ending: Ending | None = None
        self._token = secrets.token_hex(16)
        self._printed = b""
        self._killed_for = ""
        self._deadline = math.inf
        self._over = threading.Event()

    def send(self, request: dict[str, Any], body: bytes | memoryview = b"") -> None:
        """Send a request with raw bytes; `listen` sends the first one.

        Does nothing if the child has ended.
        """
        line = json.dumps(
            {"request": request, "bytes": len(body), "token": self._token}, allow_nan=False
        ).encode()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError, ValueError):
            # On these errors the child has ended or closed its input; its exit code says why.
            self.process.stdin.write(line + b"\n")
            self.process.stdin.write(body)
            # Keep stdin open: when it ends, the child concludes that this process has ended.
            self.process.stdin.flush()

    def listen(
        self,
        request: dict[str, Any],
        on_frame: Callable[[dict[str, Any], bytes], None],
        **limits: Any,
    ) -> Ending:
        """Call `on_frame` with each frame of the answer to `request` (see `frames`).

        Returns how the child ended.
        """
        with closing(self.frames(request, **limits)) as frames:
            for message, body in frames:
                on_frame(message, body)
        assert self.ending is not None
        return self.ending

    def frames(
        self,
        request: dict[str, Any],
        *,
        first_seconds: float = math.inf,
        seconds: float = math.inf,
        total_seconds: float = math.inf,
        output_bytes: int = sys.maxsize,
        body_bytes: int = BODY_BYTES,
        cancelled: Callable[[], bool] | None = None,
    ) -> Generator[tuple[dict[str, Any], bytes], None, None]:
        """Send the request, and yield each frame until {"done": true} or the end of the stream.

        Closing the generator ends the child and everything that it has started.

        Args:
            first_seconds, seconds: the longest silence before the first frame, and after each.
            total_seconds: the longest time in all.
            output_bytes: the most bytes that it may print.
            body_bytes: the largest body of a frame.
            cancelled: called now and then; the child is ended once it returns True.
        """
        child = self.process
        how = "ended"
        assert child.stdin is not None
        assert child.stdout is not None
        last = time.monotonic() + total_seconds
        self._deadline = time.monotonic() + first_seconds
        threading.Thread(target=self._watch, args=(last, cancelled), daemon=True).start()
        reader = threading.Thread(target=self._read_printed, args=(output_bytes,), daemon=True)
        reader.start()
        try:
            self.send(request)
            while (
                how == "ended"
                and (frame := read_frame(child.stdout, self._token, body_bytes)) is not None
            ):
                if frame[0].get("done") is True:
                    how = "done"
                else:
                    self._deadline = math.inf  # the caller's own work has no deadline
                    yield frame
                    self._deadline = time.monotonic() + seconds
            if how == "ended":
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=5)
        except BrokenFrameError:
            how = "broken"
        finally:
            self._over.set()
            code = child.poll()
            self._end_all()
            child.wait()
            for stream in (
                child.stdout,
                child.stdin,
            ):
                # If close() raises this error, the stream is closed all the same.
                with suppress(BrokenPipeError):
                    stream.close()
            reader.join(timeout=5)
            words = self._printed.decode("utf-8", errors="replace").strip()
            self.ending = Ending(
                self._killed_for or how, None if self._killed_for else code, words
            )

    def _watch(self, last: float, cancelled: Callable[[], bool] | None) -> None:
        """Run in a thread: end the child at its deadline, or when it is cancelled."""
        while not self._over.wait(0.05):
            if time.monotonic() > min(self._deadline, last):
                self._kill("late")
            elif cancelled is not None and cancelled():
                self._kill("cancelled")

    def _read_printed(self, limit: int) -> None:
        """Run in a thread: keep the end of what the child prints; end it if it prints too much."""
        count = 0
        stream = self.process.stderr
        assert stream is not None
        with suppress(OSError, ValueError), stream:
            while data := os.read(stream.fileno(), 1 << 16):
                count += len(data)
                self._printed = (self._printed + data)[-LAST_WORDS:]
                if count > limit:
                    self._kill("flood")

    def _kill(self, why: str) -> None:
        if not self._over.is_set():
            self._killed_for = why
            self._over.set()
            self._end_all()

    def _end_all(self) -> None:
        """End the child and its own children, which may hold its output open."""
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()


class BrokenFrameError(Exception):
    """The stream holds something that is not a frame."""


def read_frame(
    stream: IO[bytes], token: str, most: int = BODY_BYTES
) -> tuple[dict[str, Any], bytes] | None:
    """Read a message and its body. Returns None at the end of the stream.

    Args:
        stream: the pipe.
        token: the token that a frame must have.
        most: the largest body, in bytes.

    Raises BrokenFrameError for anything that is not a frame or lacks the token.
    """
    line = stream.readline(MESSAGE_BYTES)
    if not line.endswith(b"\n"):
        return None
    try:
        frame = json.loads(line)
    except (ValueError, RecursionError):
        raise BrokenFrameError from None
    if not isinstance(frame, dict) or frame.get("token") != token:
        raise BrokenFrameError
    message = frame.get("message")
    size = frame.get("bytes")
    if not isinstance(message, dict) or not isinstance(size, int) or not 0 <= size <= most:
        raise BrokenFrameError
    body = stream.read(size)
    return (message, body) if len(body) == size else None


# --- the child's side


class Frames:
    """The child's end of the connection: it receives requests and sends answers.

    It is created before the module runs. From then on, whatever any library prints to standard
    output goes to standard error, and only this object can answer.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        self._file = os.fdopen(os.dup(1), "wb")  # not inherited by any process
        os.dup2(2, 1)
        self._owner = os.getpid()
        self._token = ""
        self._received: SimpleQueue[tuple[dict[str, Any], bytes]] = SimpleQueue()
        self._pipe = os.dup(0)  # a descriptor that processes started by the module do not inherit
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)  # code that reads standard input finds it empty instead of waiting
        os.close(nothing)
        threading.Thread(target=self._watch_caller, daemon=True).start()

    def _watch_caller(self) -> None:
        """Read requests until the pipe ends, then end this process and everything it has started.

        The pipe ends only when the caller ends.
        """
        with suppress(OSError, ValueError), os.fdopen(self._pipe, "rb", closefd=False) as pipe:
            while line := pipe.readline():
                frame = json.loads(line)
                self._received.put((frame, pipe.read(frame["bytes"])))
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            with suppress(OSError):  # an audit hook may forbid it
                os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    def receive(self) -> dict[str, Any]:
        """Wait for the next request and return it. Nothing can be sent before the first one."""
        return self.receive_frame()[0]

    def receive_frame(self) -> tuple[dict[str, Any], bytes]:
        """Wait for the next request, and return it with its bytes."""
        frame, body = self._received.get()
        self._token = frame["token"]
        request: dict[str, Any] = frame["request"]
        return request, body

    def send(self, message: dict[str, Any], body: bytes | memoryview = b"") -> None:
        """Send one frame. In a fork of this process, made by untrusted code, exit instead."""
        if os.getpid() != self._owner:
            os._exit(0)
        frame = {"message": message, "bytes": len(body), "token": self._token}
        self._file.write(json.dumps(frame, allow_nan=False).encode() + b"\n")
        self._file.write(body)
        self._file.flush()

    def done(self) -> None:
        """Send the last frame and end this process at once."""
        self.send({"done": True})
        os._exit(0)


_frames: list[Frames] = []  # has one element if this process is a child


def frames() -> Frames:
    """The Frames of this process, which must be a child."""
    return _frames[0]


def answer(reply: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]) -> None:
    """Answer the caller's request with the messages of `reply`."""
    for message in reply(frames().receive()):
        frames().send(message)


def serve(module: str, policy: dict[str, Any] | None = None) -> None:
    """Run the module as a program. If the caller ends, this process and its children end too.

    Args:
        module: the module's name.
        policy: the fields of a Policy. It is applied before this process starts a second thread.
    """
    if policy is not None:
        Policy(**policy).keep_in()
    _frames.append(Frames())
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


# --- git


@dataclass(frozen=True)
class Revision:
    """The state of a git checkout; both fields are None outside one.

    Attributes:
        commit: the hash of the commit.
        dirty: True if files differ from the commit.
    """

    commit: str | None
    dirty: bool | None


def revision(folder: Path) -> Revision:
    """The revision of `folder`; only changes to files below it count."""
    git = ["git", "-C", str(folder)]
    with suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.check_output(
            [*git, "rev-parse", "HEAD"], text=True, stderr=subprocess.DEVNULL
        )
        return Revision(
            commit.strip(),
            bool(subprocess.check_output([*git, "status", "--porcelain", "--", "."])),
        )
    return Revision(None, None)


if __name__ == "__main__":
    # Import this file again, as the module in which `answer` finds the frames.
    from hectogpt import process

    process.serve(sys.argv[1])
