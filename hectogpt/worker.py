"""A child process that is asked one thing as JSON on its standard input and answers in lines of JSON on its output.

What is run apart in this way cannot take the caller with it: a crash, a leak or an endless loop ends the child alone.
The caller takes the child with it, however it ends: the child's standard input stays open as long as the caller lives,
and its end ends the child. Used for the trials of a comparison; the child's module calls `answer`.

`python -m hectogpt.worker MODULE` is the child's side: it watches over the caller, and runs the module.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]  # the child imports the same files as the caller
LAST_WORDS = 100_000  # bytes that are kept of what a child writes beside its answer
_requests: SimpleQueue[bytes] = SimpleQueue()  # in the child: the line that it was sent


@dataclass(frozen=True)
class Outcome:
    """How a child ended. error: None if it ended well, else in a few words how ("exit code 1", "SIGKILL", a time-out).
    last_words: the end of what it wrote to standard error, and to standard output beside its answer."""

    error: str | None
    last_words: str


def ask(
    module: str, request: dict[str, Any], on_message: Callable[[dict[str, Any]], None], timeout: float | None = None
) -> Outcome:
    """Run `python -m module` with `request` on its standard input and pass on each message that it prints.

    timeout: seconds after which the child is killed. The child is killed as well when this function is left by an
    exception (Ctrl-C, an error in on_message), and ends when this process dies. Processes that the child has started
    are killed with it. Lines that are not JSON objects are the child's own output: they are kept with its last words.
    """
    with tempfile.TemporaryFile() as complaints:
        child = subprocess.Popen(
            [sys.executable, "-m", "hectogpt.worker", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
            start_new_session=True,  # Ctrl-C reaches the caller alone, which ends the child
        )
        late = threading.Event()

        def stop() -> None:
            late.set()
            _kill(child)

        timer = None if timeout is None else threading.Timer(timeout, stop)
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            if timer:
                timer.start()
            with suppress(BrokenPipeError):  # it ended before it read; the exit code tells
                child.stdin.write(json.dumps(request, allow_nan=False) + "\n")
                child.stdin.flush()  # and stays open: its end would tell that this process has died
            for line in child.stdout:
                message = _message(line)
                if message is None:
                    os.write(complaints.fileno(), line.encode("utf-8"))  # the child writes behind it: one position
                else:
                    on_message(message)
            code = child.wait()
        finally:
            if timer:
                timer.cancel()
            if child.poll() is None:
                _kill(child)
                child.wait()
            child.stdout.close()
            with suppress(BrokenPipeError):
                child.stdin.close()
        complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - LAST_WORDS))
        last_words = complaints.read().decode("utf-8", errors="replace").strip()
    if late.is_set():
        return Outcome(f"it was stopped after {timeout:g} s", last_words)
    if code == 0:
        return Outcome(None, last_words)
    return Outcome(signal.Signals(-code).name if code < 0 else f"exit code {code}", last_words)


def _kill(child: subprocess.Popen[str]) -> None:
    """With what it has started, which may hold its output open. The child leads a group of its own."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()


def _message(line: str) -> dict[str, Any] | None:
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
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    from hectogpt import worker  # this file a second time, as the module that `answer` is called in

    worker.serve(sys.argv[1])
