"""A read-only server on this machine for one page and its data.

It answers only GET, only under this machine's own names, and only below a random path that changes
at every start. A program that does not know the path learns nothing, and no request changes
anything.
"""

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
SECONDS = 10.0  # for a client to send its whole request, and to read the whole answer
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src "
    "'unsafe-inline'; img-src data:; connect-src 'self'; base-uri "
    "'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageServer(ThreadingHTTPServer):
    """Serves `page` at its address, and `answers(query)` as JSON at address + "data".

    Args:
        page: the page as HTML.
        answers: turns the query into JSON values.
        port: the port; 0 chooses a free one.

    Raises OSError if the port is taken.
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
        """The address of the page, with its secret path."""
        return f"http://{HOST}:{self.server_port}/{self.secret}/"

    @contextlib.contextmanager
    def entrance(self) -> Iterator[Path]:
        """Context manager: a file, readable only by its owner, that leads a browser to the page.

        If the address itself were in a command line, other users could read it.
        """
        with tempfile.TemporaryDirectory(prefix="hectogpt-") as folder:
            path = Path(folder) / "page.html"
            path.write_text(
                f'<meta http-equiv="refresh" content="0;url={self.address}">', encoding="utf-8"
            )
            yield path

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that have disconnected."""


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = SECONDS
    protocol_version = "HTTP/1.0"  # a connection serves one request
    server_version = "hectogpt"
    sys_version = ""

    def setup(self) -> None:
        """Start a timer that ends the connection unless the request is complete in time."""
        super().setup()
        self.deadline = threading.Timer(SECONDS, self.cut_off)
        self.deadline.daemon = True
        self.deadline.start()

    def cut_off(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):  # already closed
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        """Answer with the page, its data, or the status code of a refusal."""
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
        """Log nothing."""
