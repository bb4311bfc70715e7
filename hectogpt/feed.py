"""A child process that is told things and holds nobody up: lines of JSON through a queue, written by a thread.

The child's module calls `process.request` for the next lines. A child that fails or hangs
costs the caller nothing but the time that it grants at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from hectogpt import process

_ROOT = Path(__file__).resolve().parents[1]  # the child imports the same files as the caller


class Feed:
    """A child that runs `module` and is sent objects.

    on_message: is called, in another thread, with each line of JSON that the child prints. most: objects that wait at
    most. The child ends with this process. Raises OSError if it cannot be started.
    """

    def __init__(self, module: str, on_message: Callable[[dict[str, Any]], None], most: int = 10_000) -> None:
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  closed with the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hectogpt.process", module, "lines"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
            start_new_session=True,  # Ctrl-C reaches the caller alone
        )
        self._queue: Queue[bytes] = Queue(most)
        self._on_message = on_message
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def send(self, message: dict[str, Any]) -> bool:
        """Queue an object; False if the queue is full, and the object is left out. Returns at once."""
        try:
            self._queue.put_nowait(json.dumps(message, allow_nan=False).encode() + b"\n")
        except Full:
            return False
        return True

    def is_alive(self) -> bool:
        """Whether it runs, or has ended well."""
        return self._process.poll() in (None, 0)

    def end(self, seconds: float) -> bool:
        """Wait for its end, `seconds` at most, then take it away; False if it had not ended well by then."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        good = self._process.poll() == 0
        self.kill()
        return good

    def kill(self) -> None:
        """End it at once, with what it has started."""
        process.kill(self._process)
        self._process.wait()
        for thread in self._threads:
            thread.join(5)
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            with suppress(OSError):
                if stream is not None:
                    stream.close()

    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        with suppress(OSError, ValueError):
            self._complaints.seek(max(0, self._complaints.seek(0, os.SEEK_END) - process.LAST_WORDS))
            return self._complaints.read().decode("utf-8", errors="replace").strip()
        return ""

    def _write(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):
            while self._process.poll() is None:
                with suppress(Empty):
                    self._process.stdin.write(self._queue.get(timeout=0.2))
                    self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            for line in self._process.stdout:
                message = _message_of(line.decode("utf-8", errors="replace"))
                if message is not None:
                    self._on_message(message)


def _message_of(line: str) -> dict[str, Any] | None:
    with suppress(ValueError):
        message = json.loads(line)
        return message if isinstance(message, dict) else None
    return None
