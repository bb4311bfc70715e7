"""`hectogpt` as a child process, for tests of its commands; options of a small run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hectogpt.cli import main
from hectogpt.kernels.build import find

HECTOGPT = [sys.executable, "-m", "hectogpt"]
TINY = ["--model.d-model", "16", "--model.n-heads", "2", "--model.n-layers", "1", "--model.context-length", "64"]
TINY += ["--data.seq-len", "64", "--data.batch-size", "4", "--threads", "1", "--steps", "4"]


def environment(cwd: Path, **more: str) -> dict[str, str]:
    return os.environ | {"HECTOGPT_CACHE": str(cwd / "cache"), "NO_COLOR": "1"} | more


def hectogpt(*arguments: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*HECTOGPT, *map(str, arguments)], cwd=cwd, env=environment(cwd, **more), capture_output=True, text=True
    )


class Here:
    """Runs commands in this process, which saves loading torch for each; for what needs no process of its own."""

    def __init__(self, cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        find()  # kernels that are compiled already, which a cache of its own has not
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("HECTOGPT_CACHE", str(cwd / "cache"))
        monkeypatch.setenv("NO_COLOR", "1")

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        printed = self.capsys.readouterr()
        return subprocess.CompletedProcess([str(a) for a in arguments], code, printed.out, printed.err)

    def ok(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """A command that has to end with code 0."""
        done = self(*arguments)
        assert done.returncode == 0, done.stderr
        return done


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it has not come"
        time.sleep(0.02)


def assert_good_error(done: subprocess.CompletedProcess[str], code: int, *named: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    for text in named:
        assert text in done.stderr
