"""Frames: a line of JSON and behind it raw bytes, on a pipe from a child that runs the code of others to its caller.

A frame's header holds its number of bytes and a token that only the request has told: what such code writes to the pipe
by accident is no frame. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any

FRAME_BYTES = 64 << 20  # the largest body of a frame that is believed


def read(stream: IO[bytes], token: str) -> tuple[dict[str, Any], bytes] | None:
    """A header and its body; None at the end of the stream. Raises ValueError for what is no frame, or lacks the token
    that only the request holds."""
    line = stream.readline(1 << 20)
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    size = header.get("bytes", 0) if isinstance(header, dict) and header.pop("token", None) == token else -1
    if not isinstance(size, int) or not 0 <= size <= FRAME_BYTES:
        raise ValueError("not a frame")
    body = stream.read(size)
    return (header, body) if len(body) == size else None


class Frames:
    """The child's side. Made first of all: from then on standard output is standard error, for every library, and only
    this object can answer."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._file = os.fdopen(os.dup(1), "wb")  # no process inherits this descriptor
        os.dup2(2, 1)
        self._owner = os.getpid()
        self._token = ""

    def receive(self, request: Callable[[], bytes]) -> dict[str, Any]:
        """The request, a line of JSON. Before it nothing can be sent."""
        told: dict[str, Any] = json.loads(request())
        self._token = told.pop("token")
        return told

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send one frame. A copy of this process, forked by the code of others, ends instead."""
        if os.getpid() != self._owner:
            os._exit(0)
        self._file.write(
            json.dumps({**header, "bytes": len(body), "token": self._token}, allow_nan=False).encode() + b"\n" + body
        )
        self._file.flush()

    def done(self) -> None:
        """Send the last frame, and end this process at once."""
        self.send({"done": True})
        os._exit(0)
