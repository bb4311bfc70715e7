"""The pages' server under attack: every route and stranger, large and slow clients, and a parent that dies.

Needs what `hectogpt[explore]` installs. Processes and their memory are read by psutil, which marimo brings.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from promises import Line

ROOT = Path(__file__).resolve().parents[2]
SERVER = "hectogpt.explore.pages.server"
PROGRAM = "import hectogpt.cli; hectogpt.cli.main()"
HOST = "127.0.0.1"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
MEGABYTE = 1 << 20
GROWTH = 5 * MEGABYTE  # of the server's memory that a refused body may cost
PATIENCE = 8.0  # seconds, of which the server's time-out has 5
# The route that each of these names leads to a file outside, if a server takes names from requests as they are.
UPWARDS = (
    "../" * 8, "..%2f" * 8, "%2e%2e/" * 8, "%2e%2e%2f" * 8, "..%5c" * 8, "..\\" * 8, "..;/" * 8, "%252e%252e%252f" * 8,
    "....//" * 8, ".%2e/" * 8, "%c0%ae%c0%ae/" * 8,
)  # fmt: skip
TRAVERSALS = tuple(f"{route}{up}etc/passwd" for route in ("/assets/", "/@file/") for up in UPWARDS)


class Explore:
    """`hectogpt explore` in a folder of its own, with the cookie of a browser that was let in."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "explore", *(more or ["--no-browser"])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            raise RuntimeError(self.process.communicate()[1])
        self.port = int(self.address.split(":")[2].split("/")[0])
        self.name = f"{HOST}:{self.port}"
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.children = [child for child in found if SERVER in _command_line(child)]  # and not its browser
        self.cookie = {"Cookie": self.ask("GET", self.address.split(self.name)[1])[1].split(";")[0]}

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Status, Set-Cookie and text of an answer; no header is sent but those given and Host."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in ({"Host": self.name} | (headers or {})).items():
                connection.putheader(name, value)
            connection.endheaders()
            with connection.getresponse() as response:
                try:
                    content = response.read(MEGABYTE) if response.status != 101 else b""
                except http.client.IncompleteRead as cut:
                    content = cut.partial
                return response.status, response.getheader("Set-Cookie", ""), content.decode("latin-1")
        finally:
            connection.close()

    def open(self, start: str) -> socket.socket:
        """A connection on which this much has been sent."""
        connection = socket.create_connection((HOST, self.port), timeout=30)
        connection.sendall(start.encode())
        return connection

    def head(self, method: str, path: str, **headers: str) -> str:
        """The head of a request that is let in."""
        lines = {"Host": self.name} | self.cookie | {name.replace("_", "-"): value for name, value in headers.items()}
        return f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"

    @property
    def memory(self) -> int:
        """Bytes that the server's processes hold in memory."""
        return sum(child.memory_info().rss for child in self.children)

    def is_gone(self) -> bool:
        """Whether neither a process nor the port is left, within ten seconds."""
        deadline = time.monotonic() + 10
        while any(map(_runs, self.children)) and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            socket.create_connection((HOST, self.port), timeout=5).close()
        except OSError:
            return not any(map(_runs, self.children))
        return False

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End the command by a signal; its exit code and what it said on stderr."""
        self.process.send_signal(number)
        said = self.process.communicate(timeout=30)[1]
        return self.process.returncode, said


def _command_line(process: psutil.Process) -> str:
    """Empty for a process that has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def _runs(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that has may wait for its new parent to take note."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def exploring(*more: str) -> Iterator[Explore]:
    """A server for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="hectogpt-proof-") as folder:
        server = Explore(Path(folder), *more)
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.end()


def check(quick: bool) -> list[Line]:
    """All lines. quick: fewer repetitions."""
    with exploring() as server, ThreadPoolExecutor(1) as beside:
        checks: list[Callable[[], Line]] = [
            lambda: refuse_strangers(server),
            lambda: refuse_paths(server),
            lambda: refuse_large_bodies(server, 20 * MEGABYTE if quick else 300 * MEGABYTE),
            lambda: listen_here_only(server),
        ]
        lines = [_timed(one) for one in checks]
        slow = beside.submit(lambda: _timed(lambda: drop_slow_clients(server, 50 if quick else 200)))  # it waits
        ends = [_timed(lambda: die_with_parent(1 if quick else 5)), _timed(tell_of_a_crash)]
        return [*lines, slow.result(), *ends]


def _timed(one: Callable[[], Line]) -> Line:
    start = time.monotonic()
    line = one()
    return Line(line.promise, line.tries, line.failures, time.monotonic() - start, line.detail)


def _line(promise: str, outcomes: Sequence[tuple[str, bool]], detail: str = "") -> Line:
    """outcomes: what was tried, and whether it went well."""
    bad = [what for what, good in outcomes if not good]
    told = "; ".join(filter(None, [detail, f"failed: {', '.join(bad[:5])}" if bad else ""]))
    return Line(promise, len(outcomes), len(bad), 0.0, told)


def routes() -> list[tuple[str, str]]:
    """Method and path of every route that the installed marimo has, and of one that it does not have."""
    from marimo._server.api.router import build_routes

    def walk(found: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for route in found:
            path = prefix + route.path
            if getattr(route, "routes", None):
                yield from walk(route.routes, path)
            elif type(route).__name__ == "WebSocketRoute":
                yield "WEBSOCKET", f"{path}?session_id=x&file_key=x"
            else:
                filled = path.replace("{filename_and_length:path}", "1-x.txt").replace("{filepath:path}", "x")
                yield from ((m, filled.replace("{path:path}", "x")) for m in getattr(route, "methods", None) or {"GET"})

    return [*sorted(set(walk(build_routes(""), ""))), ("WEBSOCKET", "/terminal/ws"), ("DELETE", "/nowhere")]


STRANGERS: dict[str, tuple[dict[str, str], bool, int]] = {  # headers, with the cookie or not, the status
    "no token": ({}, False, 401),
    "foreign Host": ({"Host": "evil.example"}, True, 421),
    "foreign Origin": ({"Origin": "http://evil.example"}, True, 403),
    "Origin null": ({"Origin": "null"}, True, 403),
    "Origin of another port": ({"Origin": f"http://{HOST}:1"}, True, 403),
    "Sec-Fetch-Site": ({"Sec-Fetch-Site": "cross-site"}, True, 403),
}


def refuse_strangers(server: Explore) -> Line:
    """Every route for everybody but the page itself; and the routes that the page has no use for, for it too."""
    from hectogpt.explore.pages.gate import ROUTES

    outcomes = []
    for method, path in routes():
        socketed = method == "WEBSOCKET"
        upgrade = UPGRADE if socketed else {}
        for who, (headers, cookie, status) in STRANGERS.items():
            known = server.cookie if cookie else {}
            found = server.ask("GET" if socketed else method, path, upgrade | known | headers)
            outcomes.append((f"{who} {method} {path}", found[0] == (403 if socketed else status)))
        if method not in ROUTES or not ROUTES[method].fullmatch(path.split("?")[0]):
            found = server.ask("GET" if socketed else method, path, upgrade | server.cookie)
            outcomes.append((f"unused {method} {path}", found[0] == (403 if socketed else 404)))
    outcomes.append(("the page itself", server.ask("GET", "/", server.cookie)[0] == 200))
    return _line("pages: strangers are refused on every route", outcomes)


def refuse_paths(server: Explore) -> Line:
    """File names that lead out of the server's folders."""
    answers = [(path, *server.ask("GET", path, server.cookie)) for path in TRAVERSALS]
    outcomes = [(path, status in (400, 404) and "root:" not in text) for path, status, _, text in answers]
    return _line("pages: no path leads to another file", outcomes)


def refuse_large_bodies(server: Explore, size: int) -> Line:
    """Bodies that are announced as too long, and one that turns out to be: refused, and never kept in memory."""
    before, outcomes, route = server.memory, [], "/api/kernel/set_ui_element_value"
    announced = {"Content_Length": str(10**10), "Content_Type": "application/json"}
    for path, cookie in ((route, True), (route, False), ("/auth/login", True), ("/auth/login", False)):
        head = server.head("POST", path, **announced)
        head = head if cookie else head.replace(server.cookie["Cookie"], "none=1")
        with server.open(head + "x" * 1000) as connection:
            status = int(connection.recv(100).split()[1])
        outcomes.append((f"10 GB to {path}, cookie: {cookie}", status in (401, 404, 413)))
    chunk = f"{MEGABYTE:x}\r\n{'x' * MEGABYTE}\r\n"
    with server.open(server.head("POST", route, Transfer_Encoding="chunked")) as connection:
        with contextlib.suppress(OSError):  # the server closes the connection while we send
            for _ in range(size // MEGABYTE):
                connection.sendall(chunk.encode())
        status = 413
        with contextlib.suppress(OSError, IndexError):
            status = int(connection.recv(100).split()[1])
    outcomes.append((f"{size} bytes in chunks", status == 413))
    grown = server.memory - before
    outcomes.append(("memory", grown < GROWTH))
    return _line("pages: long bodies are not read", outcomes, f"memory grew by {grown / MEGABYTE:.1f} MB")


def drop_slow_clients(server: Explore, many: int) -> Line:
    """Half a head, a head byte by byte, a body that does not come; the page is answered meanwhile."""
    half = f"GET / HTTP/1.1\r\nHost: {server.name}\r\n"
    body = server.head("POST", "/api/kernel/set_ui_element_value", Content_Length="9", Content_Type="application/json")
    start = time.monotonic()
    waiting = [server.open(half) for _ in range(many)] + [server.open(""), server.open(body)]
    dripping = server.open("GET / HT")
    meanwhile = server.ask("GET", "/", server.cookie)[0] == 200
    dropped = False
    while time.monotonic() - start < PATIENCE and not dropped:
        time.sleep(0.2)
        try:
            dripping.sendall(b"T")
        except OSError:
            dropped = True
    outcomes = [("the page meanwhile", meanwhile), ("a byte every 0.2 s", dropped)]
    for i, connection in enumerate(waiting):
        connection.settimeout(max(0.01, PATIENCE - (time.monotonic() - start)))
        with connection, contextlib.suppress(ConnectionResetError):
            try:
                while connection.recv(1000):
                    pass
            except TimeoutError:
                outcomes.append((f"client {i}", False))
                continue
        outcomes.append((f"client {i}", True))
    dripping.close()
    return _line("pages: slow clients are dropped", outcomes, f"all within {time.monotonic() - start:.1f} s")


def listen_here_only(server: Explore) -> Line:
    """No socket listens but the one on 127.0.0.1, and no command line has the token."""
    token = server.address.split("=")[1]
    found = [c.laddr for child in server.children for c in child.net_connections("inet") if c.status == "LISTEN"]
    lines = [_command_line(process) for process in psutil.process_iter()]
    outcomes = [("sockets", found == [(HOST, server.port)]), ("command lines", not any(token in x for x in lines))]
    return _line("pages: this machine only, token on no command line", outcomes)


def die_with_parent(rounds: int) -> Line:
    """The command killed by each signal: its exit code, and neither process nor port left."""
    codes = {signal.SIGHUP: 129, signal.SIGTERM: 143, signal.SIGINT: 0, signal.SIGKILL: -signal.SIGKILL}

    def kill(number: signal.Signals) -> tuple[str, bool]:
        with exploring() as server:
            code, _ = server.end(number)
            return number.name, code == codes[number] and server.is_gone()

    with ThreadPoolExecutor(2) as pool:
        return _line("pages: the server ends with its command", list(pool.map(kill, [*codes] * rounds)))


def tell_of_a_crash() -> Line:
    """The server killed: the command says so and fails."""
    with exploring() as server:
        server.children[0].kill()
        said = server.process.communicate(timeout=30)[1]
        good = server.process.returncode == 1 and "SIGKILL" in said and "Traceback" not in said
        return _line("pages: a crash of the server is told", [("SIGKILL", good and server.is_gone())])
