"""Handling of Ctrl-C, SIGTERM and SIGHUP: raised at once, or collected until a step is done."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from hectogpt import errors

# The exit code of each signal that ends a run. SIGHUP, which Windows lacks, means that the
# terminal was closed.
CODES: dict[int, int] = {signal.SIGINT: errors.INTERRUPTED, signal.SIGTERM: errors.TERMINATED}
if hasattr(signal, "SIGHUP"):
    CODES[signal.SIGHUP] = errors.HANGUP
WORDS = {
    errors.INTERRUPTED: "interrupted",
    errors.TERMINATED: "terminated",
    errors.HANGUP: "hung up",
}


class Stopped(KeyboardInterrupt):
    """Raised on SIGINT, SIGTERM and SIGHUP. `code` is the corresponding exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(number)  # the argument, from which another process can rebuild it
        self.code = CODES[number]


_ignoring = False  # True while further signals are ignored


def _stop(number: int, frame: FrameType | None = None) -> None:
    if not _ignoring:
        raise Stopped(number)


@contextmanager
def raise_on_signal(last: bool = False) -> Iterator[None]:
    """Context manager: make the signals raise Stopped, so that a caller can save its results.

    Nested contexts count as one.

    Args:
        last: the process ends afterwards, so ignore further signals instead of restoring the
            previous handlers. Otherwise a late signal could change the exit code.
    """
    if signal.getsignal(signal.SIGINT) is _stop:
        yield
        return
    global _ignoring
    _ignoring = False
    with _handling(_stop, last):
        try:
            yield
        finally:
            _ignoring = False


def _send_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Send a signal again if its exception was raised while Python freed an object.

    Python only prints such exceptions, so the signal would be lost.
    """
    if isinstance(stop := unraisable.exc_value, Stopped):
        # Send it to the main thread, so that its wait ends at once; Windows has no pthread_kill.
        send = getattr(signal, "pthread_kill", lambda _, number: signal.raise_signal(number))
        try:
            threading.Timer(0.05, send, (threading.main_thread().ident, *stop.args)).start()
        except Stopped:  # sent before start() returned: it would be lost in this hook
            _send_again(unraisable)
    else:
        sys.__unraisablehook__(unraisable)


def ignore_more() -> None:
    """Ignore further signals until the end of `raise_on_signal`.

    This lets the work that the first signal started finish, and be reported once.
    """
    global _ignoring
    _ignoring = True


def stop_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the signal that was being handled when this error was raised, or None.

    Also returns None for a UserError, which names its signal itself.
    """
    while error is not None and not isinstance(error, (KeyboardInterrupt, errors.UserError)):
        error = error.__context__
    return error if isinstance(error, KeyboardInterrupt) else None


def code_of(stop: KeyboardInterrupt) -> int:
    """The exit code after a signal."""
    return stop.code if isinstance(stop, Stopped) else errors.INTERRUPTED


@contextmanager
def stop_on_signal(quiet: bool = False) -> Iterator[list[int]]:
    """Context manager: collect the first signal, so that the current step can finish.

    The next signal, of any kind, raises Stopped.

    Args:
        quiet: print no message.

    Yields the list that the signal is appended to.
    """
    received: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:
        if received:
            return _stop(number)
        received.append(number)
        # The terminal may be closed (SIGHUP), or a line may be half printed: the run matters more
        # than this message.
        with suppress(OSError, ValueError, RuntimeError):
            if sys.stderr is not None and not quiet:
                print("finishing this step (Ctrl-C again to stop at once)", file=sys.stderr)

    with _handling(collect):
        yield received


@contextmanager
def _handling(
    handler: Callable[[int, FrameType | None], None], last: bool = False
) -> Iterator[None]:
    """Context manager: handle the signals with `handler`, if this is the main thread.

    Other threads get no signals, so nothing is done there. SIGHUP stays ignored if the process was
    started that way, as `nohup` does: such a run outlives its terminal.

    Args:
        handler: called with the signal and the current frame.
        last: ignore the signals afterwards, instead of restoring the previous handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in CODES}
    taken = [
        n
        for n, old in before.items()
        if not (n == getattr(signal, "SIGHUP", None) and old == signal.SIG_IGN)
    ]
    hook = sys.unraisablehook
    sys.unraisablehook = _send_again
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number in taken:
            signal.signal(number, signal.SIG_IGN if last else before[number] or signal.SIG_DFL)
