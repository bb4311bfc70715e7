"""Locale, terminal, hash seed and platform: no file is opened in the locale's encoding, no JSON holds NaN, and what
Windows lacks is not needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

FILES = sorted(path for room in ("hectogpt", "bench", "tools", "reference") for path in (ROOT / room).rglob("*.py"))
# `.open(...)` of things that are no files.
NOT_FILES = {"archive", "tarfile", "os", "webbrowser", "Session", "session", "cache", "CorpusCache", "Image"}
PROGRAMS = ROOT / "tests" / "programs"


def calls(path: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """(what it is called on, name, call) of every call in a file: ("path", "open", ...) for `path.open()`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield "", node.func.id, node
            elif isinstance(node.func, ast.Attribute):
                yield ast.unparse(node.func.value).partition("(")[0], node.func.attr, node


def opens_in_the_locales_encoding(on: str, name: str, call: ast.Call) -> bool:
    if (name == "open" and on in NOT_FILES) or (name.endswith("_text") and not on):  # `read_text` of our own
        return False
    if name not in (
        "open",
        "read_text",
        "write_text",
        "fdopen",
        "TextIOWrapper",
        "NamedTemporaryFile",
        "TemporaryFile",
    ):
        return False
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords or None in keywords:
        return False
    place = {"open": 1 if not on else 0, "fdopen": 1, "NamedTemporaryFile": 0, "TemporaryFile": 0}.get(name)
    mode = keywords.get("mode") or (call.args[place] if place is not None and len(call.args) > place else None)
    if name in ("NamedTemporaryFile", "TemporaryFile") and mode is None:
        return False  # binary unless told otherwise
    return not (isinstance(mode, ast.Constant) and "b" in str(mode.value))


def writes_nan(on: str, name: str, call: ast.Call) -> bool:
    if name not in ("dump", "dumps") or on not in ("", "json"):
        return False
    if name == "dump" and on == "":
        return False  # hectogpt.serialization.dump, which writes no text
    return not any(k.arg == "allow_nan" and ast.unparse(k.value) == "False" for k in call.keywords)


def test_no_file_is_opened_in_the_locales_encoding() -> None:
    assert [(str(path), call.lineno) for path in FILES for on, name, call in calls(path)
            if opens_in_the_locales_encoding(on, name, call)] == []  # fmt: skip


def test_no_json_holds_nan() -> None:
    """Browsers refuse NaN."""
    ours = [path for path in FILES if path.is_relative_to(ROOT / "hectogpt")]
    assert [(str(p), call.lineno) for p in ours for on, name, call in calls(p) if writes_nan(on, name, call)] == []


@pytest.mark.parametrize(
    ("source", "odd"),
    [
        ("open(p, 'w')", True),
        ("open(p, 'rb')", False),
        ("open(p, encoding='utf-8')", False),
        ("p.open()", True),
        ("p.open('a+b')", False),
        ("p.read_text()", True),
        ("os.open(p, os.O_RDONLY)", False),
        ("tempfile.TemporaryFile('w')", True),
    ],
)
def test_the_law_of_encodings_finds_what_it_forbids(source: str, odd: bool, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(source)
    [(on, name, call)] = calls(tmp_path / "x.py")
    assert opens_in_the_locales_encoding(on, name, call) == odd


# What Windows lacks, taken away from this process and its children.
WINDOWS = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
lacks = "killpg", "getpgrp", "fork", "mkfifo", "sched_getaffinity", "geteuid"
for module, names in ((signal, ["SIGHUP"]), (os, lacks)):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""
PROGRAM = """
import os, pathlib, signal
from hectogpt import signals, process
from hectogpt.files import append_line, write_atomic
assert set(signals.CODES) == {signal.SIGINT, signal.SIGTERM}
with signals.stop_on_signal() as received:
    signal.raise_signal(signal.SIGTERM)
assert received == [signal.SIGTERM]
messages = []
assert process.ask("child", {"do": "echo"}, messages.append).error is None
assert messages[1] == {"echo": {"do": "echo"}}
ended = process.ask("child", {"do": "hang"}, messages.append, timeout=1.0)
assert ended.error == "it was stopped after 1 s", ended
append_line(pathlib.Path("l.jsonl"), "{}")
write_atomic(pathlib.Path("f"), "x")
"""


def test_what_windows_lacks_is_not_needed(tmp_path: Path) -> None:
    """no SIGHUP, no process groups, no fork, no flock."""
    (tmp_path / "sitecustomize.py").write_text(WINDOWS, encoding="utf-8")
    path = os.pathsep.join(map(str, (tmp_path, ROOT, PROGRAMS)))
    environment = os.environ | {"PYTHONPATH": path, "HECTOGPT_CACHE": str(tmp_path / "cache")}
    for command in (["-c", PROGRAM], ["-m", "hectogpt", "show"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "l.jsonl").read_bytes() == b"{}\n"
