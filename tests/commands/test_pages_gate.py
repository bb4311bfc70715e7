"""The pages' server lets in its user alone, reads no more than it must, and leaves no process behind.

The gate is tried without a server, its time-outs on a socket, and the whole by tests/faults/servers.py, which
also attacks one running server here. Names such as D9 and K3 number the faults that these tests were written for.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from pages import make_run

pytest.importorskip("marimo")

import servers
import uvicorn
from servers import Explore

from hectogpt import errors
from hectogpt.cli import explore as command
from hectogpt.errors import UserError
from hectogpt.explore.pages import gate, server
from hectogpt.explore.pages.gate import Gate

PORT, TOKEN = 4000, "correct"
NAME = f"127.0.0.1:{PORT}"


class Behind:
    """An application that answers everything, and remembers what reached it."""

    def __init__(self, status: int = 200, fault: Exception | None = None) -> None:
        self.status, self.fault = status, fault
        self.seen: list[tuple[str, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.seen.append((scope["path"], message.get("body", b"")))
        if scope["type"] == "websocket":
            return await send({"type": "websocket.accept"})
        headers = [(b"access-control-allow-origin", b"*"), (b"x", b"y")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"/home/user/secret"})
        if self.fault:
            raise self.fault


class Asked:
    """One request to a gate, its messages, and how many pieces of its body were read."""

    def __init__(self, lock: Gate, method: str = "GET", path: str = "/", **more: Any) -> None:
        headers = {"host": NAME, "cookie": f"{lock.cookie}={lock.secret}"} | more.get("headers", {})
        self.scope = {
            "type": "websocket" if method == "WEBSOCKET" else "http",
            "method": method,
            "path": path,
            "query_string": more.get("query", b""),
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items() if v is not None],
        }
        self.pieces = list(more.get("pieces", [b""]))
        self.read, self.sent = 0, list[Any]()
        with ThreadPoolExecutor(1) as thread:  # this one may have a loop already, that of a browser's tests
            thread.submit(asyncio.run, lock(self.scope, self._receive, self._send)).result()

    async def _receive(self) -> Any:
        self.read += 1
        if self.scope["type"] == "websocket":
            return {"type": "websocket.connect"}
        if not self.pieces:
            await asyncio.sleep(60)
        body = self.pieces.pop(0)
        return {"type": "http.request", "body": body or b"", "more_body": bool(self.pieces) or body is None}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def text(self) -> str:
        return b"".join(m.get("body", b"") for m in self.sent).decode()


STRANGERS = [  # D9, K2, K3, K5, K8, K9, K15
    ({"host": "evil.example"}, 421),
    ({"host": f"evil.example:{PORT}"}, 421),
    ({"host": "127.0.0.1"}, 421),
    ({"host": "127.0.0.1:4001"}, 421),
    ({"host": f"{NAME}.evil.example"}, 421),
    ({"host": ""}, 421),
    ({"host": None}, 421),
    ({"origin": "http://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": ""}, 403),
    ({"origin": "http://127.0.0.1:4001"}, 403),
    ({"origin": f"https://{NAME}"}, 403),
    ({"origin": f"http://localhost:{PORT}"}, 403),  # not the host of this request
    ({"sec-fetch-site": "cross-site"}, 403),
    ({"sec-fetch-site": "same-site"}, 403),  # another port of 127.0.0.1
    ({"cookie": None}, 401),
    ({"cookie": f"hectogpt_{PORT}="}, 401),
    ({"cookie": f"hectogpt_{PORT}={TOKEN}"}, 401),
    ({"cookie": "\x7f\xff;;=="}, 401),
]


@pytest.mark.parametrize(("headers", "status"), STRANGERS)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("POST", "/api/kernel/function_call"), ("WEBSOCKET", "/ws")]
)
def test_strangers_reach_nothing(headers: dict[str, str | None], status: int, method: str, path: str) -> None:
    """D9: Host, Origin and the cookie are checked before any route is looked at, for web sockets too."""
    behind = Behind()
    asked = Asked(Gate(behind, PORT, TOKEN), method, path, headers=headers)
    assert behind.seen == []
    if method == "WEBSOCKET":
        assert asked.sent == [{"type": "websocket.close"}]
    else:
        assert asked.status == status
        assert asked.read == 0
        assert asked.headers[b"connection"] == b"close"
        assert TOKEN not in asked.text


@pytest.mark.parametrize("host", [NAME, f"localhost:{PORT}"])
@pytest.mark.parametrize("site", ["same-origin", "none", None])
def test_the_page_itself_is_let_in(host: str, site: str | None) -> None:
    behind = Behind()
    headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": site}
    lock = Gate(behind, PORT, TOKEN)
    asked = Asked(lock, headers=headers)
    assert asked.status == 200
    assert asked.text == "/home/user/secret"
    assert Asked(lock, "WEBSOCKET", "/ws", headers=headers).sent == [{"type": "websocket.accept"}]
    assert not [name for name in asked.headers if name.startswith(b"access-control-")]  # K3
    assert b"frame-ancestors 'none'" in asked.headers[b"content-security-policy"]
    assert asked.headers[b"x-content-type-options"] == b"nosniff"  # K10


@pytest.mark.parametrize("path", ["/terminal/ws", "/api/kernel/run", "/@file/9-x", "/sse", "//", "/ws", "/auth/login"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "HEAD"])
def test_routes_that_the_pages_do_not_use_do_not_exist(method: str, path: str) -> None:
    """K15: what marimo can do beside showing the pages is out of reach, for the page too."""
    behind = Behind()
    assert Asked(Gate(behind, PORT, TOKEN), method, path).status == 404
    assert behind.seen == []


@pytest.mark.parametrize("path", servers.TRAVERSALS)
def test_no_path_leads_upwards(path: str) -> None:
    """K9."""
    behind = Behind()
    assert Asked(Gate(behind, PORT, TOKEN), path=unquote(path)).status == 404
    assert behind.seen == []


def test_the_token_is_exchanged_for_a_cookie_of_another_secret() -> None:
    """K5, D22: the cookie cannot be read by scripts, goes to no other site, and does not tell the token."""
    behind = Behind()
    lock = Gate(behind, PORT, TOKEN)
    unknown = {"cookie": None, "sec-fetch-site": "cross-site"}  # as from a file, or from a terminal in a web page
    asked = Asked(lock, query=b"access_token=correct", headers=unknown)
    assert asked.status == 200
    assert 'content="0;url=/"' in asked.text
    name, *rest = asked.headers[b"set-cookie"].decode().split("; ")
    assert name == f"hectogpt_{PORT}={lock.secret}"
    assert rest == ["HttpOnly", "SameSite=Strict", "Path=/"]
    assert TOKEN not in asked.text + name
    for query in (b"access_token=wrong", b"access_token=", b"access_token=correct&x=1", b"\xff"):
        assert Asked(lock, query=query, headers={"cookie": None}).status == 401
    foreign = unknown | {"origin": "http://evil.example"}
    assert Asked(lock, query=b"access_token=correct", headers=foreign).status == 403
    assert Asked(lock, query=b"access_token=correct", headers={"host": "evil"}).status == 421
    assert Asked(lock, "POST", query=b"access_token=correct", headers={"cookie": None}).status == 401
    assert behind.seen == []
    assert len(lock.secret) >= 32


POST = "POST", "/api/kernel/function_call"
JSON = {"content-type": "application/json"}


def test_a_body_that_is_announced_as_too_long_is_not_read() -> None:
    """D11, K6."""
    behind = Behind()
    for length in ("10000000000", str(gate.LONGEST_BODY + 1), "9" * 5000, "-1", "x"):
        asked = Asked(Gate(behind, PORT, TOKEN), *POST, headers=JSON | {"content-length": length}, pieces=[b"x"] * 9)
        assert (asked.status, asked.read) == (413, 0)
    assert behind.seen == []


def test_bodies_are_counted_while_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """D11: chunks without a length, and a body that stops."""
    behind = Behind()
    lock = Gate(behind, PORT, TOKEN)
    piece = bytes(gate.LONGEST_BODY // 4)
    asked = Asked(lock, *POST, headers=JSON, pieces=[piece] * 100)
    assert (asked.status, asked.read) == (413, 5)
    monkeypatch.setattr(gate, "SECONDS", 0.05)
    assert Asked(lock, *POST, headers=JSON, pieces=[b"{", None]).status == 408
    assert behind.seen == []
    assert Asked(lock, *POST, headers=JSON, pieces=[b"{", b"}"]).status == 200
    assert behind.seen == [("/api/kernel/function_call", b"{}")]


def test_only_json_is_read() -> None:
    """K4: a form on any page can post these."""
    behind = Behind()
    lock = Gate(behind, PORT, TOKEN)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", None):
        assert Asked(lock, *POST, headers={"content-type": kind}, pieces=[b"{}"]).status == 415
    assert behind.seen == []
    assert Asked(lock, *POST, headers={"content-type": "application/json; charset=utf-8"}, pieces=[b"{}"]).status == 200


@pytest.mark.parametrize("fault", [None, ValueError("/home/user/secret")])
def test_faults_are_told_by_a_number(fault: Exception | None, capsys: pytest.CaptureFixture[str]) -> None:
    """K11: the browser gets no path and no traceback; the terminal gets both under the same number."""
    asked = Asked(Gate(Behind(500, fault), PORT, TOKEN))
    assert asked.status == 500
    assert "secret" not in asked.text
    told = capsys.readouterr().err
    assert asked.text.split(":")[0] in told
    assert ("secret" in told) == (fault is not None)


def test_nested_json_is_the_sender_s_fault() -> None:
    """K6."""
    assert Asked(Gate(Behind(500, RecursionError()), PORT, TOKEN), *POST, headers=JSON, pieces=[b"["]).status == 400


def test_too_many_at_once_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """K12."""
    lock = Gate(Behind(), PORT, TOKEN)
    lock.requests = gate.REQUESTS_AT_ONCE
    asked = Asked(lock)
    assert (asked.status, asked.headers[b"retry-after"]) == (429, b"1")
    lock.requests = gate.REQUESTS_AT_ONCE - 1
    assert Asked(lock).status == 200
    lock.pages = gate.PAGES_AT_ONCE
    assert Asked(lock, "WEBSOCKET", "/ws").sent == [{"type": "websocket.close"}]


def test_half_a_request_is_dropped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """D11, K7: silence, half a head, and bytes that drip; a connection between two requests is not half a request."""
    monkeypatch.setattr(server, "SECONDS", 0.4)
    listener = server.listen(None)
    config = uvicorn.Config(Behind(), http=server.Protocol, loop="asyncio", lifespan="off", log_level="error")
    serving = uvicorn.Server(config)
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        silent, half, second, kept, dripping = (socket.create_connection(listener.getsockname(), 20) for _ in range(5))
        half.sendall(b"GET / HTTP/1.1\r\nHost")
        for connection in (second, kept):
            connection.sendall(whole)
            while not connection.recv(1000).endswith(b"0\r\n\r\n"):
                pass
        second.sendall(b"GET / HT")
        dropped = False
        while not dropped:
            time.sleep(0.05)
            try:
                dripping.sendall(b"G")
            except OSError:
                dropped = True
        for connection in (silent, half, second):
            assert connection.recv(1000) == b""
        kept.sendall(whole)
        assert kept.recv(1000).startswith(b"HTTP/1.1 200")
        for connection in (silent, half, second, kept, dripping):
            connection.close()
    finally:
        serving.should_exit = True
        thread.join()
        listener.close()


# --- a running server ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("gate")).parent.parent


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Explore]:
    """One server for all, whose browser is a program that writes down what it is asked to open."""
    browser = folder / "browser"
    browser.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$0.asked.new" && mv "$0.asked.new" "$0.asked"\n')
    browser.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROWSER", f"{browser} %s")
        started = Explore(folder, "--model", "runs/first")
    yield started
    if started.process.poll() is None:
        assert started.end() == (errors.TERMINATED, "terminated\n")
    assert started.is_gone()


def test_every_route_refuses_every_stranger(running: Explore) -> None:
    """D9, K2, K3, K5, K8, K15: all routes of the installed marimo."""
    line = servers.refuse_strangers(running)
    assert line.failures == 0, line.detail
    assert line.tries > 600


def test_paths_and_long_bodies_of_a_running_server(running: Explore) -> None:
    """K6, K9, D11."""
    for line in (servers.refuse_paths(running), servers.refuse_large_bodies(running, 4 << 20)):
        assert line.failures == 0, line.detail


def test_it_listens_on_this_machine_only(running: Explore) -> None:
    """K1, D22."""
    line = servers.listen_here_only(running)
    assert line.failures == 0, line.detail


def test_the_browser_gets_a_file_that_only_the_user_can_read(running: Explore, folder: Path) -> None:
    """D22: the token is on no command line. The file is gone with the server."""
    asked, deadline = folder / "browser.asked", time.monotonic() + 30
    while not asked.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    (url,) = asked.read_text().splitlines()
    page = Path(unquote(urlsplit(url).path))
    assert url.startswith("file:///")
    assert running.address in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert stat.S_IMODE(page.parent.stat().st_mode) == 0o700
    assert len(running.address.partition("=")[2]) >= 32  # 192 bits


def test_a_busy_port_is_told(running: Explore) -> None:
    """K14: asked for, it is refused; otherwise a free one is taken, as two servers at once show."""
    with pytest.raises(UserError, match=str(running.port)) as caught:
        command.main(["--port", str(running.port), "--no-browser"])
    assert "in use" in caught.value.why
    with pytest.raises(UserError, match="70000"):
        command.main(["--port", "70000"])


@pytest.mark.parametrize("name", ["\0", "x" * 5000, "nowhere"])
def test_a_folder_that_cannot_be_is_told_before_a_server_starts(name: str) -> None:
    """D6."""
    with pytest.raises(UserError) as caught:
        command.main(["--model", name])
    assert caught.value.code == errors.CHECKPOINT


def test_a_killed_command_and_a_killed_server(folder: Path) -> None:
    """D12: SIGKILL of the command leaves neither process, port nor file; a crash of the server is an error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        started = Explore(folder)
        assert list(folder.glob("hectogpt-pages-*"))
        assert started.end(signal.SIGKILL)[0] == -signal.SIGKILL
        assert started.is_gone()
        assert not list(folder.glob("hectogpt-pages-*"))
        line = servers.tell_of_a_crash()
        assert line.failures == 0, line.detail
        assert not list(folder.glob("hectogpt-pages-*"))


@pytest.mark.thorough
def test_the_whole_proof() -> None:
    """D9, D11, D12, K1 to K9, K12, K16: every line, with every signal."""
    lines = servers.check(quick=True)
    told = [line for line in lines if line.failures and "at once" not in line.promise]  # that one has a time in it
    assert told == []
