"""Ctrl-C, SIGTERM and SIGHUP: exit codes, the second signal, and what stays ignored."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from hectogpt.signals import Stopped, ignore_more, raise_on_signal, stop_on_signal

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

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
