"""A child process that is asked one thing: its answers, and every way in which it can end, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest
from command import wait_for
from helpers import ROOT

from hectogpt import process
from hectogpt.process import Ending

PROGRAMS = ROOT / "tests" / "programs"


@pytest.fixture(autouse=True)
def children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the module `child` is found."""
    monkeypatch.setenv("PYTHONPATH", str(PROGRAMS))


def ask(what: str, timeout: float = 60.0, **more: object) -> tuple[Ending, list[dict[str, Any]]]:
    messages: list[dict[str, Any]] = []
    outcome = process.ask("child", {"do": what, **more}, messages.append, timeout)
    assert messages[0].keys() == {"started"}
    assert ended(messages[0]["started"])
    return outcome, messages[1:]


def ended(pid: int) -> bool:
    """Whether there is no such process, or nobody has waited for it yet."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_question_and_its_answer() -> None:
    text = "ümlaut 😀" + "x" * 2**20  # more than a pipe holds
    outcome, messages = ask("echo", text=text, number=0.1, none=None)
    assert (outcome.error, outcome.last_words) == (None, "")
    assert messages == [{"echo": {"do": "echo", "text": text, "number": 0.1, "none": None}}]
    assert ask("read")[1] == [{"read": ""}]  # from standard input, which is empty


def test_what_the_child_prints_does_not_break_the_answer() -> None:
    outcome, messages = ask("rubbish")
    assert messages == [{"after": "rubbish"}]
    assert outcome.error is None
    assert outcome.last_words.splitlines() == ["no JSON", "[1, 2]", "\ufffd\ufffd"]


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("raise", "exit code 1", "ValueError: the child's own error"),
        ("nan", "exit code 1", "not JSON compliant"),
        ("exit", "exit code 7", ""),
        ("die", "SIGKILL", ""),
    ],
)
def test_how_a_child_ended_is_said(what: str, error: str, words: str) -> None:
    outcome, messages = ask(what)
    assert outcome.error == error
    assert words in outcome.last_words
    assert messages == []


@pytest.mark.skipif(os.name != "posix", reason="process groups of POSIX")
def test_a_child_that_hangs_is_stopped_with_its_own_children() -> None:
    """They hold the pipe of the answers open: without their end the caller would wait for them."""
    begun = time.monotonic()
    outcome, messages = ask("leave a child", timeout=2.0)
    assert outcome.error == "no answer in time"
    assert time.monotonic() - begun < 30
    wait_for(lambda: ended(messages[0]["grandchild"]))


ASKING = """
from hectogpt import process
process.ask("child", {"do": "leave a child"}, lambda message: print(*message.values(), flush=True))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(number: int) -> None:
    """However the parent dies, and with what the child has started."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(PROGRAMS)])}
    command, pipe = [sys.executable, "-c", ASKING], subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert not any(map(ended, pids))
        parent.send_signal(number)
        parent.communicate(timeout=30)
    assert parent.returncode == -number
    wait_for(lambda: all(map(ended, pids)))
