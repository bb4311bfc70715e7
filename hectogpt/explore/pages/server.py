"""The pages' server, a process of its own: marimo's application behind the gate, for as long as its parent lives.

Its settings come as one line of JSON on standard input: {"port": int or null, "model": str or null, "ideas": [str]}. It
answers with one line on standard output, {"address": URL, "page": PATH} once it listens or {"error": text}, and ends
when its standard input does. The page is a file that only the user can read and that leads to the address: a browser is
started with its name, so the token is on no command line.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import marimo
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hectogpt import errors
from hectogpt.explore.pages import controls
from hectogpt.explore.pages.gate import HOST, LONGEST_BODY, SECONDS, Gate, write_page

CONNECTIONS = 512
SECONDS_TO_END = 3.0
APP = Path(__file__).with_name("app.py")


class Protocol(H11Protocol):
    """HTTP as uvicorn speaks it, with a time-out for the head of a request and a limit on connections."""

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection is open: its first request has to come."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.close()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """A piece of a request's head or body."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        """Start the clock while a request is awaited; it is not set back by single bytes."""
        waiting = self.transport.get_protocol() is self and (self.cycle is None or self.cycle.response_complete)
        if not waiting:
            self._unwatch()
        elif self.late is None:
            self.late = self.loop.call_later(SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self.late is not None:
            self.late.cancel()
        self.late = None


def main() -> None:
    """Serve until standard input ends or SIGTERM comes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints goes to the terminal

    def answer(**message: str) -> None:
        print(json.dumps(message, allow_nan=False), file=answers, flush=True)

    asked = json.loads(sys.stdin.readline())
    try:
        listener = listen(asked["port"])
    except OSError as error:
        answer(error=error.strerror or str(error))
        return
    with tempfile.TemporaryDirectory(prefix="hectogpt-pages-", ignore_cleanup_errors=True) as folder:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and so this process
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(errors.TERMINATED))  # the folder goes with us
        server = make_server(asked, port := listener.getsockname()[1], token := secrets.token_urlsafe(24))
        threading.Thread(target=end_with_parent, args=(server,), daemon=True).start()
        address = f"http://{HOST}:{port}/?access_token={token}"
        answer(address=address, page=str(write_page(Path(folder), address)))
        server.run(sockets=[listener])
    os._exit(0)  # a page that is still computing does not hold us up


def listen(port: int | None) -> socket.socket:
    """A socket on this machine alone, on the port asked for or a free one. Raises OSError."""
    listener = socket.socket()
    if os.name == "posix":  # there it only ignores connections that are ending; elsewhere it shares ports
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port or 0))
    listener.listen(128)
    return listener


def make_server(asked: dict[str, Any], port: int, token: str) -> uvicorn.Server:
    """The pages behind their gate. They run in threads of this process and read what was asked for from `controls`."""
    controls.asked = controls.Asked(asked["model"], tuple(map(Path, asked["ideas"])))
    pages = marimo.create_asgi_app(quiet=True, skew_protection=True).with_app(path="/", root=str(APP)).build()
    config = uvicorn.Config(
        Gate(pages, port, token),
        http=Protocol,
        loop="asyncio",  # uvloop, which other packages bring, does not end connections that Protocol closes
        ws_max_size=LONGEST_BODY,
        lifespan="off",
        log_level="error",
        access_log=False,  # no addresses with tokens
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def end_with_parent(server: uvicorn.Server) -> None:
    """Wait for the end of standard input, which comes even if the parent is killed; then end the server."""
    while os.read(0, 1024):
        pass
    server.should_exit = True
    time.sleep(SECONDS_TO_END)
    os._exit(1)


if __name__ == "__main__":
    main()
