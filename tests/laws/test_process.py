"""A child process that is asked one thing: its answers, and every way in which it can end, with real processes. Facts
about the machine, and memory that follows what is held. Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from command import wait_for
from helpers import ROOT

from hectogpt import hardware, process
from hectogpt.process import Ending
from hectogpt.signals import Stopped, ignore_more, raise_on_signal, stop_on_signal

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and process groups of POSIX")

PROGRAMS = ROOT / "tests" / "programs"


@pytest.fixture(autouse=True)
def children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the module `child` is found."""
    monkeypatch.setenv("PYTHONPATH", str(PROGRAMS))


def ask(what: str, timeout: float = 60.0, **more: object) -> tuple[Ending, list[dict[str, Any]]]:
    messages: list[dict[str, Any]] = []
    child, request = process.Child("child"), {"do": what, **more}
    outcome = child.listen(request, lambda message, _: messages.append(message), total_seconds=timeout)
    assert messages[0].keys() == {"started"}
    assert ended(messages[0]["started"])
    return outcome, messages[1:]


def ended(pid: int) -> bool:
    """Whether there is no such process, or nobody has waited for it yet."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_question_and_its_answer() -> None:
    text = "ümlaut 😀" + "x" * 2**20  # more than a pipe holds
    values: dict[str, Any] = {"text": text, "number": 0.1, "none": None, "bytes": 1, "token": "of the message"}
    outcome, messages = ask("echo", **values)
    assert (outcome.error, outcome.last_words) == (None, "")
    assert messages == [{"bytes": {"do": "echo", **values}}]
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


def test_a_child_that_hangs_is_stopped_with_its_own_children() -> None:
    """They hold the pipe of the answers open: without their end the caller would wait for them."""
    begun = time.monotonic()
    outcome, messages = ask("leave a child", timeout=2.0)
    assert outcome.error == "no answer in time"
    assert time.monotonic() - begun < 30
    wait_for(lambda: ended(messages[0]["grandchild"]))


ASKING = """
from hectogpt import process
process.Child("child").listen({"do": "leave a child"}, lambda message, _: print(*message.values(), flush=True))
"""


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


# --- facts about the machine and the code -----------------------------------------------------------------------------


def test_cores_and_names() -> None:
    assert 1 <= hardware.physical_cores() <= hardware.usable_cores() <= (os.cpu_count() or 1)
    assert hardware.cpu_name()
    assert hardware.device_name("cpu") == hardware.cpu_name()
    assert set(hardware.cpu_features()) <= {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_follows_what_is_held() -> None:
    assert 0 < hardware.free_memory() < 2**50
    size = int(hardware.peak_memory_mb()) + 200
    held = np.ones(size * 2**20, np.uint8)
    peak = hardware.peak_memory_mb()
    assert peak >= size
    del held
    assert hardware.peak_memory_mb() >= peak - 1


@pytest.mark.gpu
def test_a_gpu_is_asked_for_its_own_memory() -> None:
    assert hardware.device_name("cuda") == hardware.device_name("cuda:0") == torch.cuda.get_device_name()
    free = hardware.free_memory("cuda")
    held = torch.ones(2**28, device="cuda")
    assert hardware.free_memory("cuda") <= free - 2**29
    assert hardware.peak_memory_mb("cuda") >= 2**10
    del held


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_revision_of_a_checkout(tmp_path: Path) -> None:
    try:
        git(tmp_path, "init", "--quiet")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git")
    assert process.revision(tmp_path) == process.Revision(None, None), "no commit yet"
    package = tmp_path / "package"
    package.mkdir()
    (package / "file").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    (tmp_path / "notes").write_text("outside of the folder")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert process.revision(package) == process.Revision(commit, False)
    assert process.revision(tmp_path) == process.Revision(commit, True)


# --- signals: exit codes, the second one, and what stays ignored ------------------------------------------------------


ALL = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture(autouse=True)
def _usual_handlers() -> Iterator[None]:
    """The tests may themselves run under nohup, where SIGHUP is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("second", "code"), ALL)
def test_the_first_signal_is_collected_and_any_second_one_is_raised(
    second: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with stop_on_signal() as received:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        with pytest.raises(Stopped) as stop:
            signal.raise_signal(second)
    assert stop.value.code == code
    assert capsys.readouterr().err == "finishing this step (Ctrl-C again to stop at once)\n"


def test_a_signal_while_an_object_is_freed_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    class Freed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def wait() -> None:
        with raise_on_signal():
            del [Freed()][0]
            time.sleep(10)

    begun = time.monotonic()
    with pytest.raises(Stopped) as stop:
        wait()
    assert stop.value.code == 143
    assert time.monotonic() - begun < 5
    assert capsys.readouterr().err == ""


def test_what_ends_in_order_is_left_alone_by_further_signals() -> None:
    with raise_on_signal():
        ignore_more()
        with raise_on_signal():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(Stopped), raise_on_signal():
        signal.raise_signal(signal.SIGTERM)


def test_handlers_are_put_back_and_at_the_end_of_a_process_ignored() -> None:
    before = {number: signal.getsignal(number) for number, _ in ALL}
    with raise_on_signal(), stop_on_signal():
        assert signal.getsignal(signal.SIGHUP) != before[signal.SIGHUP]
    assert {number: signal.getsignal(number) for number, _ in ALL} == before
    with raise_on_signal(last=True):
        pass
    assert {signal.signal(number, handler) for number, handler in before.items()} == {signal.SIG_IGN}
