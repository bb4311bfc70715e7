"""`hectogpt watch` follows metrics.jsonl whatever happens to the file, shows what is there, and keeps others out."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from command import TINY, Here, assert_good_error, hectogpt, start, wait_for, write_tokens
from hypothesis import given
from hypothesis import strategies as st
from run_folders import summary_of, write_run

from hectogpt import errors
from hectogpt.cli.snapshots import Snapshots
from hectogpt.cli.watch import Folders, names
from hectogpt.explore.watch import server as module
from hectogpt.explore.watch.rows import COLUMNS, MOST_POINTS, Rows
from hectogpt.explore.watch.server import FILES, Server, read_head


def row(step: int, loss: float = 5.0, **more: Any) -> str:
    values = {"step": step, "tokens": 64 * step, "train/loss": loss, "train/grad_norm": 1.0, "train/lr": 1e-3}
    return json.dumps(values | {"train/dt": 0.5, "train/tok_per_sec": 128.0} | more)


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


# --- rows -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 60), max_size=8))
def test_a_file_read_in_pieces_gives_what_one_read_gives(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    text = "".join(row(n, 9.0 - n) + "\n" for n in range(1, 6)) + json.dumps({"step": 5, "val/loss": 4.5}) + "\n"
    followed, place = Rows(path), 0
    assert not followed.refresh()  # there is no file yet
    for cut in [*cuts, len(text)]:
        append(path, text[place : place + cut])
        place += cut
        followed.refresh()
    whole = Rows(path)
    whole.refresh()
    assert followed.columns == whole.columns
    assert followed.scores == whole.scores == [(5, 4.5)]
    assert whole.columns["loss"] == [8.0, 7.0, 6.0, 5.0, 4.0]
    assert followed.generation == 0


def test_half_a_row_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, row(1) + "\n" + row(2)[:30])
    rows = Rows(path)
    assert rows.refresh()
    assert len(rows) == 1
    assert not rows.refresh()
    append(path, row(2)[30:] + "\n")
    assert rows.refresh()
    assert rows.columns["step"] == [1, 2]


@pytest.mark.parametrize("again", ["replaced", "shorter", "rewritten in place"])
def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path, again: str) -> None:
    """As a resumed run does, and tools that copy folders."""
    path, other = tmp_path / "metrics.jsonl", tmp_path / "other"
    append(path, "".join(row(n, 5.0) + "\n" for n in range(1, 4)))
    rows = Rows(path)
    rows.refresh()
    new = "".join(row(n, 3.0) + "\n" for n in range(1, 3 if again == "shorter" else 6))
    if again == "replaced":
        other.write_text(new, encoding="utf-8")
        os.replace(other, path)
    else:
        path.write_text(new, encoding="utf-8")
    assert rows.refresh()
    assert set(rows.columns["loss"]) == {3.0}
    assert rows.generation == 1


def test_a_hostile_file_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    bad = [
        "[" * 100_000,
        "null",
        "{}",
        '{"step": "1"}',
        '{"step": 1e999, "train/loss": 1}',
        "\x00\xff",
        '{"step": true}',
    ]
    append(path, "\n".join([*bad, '{"step": 7, "train/loss": NaN, "train/lr": "x", "train/dt": 1e400}', ""]))
    rows = Rows(path)
    rows.refresh()
    assert rows.columns == {name: [7.0 if name == "step" else None] for name in COLUMNS}
    json.dumps(rows.drawn(), allow_nan=False)
    os.mkfifo(tmp_path / "pipe")
    assert not Rows(tmp_path / "pipe").refresh()
    assert not Rows(tmp_path).refresh()


def test_a_long_curve_is_drawn_by_its_means(tmp_path: Path) -> None:
    path, n = tmp_path / "metrics.jsonl", 5 * MOST_POINTS + 3
    append(path, "".join(row(step, float(step % 2)) + "\n" for step in range(1, n + 1)))
    rows = Rows(path)
    rows.refresh()
    drawn = rows.drawn()
    assert len({len(values) for values in drawn.values()}) == 1
    assert MOST_POINTS / 2 < len(drawn["step"]) <= MOST_POINTS + 1
    assert drawn["step"][-1] == n
    assert drawn["loss"][-1] == n % 2
    assert all(0.3 < value < 0.7 for value in drawn["loss"][:-1] if value is not None)
    assert drawn["seconds"][-1] == pytest.approx(n * 0.5)
    assert rows.remaining(n + 10) == pytest.approx(5.0)


# --- which runs, and what of them -------------------------------------------------------------------------------------


def test_without_names_the_newest_and_what_begins_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "old", summary_of(), at=1_600_000_000)
    write_run(tmp_path / "runs" / "new", summary_of(steps=100), at=1_700_000_000)
    board = Folders([], Snapshots(), tmp_path / "runs")
    assert [run["name"] for run in board.data(None)["runs"]] == ["new"]
    write_run(tmp_path / "runs" / "later", None, at=int(time.time()) + 10)
    append(tmp_path / "runs" / "later" / "metrics.jsonl", row(1) + "\n")
    board._scanned = 0.0
    told = board.data(None)["runs"]
    assert [run["name"] for run in told] == ["new", "later"]
    assert told[0]["told"] == "done"
    assert told[0]["ngrams"]["Kneser-Ney trigram"] == 5.1
    assert told[1]["told"] == "copied, growing"  # no process holds it, and its rows are fresh
    assert told[1]["step"] == 1


def test_nothing_changes_without_news_and_a_version_tells(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", None)
    board = Folders([folder], Snapshots())
    first = board.data(None)["version"]
    assert board.data(None)["version"] == first
    append(folder / "metrics.jsonl", row(1) + "\n")
    assert board.data(None)["version"] > first


def test_a_folder_that_vanishes_is_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", summary_of())
    board = Folders([folder], Snapshots())
    board.data(None)
    (folder / "run.json").unlink()
    told = board.data(None)
    assert "run.json" in told["notes"][0]
    assert told["runs"][0]["told"] == "unreadable"


def test_names_are_short_and_differ(tmp_path: Path) -> None:
    assert names([Path("a/x"), Path("b/y")]) == ["x", "y"]
    assert names([Path("a/x"), Path("b/x"), Path("b/y")]) == ["a/x", "b/x", "y"]


def test_bad_input_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    here = Here(tmp_path, monkeypatch, capsys)
    assert_good_error(here("watch", "nosuch"), errors.CHECKPOINT, "no run 'nosuch'")
    (tmp_path / "empty").mkdir()
    assert_good_error(here("watch", "empty"), errors.CHECKPOINT, "run.json")
    assert_good_error(here("watch", "--port", "0"), errors.USAGE, "1 to 65535")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_good_error(here("watch", "--port", port, "--no-browser"), errors.USAGE, str(port), "leave --port out")


# --- the server -------------------------------------------------------------------------------------------------------


class Board:
    def data(self, model_of: int | None) -> dict[str, Any]:
        return {"asked": model_of}

    def snapshot(self, run: int, step: int) -> dict[str, Any] | None:
        return {"run": run, "step": step} if step == 3 else None


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    server, loop = Server(Board()), asyncio.new_event_loop()
    task = loop.create_task(server.run())

    def work() -> None:
        asyncio.set_event_loop(loop)
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    yield server
    loop.call_soon_threadsafe(task.cancel)
    thread.join()


def ask(server: Server, path: str, method: str = "GET", cookie: bool = True, **headers: str) -> tuple[int, str, str]:
    """(status, head, body) of one request."""
    sent = {"Host": f"127.0.0.1:{server.port}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if cookie:
        sent["Cookie"] = f"{server.gate.cookie}={server.gate.secret}"
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in sent.items())])
    return send(server, f"{head}\r\n\r\n".encode())


def send(server: Server, request: bytes) -> tuple[int, str, str]:
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1] if head else 0), head.decode(), body.decode()


def test_the_page_is_served_to_the_user_alone(served: Server) -> None:
    status, head, _ = ask(served, served.address.partition("/?")[2].join(["/?", ""]), cookie=False)
    assert status == 200
    assert f"{served.gate.cookie}={served.gate.secret}" in head
    assert ask(served, "/")[0] == 200
    assert ask(served, "/", cookie=False)[0] == 401
    assert ask(served, "/data", Host="evil.example")[0] == 421
    assert ask(served, "/data", Origin="http://evil.example")[0] == 403
    assert ask(served, "/data", Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(served, "/data", method="POST")[0] == 404
    for path in ("/watch.css/../server.py", "/../page.html", "/server.py", "/%2e%2e/rows.py", "/snapshot/1", "//"):
        assert ask(served, path)[0] == 404


def test_answers_are_what_the_board_tells(served: Server) -> None:
    assert ask(served, "/data")[2] == '{"asked": null}'
    assert ask(served, "/data?model=2")[2] == '{"asked": 2}'
    assert ask(served, "/data?model=-1&x=%00")[2] == '{"asked": null}'
    assert json.loads(ask(served, "/snapshot/1/3")[2]) == {"run": 1, "step": 3}
    assert ask(served, "/snapshot/1/4")[0] == 404


def test_the_page_loads_nothing_from_elsewhere(served: Server) -> None:
    for path in FILES:
        status, head, body = ask(served, path)
        assert status == 200
        assert "content-security-policy: default-src 'none'; script-src 'self'" in head.lower()
        assert re.findall(r"https?://[^\s\"')]+", body.replace("http://www.w3.org/2000/svg", "")) == []


@pytest.mark.parametrize(
    "request_", [b"\r\n\r\n", b"GET /\r\n\r\n", b"GET x HTTP/1.1\r\n\r\n", b"G\xff\r\n\r\n", b"x" * 99_999]
)
def test_what_is_no_http_is_not_answered(served: Server, request_: bytes) -> None:
    with suppress(ConnectionError):  # it was closed before all was sent
        assert send(served, request_)[0] == 0
    assert ask(served, "/data")[0] == 200


def test_half_a_request_is_dropped(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.2)
    assert send(served, b"GET / HTTP/1.1\r\nHost")[0] == 0


@given(st.binary(max_size=60))
def test_heads_never_raise(head: bytes) -> None:
    read_head(head + b"\r\n\r\n")


# --- with a real run --------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_run_is_followed_and_its_checkpoints_are_opened(tmp_path: Path) -> None:
    """A run in training: running, then done; samples of several checkpoints; the folder stays as the run left it."""
    text = write_tokens(tmp_path / "t.bin")
    options = [*TINY, "--corpus", text, "--save-every", "2", "--quiet", "--steps", "8", "--out", "run"]
    train = start("train", "baseline", *options, cwd=tmp_path)
    wait_for(lambda: (tmp_path / "run" / "run.json").exists())
    snapshots = Snapshots("a b c")
    board, seen = Folders([tmp_path / "run"], snapshots), set[str]()

    def done() -> bool:
        told = board.data(0)["runs"][0]
        seen.add(told["told"])
        assert told["problem"] == ""
        return told["told"] == "done" and 8 in told["snapshots"]

    wait_for(done)
    assert train.wait(60) == 0, train.stderr and train.stderr.read()
    for stream in (train.stdout, train.stderr):
        assert stream is not None
        stream.close()
    assert seen >= {"running", "done"}
    found = board.snapshot(0, 8)
    assert found is not None
    tokens = len(found["tokens"])
    assert found["text"].startswith("a b c")
    for layer in found["maps"]:
        for head in layer:
            rows = [sum(head[t * (t + 1) // 2 : (t + 1) * (t + 2) // 2]) for t in range(tokens)]
            assert all(abs(total - 1000) <= tokens for total in rows)
    assert hectogpt("check", "run", cwd=tmp_path).returncode == 0
