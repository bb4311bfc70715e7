"""The lock in front of the pages' server: an ASGI application that passes on only what the user's own page may ask.

A request is refused unless all of this holds: it names this server as its host, no other page has sent it, it carries
the cookie that the token was exchanged for, its route is one that the pages use, and its body is short and of the right
kind. Nothing behind the gate sees a refused request, and a body that is announced as too long is not read.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, NamedTuple

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HOST = "127.0.0.1"
SECONDS = 5.0  # for the head of a request, and for its body
LONGEST_BODY = 1 << 20  # bytes; the longest that the pages send is a prompt
REQUESTS_AT_ONCE = 64
PAGES_AT_ONCE = 32  # each open page has a WebSocket, and a thread with its own values

# What the pages use of marimo's routes. For the gate there are no others. No part of a path begins with a dot.
PART = r"/(?!\.)[\w.@-]+"
ROUTES = {
    "GET": re.compile(rf"/|/health|/assets(?:{PART})+|{PART}\.(?:png|svg|ico|json)|/public-files-sw\.js", re.ASCII),
    "POST": re.compile(r"/api/kernel/(?:instantiate|set_ui_element_value|function_call)", re.ASCII),
    "WEBSOCKET": re.compile(r"/ws", re.ASCII),
}

POLICY = (  # marimo's page has scripts inside, and one of its libraries tries whether it may evaluate text
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,  # nothing is fetched from elsewhere or sent there, and no page shows ours inside
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def write_page(folder: Path, address: str) -> Path:
    """A page that leads to the address, readable by the user alone, in a folder that only the user can enter."""
    page = folder / "open.html"
    text = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={address}">'
    with open(os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(f'{text}<title>hectoGPT</title><a href="{address}">hectoGPT</a>\n')
    return page


class Refusal(NamedTuple):
    """The answer to a request that is not passed on."""

    status: HTTPStatus
    why: str


class Gate:
    """The application `app` for those who know the token, on this port of 127.0.0.1. routes: by method, the paths that
    there are. policy: where pages may load from. command: what has printed the address.

    GET /?access_token=TOKEN sets a cookie and leads to the page. The cookie holds another secret than the address, it
    ends with the browser's session, and its name has the port, because browsers send cookies to all ports of a host.
    """

    def __init__(
        self,
        app: App,
        port: int,
        token: str,
        routes: Mapping[str, re.Pattern[str]] = ROUTES,
        policy: str = POLICY,
        command: str = "hectogpt explore",
    ) -> None:
        names = [f"{HOST}:{port}", f"localhost:{port}"] + ([HOST, "localhost"] if port == 80 else [])
        self.app, self.routes, self.command = app, routes, command
        self.headers = HEADERS | {"Content-Security-Policy": policy}
        self.origins = {name.encode(): f"http://{name}".encode() for name in names}
        self.query = f"access_token={token}".encode()
        self.cookie, self.secret = f"hectogpt_{port}", secrets.token_urlsafe(24)
        self.requests = self.pages = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request or serve one WebSocket."""
        if scope["type"] == "http":
            self.requests += 1
            try:
                await self._answer(scope, receive, send)
            finally:
                self.requests -= 1
        elif scope["type"] == "websocket":
            await self._serve_page(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        if self._has_token(scope):
            cookie = f"{self.cookie}={self.secret}; HttpOnly; SameSite=Strict; Path=/"
            # A page of ours that leads on, not a redirect: browsers then see our own page ask for the next.
            entrance = '<!doctype html><meta http-equiv="refresh" content="0;url=/"><title>hectoGPT</title>'
            entrance += '<link rel="icon" href="data:,">'  # else the browser asks for one that is not there
            return await _reply(send, HTTPStatus.OK, entrance, {"Content-Type": "text/html", "Set-Cookie": cookie})
        refusal = self.refuse(scope)
        if refusal is None and self.requests > REQUESTS_AT_ONCE:
            refusal = Refusal(HTTPStatus.TOO_MANY_REQUESTS, "too many requests at once")
        if refusal is not None:
            return await _refuse(send, refusal)
        body = await _read_body(receive)
        kind = _value(scope, b"content-type").partition(b";")[0]
        if isinstance(body, bytes) and body and kind.strip() != b"application/json":
            body = Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "only JSON is read here")
        if isinstance(body, Refusal):
            return await _refuse(send, body)
        await self._pass_on(scope, _first({"type": "http.request", "body": body}, receive), send)

    async def _pass_on(self, scope: Message, receive: Receive, send: Send) -> None:
        answer, details = _Answer(send, self.headers), ""
        try:
            await self.app(scope, receive, answer)
        except RecursionError:
            if not answer.started:
                return await _refuse(send, Refusal(HTTPStatus.BAD_REQUEST, "the JSON is nested too deeply"))
        except Exception as error:
            details = "".join(traceback.format_exception(error, limit=-3, chain=False))
        if not answer.started:  # else it is on its way, or has told what is wrong with the request
            number = secrets.token_hex(4)
            print(f"error {number} in the pages' server\n{details}", file=sys.stderr)
            await _reply(send, HTTPStatus.INTERNAL_SERVER_ERROR, f"error {number}: see the terminal\n")

    async def _serve_page(self, scope: Message, receive: Receive, send: Send) -> None:
        connect = await receive()
        if self.refuse(scope) is not None or self.pages >= PAGES_AT_ONCE:
            return await send({"type": "websocket.close"})  # before it is accepted, which the client sees as status 403
        self.pages += 1
        try:
            await self.app(scope, _first(connect, receive), send)
        finally:
            self.pages -= 1

    def refuse(self, scope: Message) -> Refusal | None:
        """Why a request's head is refused, if it is. The host comes first, the secret before anything about routes."""
        if refusal := self._refuse_others(scope):
            return refusal
        if any(site not in (b"same-origin", b"none") for site in _values(scope, b"sec-fetch-site")):
            return Refusal(HTTPStatus.FORBIDDEN, "another page has sent this request")
        if not self._has_cookie(scope):
            return Refusal(HTTPStatus.UNAUTHORIZED, f"open the address that `{self.command}` has printed")
        method = scope["method"] if scope["type"] == "http" else "WEBSOCKET"
        if method not in self.routes or not self.routes[method].fullmatch(scope["path"]):
            return Refusal(HTTPStatus.NOT_FOUND, "there is no such page")
        length = _value(scope, b"content-length")
        if length and (not length.isdigit() or len(length) > 19 or int(length) > LONGEST_BODY):
            return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LONGEST_BODY:,} bytes are read")
        return None

    def _refuse_others(self, scope: Message) -> Refusal | None:
        origin = self.origins.get(_value(scope, b"host"))
        if origin is None:
            return Refusal(HTTPStatus.MISDIRECTED_REQUEST, "no such host is served here")
        if any(found != origin for found in _values(scope, b"origin")):
            return Refusal(HTTPStatus.FORBIDDEN, "another page has sent this request")
        return None

    def _has_token(self, scope: Message) -> bool:
        """Whether this asks for the entrance. Any page may link to it: who knows the token is the user."""
        if scope["method"] != "GET" or scope["path"] != "/" or self._refuse_others(scope):
            return False
        return secrets.compare_digest(scope["query_string"], self.query)

    def _has_cookie(self, scope: Message) -> bool:
        try:
            found = SimpleCookie(b"; ".join(_values(scope, b"cookie")).decode("latin-1")).get(self.cookie)
        except CookieError:
            return False
        return found is not None and secrets.compare_digest(found.value.encode(), self.secret.encode())


class _Answer:
    """Passes on an answer with our headers and without any that lets other pages read it. The answer to a fault, whose
    text may name files, is not passed on; `started` is False then."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self.send, self.headers, self.started = send, headers, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 500:
            self.started = True
            kept = [(k, v) for k, v in message["headers"] if not k.lower().startswith(b"access-control-")]
            message = {**message, "headers": kept + _headers(self.headers)}
        if self.started:
            await self.send(message)


async def _read_body(receive: Receive) -> bytes | Refusal:
    """The whole body, whose length is counted while it comes, or why it is refused."""
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(SECONDS):
            while more:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > LONGEST_BODY:
                    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LONGEST_BODY:,} bytes are read")
                more = message.get("more_body", False)  # a client that has left sends no more
    except TimeoutError:
        return Refusal(HTTPStatus.REQUEST_TIMEOUT, f"the body has not come within {SECONDS:g} s")
    return bytes(body)


def _first(message: Message, receive: Receive) -> Receive:
    """A `receive` that gives this message before all others."""
    waiting = [message]

    async def receive_it_first() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_it_first


def _values(scope: Message, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _value(scope: Message, name: bytes) -> bytes:
    """A header that comes once; empty if it is missing or comes several times."""
    values = _values(scope, name)
    return bytes(values[0]) if len(values) == 1 else b""


def _headers(names: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in names.items()]


async def _refuse(send: Send, refusal: Refusal) -> None:
    """The connection is closed, so that what follows of the request is not read."""
    more = {"Connection": "close"} | ({"Retry-After": "1"} if refusal.status == HTTPStatus.TOO_MANY_REQUESTS else {})
    await _reply(send, refusal.status, f"{refusal.why}\n", more)


async def _reply(send: Send, status: HTTPStatus, text: str, more: dict[str, str] | None = None) -> None:
    length = {"Content-Length": str(len(text.encode()))}
    headers = HEADERS | {"Content-Type": "text/plain", "Cache-Control": "no-store"} | length | (more or {})
    await send({"type": "http.response.start", "status": int(status), "headers": _headers(headers)})
    await send({"type": "http.response.body", "body": text.encode()})
