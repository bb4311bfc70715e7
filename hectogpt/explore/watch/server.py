"""The server of `hectogpt watch`: HTTP on 127.0.0.1 for one page, behind the gate of the other pages.

It needs the standard library alone. It answers GET, a request a connection, from what `Board` tells; it does nothing
while no page asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import parse_qs

from hectogpt.explore.pages.gate import HOST, SECONDS, Gate, Message, Receive, Send, write_page

LONGEST_HEAD = 16 << 10  # bytes of a request's first lines
CONNECTIONS = 128
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript"}
FILES = {"/": "page.html"} | {f"/{name}": name for name in ("watch.css", "watch.js", "charts.js", "model.js")}
SNAPSHOT = re.compile(r"/snapshot/(\d{1,4})/(\d{1,12})", re.ASCII)
ROUTES = {"GET": re.compile(rf"{'|'.join(map(re.escape, FILES))}|/data|{SNAPSHOT.pattern}", re.ASCII)}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
POLICY += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@runtime_checkable
class Board(Protocol):
    """What the page shows."""

    def data(self, model_of: int | None) -> dict[str, Any]:
        """The curves of all runs; model_of: the run whose samples and attention the page shows, if any."""

    def snapshot(self, run: int, step: int) -> dict[str, Any] | None:
        """Sample and attention maps of a run's checkpoint."""


class Server:
    """The page of a board. `address` has the token that the gate asks for."""

    def __init__(self, board: Board, port: int | None = None) -> None:
        """Take a port of 127.0.0.1, a free one unless it is given. Raises OSError."""
        self.listener = socket.create_server((HOST, port or 0), backlog=64)
        self.port: int = self.listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        self.address = f"http://{HOST}:{self.port}/?access_token={token}"
        self.gate = Gate(Pages(board), self.port, token, routes=ROUTES, policy=POLICY, command="hectogpt watch")
        self._open = 0

    @contextlib.contextmanager
    def entrance(self) -> Iterator[Path]:
        """A file that leads to the address and that the user alone can read; gone when the block ends."""
        with tempfile.TemporaryDirectory(prefix="hectogpt-watch-", ignore_cleanup_errors=True) as folder:
            yield write_page(Path(folder), self.address)

    async def run(self) -> None:
        """Serve until the task is cancelled."""
        server = await asyncio.start_server(self._serve, sock=self.listener, limit=LONGEST_HEAD)
        async with server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS:
                async with asyncio.timeout(SECONDS):
                    scope = read_head(await reader.readuntil(b"\r\n\r\n"))
                if scope is not None:
                    await self.gate(scope, _no_body, _Writer(writer))
            await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that is slow, gone or no browser
        except asyncio.CancelledError:
            return  # the server ends
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class Pages:
    """The application behind the gate, which lets only ROUTES through."""

    def __init__(self, board: Board) -> None:
        self.board = board

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path"]
        if path in FILES:
            file = Path(__file__).with_name(FILES[path])
            return await _reply(send, HTTPStatus.OK, file.read_bytes(), KINDS[file.suffix])
        found: dict[str, Any] | None
        if path == "/data":
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("model", [""])[0]
            model_of = int(asked) if re.fullmatch(r"\d{1,4}", asked, re.ASCII) else None
            found = await asyncio.to_thread(self.board.data, model_of)
        else:
            match = SNAPSHOT.fullmatch(path)
            assert match is not None
            found = self.board.snapshot(int(match[1]), int(match[2]))
        status = HTTPStatus.OK if found is not None else HTTPStatus.NOT_FOUND
        await _reply(send, status, json.dumps(found, allow_nan=False).encode(), "application/json")


def read_head(head: bytes) -> Message | None:
    """A request's first lines as an ASGI scope; None for what is no HTTP."""
    first, *lines = head[:-4].split(b"\r\n")
    match = re.fullmatch(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.[01]", first)
    headers = [line.split(b":", 1) for line in lines]
    if match is None or any(len(pair) != 2 or not re.fullmatch(rb"[\w!#$%&'*+.^`|~-]+", pair[0]) for pair in headers):
        return None
    path, _, query = match[2].partition(b"?")
    return {
        "type": "http",
        "method": match[1].decode("ascii"),
        "path": path.decode("ascii"),
        "query_string": query,
        "headers": [(name.lower(), value.strip()) for name, value in headers],
    }


class _Writer:
    """Writes the answer of an application to a connection, which ends with it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            status = HTTPStatus(message["status"])
            lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
            lines += [b"%s: %s" % (k, v) for k, v in message["headers"] if k.lower() != b"connection"]
            self.writer.write(b"\r\n".join([*lines, b"connection: close", b"", b""]))
        else:
            self.writer.write(message.get("body", b""))


async def _no_body() -> Message:
    """Bodies are not read: nothing here takes one."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def _reply(send: Callable[[Message], Awaitable[None]], status: HTTPStatus, body: bytes, kind: str) -> None:
    headers = [
        (b"content-type", kind.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
