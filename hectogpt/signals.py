"""Ctrl-C and SIGTERM while there is something to keep: raised at once, or collected until a step is done."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hectogpt import errors


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM has arrived. `code` is the exit code that belongs to it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = exit_code(number)


def exit_code(number: int) -> int:
    """The exit code after SIGINT or SIGTERM."""
    return errors.INTERRUPTED if number == signal.SIGINT else errors.TERMINATED


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Within the context SIGINT and SIGTERM raise Stopped, so that both can be caught and say what is kept."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handling(stop):
        yield


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM so that the step under way can finish; a second SIGINT raises Stopped at once."""
    received: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise Stopped(number)
        received.append(number)
        print("finishing this step (Ctrl-C again to stop at once)", file=sys.stderr)

    with _handling(collect):
        yield received


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle both signals by `handler`; in a thread other than the main one, which gets no signals, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
