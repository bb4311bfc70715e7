"""A read-only server on this machine for one page and its data.

Only GET is answered, only for this machine's own name, and only below a path that is drawn anew at
every start. Nobody who cannot read that path learns anything, and nothing that is sent changes
anything."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

HOST = "127.0.0.1"
SECONDS = (
    10.0  # that a client may take for the whole of its request, and for reading the whole answer
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src "
    "'unsafe-inline'; img-src data:; connect-src 'self'; base-uri "
    "'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageServer(ThreadingHTTPServer):
    """Serves `page` at address, and at address + "data" what `answers(query)` returns, as JSON.

    port: 0 for a free one. Raises OSError for a port that is taken.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, page: str, answers: Callable[[dict[str, str]], Any], port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.page = page.encode("utf-8")
        self.answers = answers
        self.secret = secrets.token_urlsafe(24)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.secret}/"

    @contextlib.contextmanager
    def entrance(self) -> Iterator[Path]:
        """A file, readable by its owner alone, that leads a browser to the page: other users can
        read the address in a command line."""
        with tempfile.TemporaryDirectory(prefix="hectogpt-") as folder:
            path = Path(folder) / "page.html"
            path.write_text(
                f'<meta http-equiv="refresh" content="0;url={self.address}">', encoding="utf-8"
            )
            yield path

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's fault."""


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = SECONDS
    protocol_version = "HTTP/1.0"  # a connection is one request
    server_version = "hectogpt"
    sys_version = ""

    def setup(self) -> None:
        """End the connection if the request is not complete in time, however many bytes come on
        the way."""
        super().setup()
        self.deadline = threading.Timer(SECONDS, self.cut_off)
        self.deadline.daemon = True
        self.deadline.start()

    def cut_off(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):  # it has ended
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        """The page or its data, or why there is none."""
        self.deadline.cancel()
        own = {f"{HOST}:{self.server.server_port}", f"localhost:{self.server.server_port}"}
        parts = urlsplit(self.path)
        secret, _, name = parts.path[1:].partition("/")
        if not set(self.headers.get_all("Host") or [""]) <= own:
            self.send(HTTPStatus.MISDIRECTED_REQUEST, b"", "text/plain")
        elif not set(self.headers.get_all("Origin") or []) <= {f"http://{host}" for host in own}:
            self.send(HTTPStatus.FORBIDDEN, b"", "text/plain")
        elif not secrets.compare_digest(
            secret.encode(), self.server.secret.encode()
        ) or name not in ("", "data"):
            self.send(HTTPStatus.NOT_FOUND, b"", "text/plain")
        elif name:
            content = json.dumps(
                self.server.answers(dict(parse_qsl(parts.query))), allow_nan=False
            ).encode("utf-8")
            self.send(HTTPStatus.OK, content, "application/json")
        else:
            self.send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")

    def send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            HEADERS | {"Content-Type": kind, "Content-Length": str(len(content))}
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not news."""
