"""What no command may be ended by: odd characters, a full or missing stdout or stderr; and how a bug is told."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from command import HECTOGPT, environment

from hectogpt import cli, errors, idea_file
from hectogpt.cli import main
from hectogpt.cli.streams import steady_streams
from hectogpt.display import Unfailing
from hectogpt.errors import UserError

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


class Failing(io.StringIO):
    """A stream behind which the disk is full, or the terminal gone."""

    def __init__(self, number: int = errno.ENOSPC) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


# --- how an error is told ---------------------------------------------------------------------------------------------


def test_an_error_shows_no_control_characters_and_no_forged_lines() -> None:
    """D15: names of files come from others."""
    error = UserError("cannot read a\x1b]0;pwn\x07\nerror: b\udcff.txt", why="\x9b31m", fix="\u202e", kept="é")
    assert str(error).splitlines() == [
        "error: cannot read a\\x1b]0;pwn\\x07",
        "  error: b\\udcff.txt",
        "why: \\x9b31m",
        "fix: \\u202e",
        "kept: é",
    ]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("name", "code", "word"), [("SIGTERM", 143, "terminated"), ("SIGHUP", 129, "hung up")])
def test_every_command_ends_in_order_when_it_is_told_to(
    name: str, code: int, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is half written is taken away, as after Ctrl-C."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup, which ignores SIGHUP
    ended = []

    def run(argv: list[str]) -> None:
        try:
            signal.raise_signal(number)
        finally:
            ended.append(True)

    try:
        install(run, monkeypatch)
        assert failed(capsys) == (code, word + "\n")
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert ended == [True]


# --- bugs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_ideas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other tests in this process: an error that comes while one is loaded is told as its."""
    monkeypatch.setattr(idea_file, "_files", {})


def command_that(raises: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `hectogpt broken` raise."""

    def run(argv: list[str]) -> None:
        raise raises

    install(run, monkeypatch)


def install(run: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `hectogpt broken` run this."""
    module = ModuleType("broken")
    module.main = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "broken", module)
    monkeypatch.setitem(cli.COMMANDS, "broken", ("broken", "raises"))


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main(["broken", *arguments])
    told = capsys.readouterr()
    assert told.out == ""
    assert "Traceback" not in told.err
    assert isinstance(caught.value.code, int)
    return caught.value.code, told.err


def test_a_bug_is_told_in_one_error_and_reported_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SECRET_OF_THE_TEST", "do-not-tell-this")
    command_that(KeyError("no\x1bkey"), monkeypatch)
    code, told = failed(capsys, "--corpus", "a b.txt")
    (report,) = (tmp_path / "cache" / "reports").iterdir()
    assert (code, told.splitlines()) == (
        errors.BUG,
        [
            "error: this is a bug in hectogpt",
            "why: KeyError: 'no\\x1bkey'",
            f"fix: the report of it is {report}; --debug shows the traceback",
        ],
    )
    text = report.read_text(encoding="utf-8")
    assert "command:  hectogpt broken --corpus 'a b.txt'" in text
    assert "Traceback" in text
    assert "KeyError" in text
    assert "Python 3." in text
    assert "do-not-tell-this" not in text
    assert "\x1b" not in text
    with pytest.raises(KeyError):
        main(["broken", "--debug"])
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    assert str(tmp_path / "tmp") in failed(capsys)[1]


@pytest.mark.parametrize(
    ("raised", "code", "named"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a\x1bb"), errors.STORAGE, "cannot use a\\x1bb"),
        (OSError(errno.EACCES, "Permission denied"), errors.STORAGE, "why: Permission denied"),
        (MemoryError(), errors.MEMORY, "out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't"), errors.MEMORY, "smaller"),
        (RecursionError("maximum recursion depth exceeded"), errors.BUG, "RecursionError: maximum"),
        (OSError("of no number"), errors.BUG, "OSError: of no number"),
    ],
)
def test_a_full_disk_and_full_memory_are_no_bugs(
    raised: BaseException,
    code: int,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))
    command_that(raised, monkeypatch)
    found, told = failed(capsys)
    assert found == code
    assert named in told
    assert (tmp_path / "cache").exists() == (code == errors.BUG)


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stderr_that_fails_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """D18."""
    for number in (errno.ENOSPC, errno.EIO, errno.EPIPE):
        monkeypatch.setattr(sys, "stderr", Failing(number))
        print("progress", file=Unfailing(), flush=True)
        with steady_streams():
            print("progress", file=sys.stderr, flush=True)


@needs_full
@pytest.mark.parametrize(
    ("where", "code", "told"), [("stdout", 7, "error: cannot use standard output, or a file"), ("stderr", 0, "")]
)
def test_a_full_disk_behind_a_stream(where: str, code: int, told: str, tmp_path: Path) -> None:
    """D6, D18: the exit code is not 120, with which Python tells that it could not flush a stream at its end."""
    for unbuffered in ("", "1"):
        known = environment(tmp_path, PYTHONUNBUFFERED=unbuffered)
        with FULL.open("w") as full:
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {where: full}
            done = subprocess.run([*HECTOGPT, "--help"], cwd=tmp_path, env=known, text=True, **streams)
            unknown = subprocess.run([*HECTOGPT, "no"], cwd=tmp_path, env=known, text=True, **streams)
        assert done.returncode == code
        assert (done.stderr or "").startswith(told)
        assert unknown.returncode == errors.USAGE


def test_closed_streams_in_a_shell(tmp_path: Path) -> None:
    for closed, code in ((">&-", 0), ("2>&-", 0), ("<&-", 0), (">&- 2>&- <&-", 0)):
        shell = f'exec "{sys.executable}" -m hectogpt --help {closed}'
        done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, env=environment(tmp_path), capture_output=True)
        assert (done.returncode, done.stderr) == (code, b"")
