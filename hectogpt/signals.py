"""Ctrl-C, SIGTERM and SIGHUP while there is something to keep: raised at once, or collected until
a step is done."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from hectogpt import errors

# The exit code of each signal that ends a run. Windows has no SIGHUP, which tells that the
# terminal is gone.
CODES: dict[int, int] = {signal.SIGINT: errors.INTERRUPTED, signal.SIGTERM: errors.TERMINATED}
if hasattr(signal, "SIGHUP"):
    CODES[signal.SIGHUP] = errors.HANGUP
WORDS = {
    errors.INTERRUPTED: "interrupted",
    errors.TERMINATED: "terminated",
    errors.HANGUP: "hung up",
}


class Stopped(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP has arrived. `code` is the exit code that belongs to it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)  # what another process makes it again of
        self.code = CODES[number]


_ignoring = False  # whether further signals no longer matter


def _stop(number: int, frame: FrameType | None = None) -> None:
    if not _ignoring:
        raise Stopped(number)


@contextmanager
def raise_on_signal(last: bool = False) -> Iterator[None]:
    """Within the context the signals raise Stopped, so that all can be caught and say what is
    kept. One context in another is one. last: whether the process ends after it; it then does so
    with its own exit code."""
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
    """What is raised while Python frees an object is lost, and printed: such a signal comes again
    a moment later."""
    if isinstance(stop := unraisable.exc_value, Stopped):
        # To the main thread, so that what it waits for ends at once; Windows has no pthread_kill.
        send = getattr(signal, "pthread_kill", lambda _, number: signal.raise_signal(number))
        threading.Timer(0.01, send, (threading.main_thread().ident, *stop.args)).start()
    else:
        sys.__unraisablehook__(unraisable)


def ignore_more() -> None:
    """Until the end of `raise_on_signal` no other signal changes anything: what the first one has
    begun is finished, and said once."""
    global _ignoring
    _ignoring = True


def stop_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The signal during whose handling this error was raised; None without one, and for a
    UserError, which names its signal itself."""
    while error is not None and not isinstance(error, (KeyboardInterrupt, errors.UserError)):
        error = error.__context__
    return error if isinstance(error, KeyboardInterrupt) else None


def code_of(stop: KeyboardInterrupt) -> int:
    """The exit code after a signal."""
    return stop.code if isinstance(stop, Stopped) else errors.INTERRUPTED


@contextmanager
def stop_on_signal(quiet: bool = False) -> Iterator[list[int]]:
    """Collect the first signal so that the step under way can finish; the next one, whichever,
    raises Stopped. quiet: whether to say nothing of it."""
    received: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:
        if received:
            return _stop(number)
        received.append(number)
        # The terminal may be gone, which SIGHUP tells, or a line may be half printed: the run
        # matters, not the words.
        with suppress(OSError, ValueError, RuntimeError):
            if sys.stderr is not None and not quiet:
                print("finishing this step (Ctrl-C again to stop at once)", file=sys.stderr)

    with _handling(collect):
        yield received


@contextmanager
def _handling(
    handler: Callable[[int, FrameType | None], None], last: bool = False
) -> Iterator[None]:
    """Handle the signals by `handler`; in a thread other than the main one, which gets no signals,
    do nothing. last: whether to ignore them afterwards, instead of what was before.

    SIGHUP stays ignored where the process was started so, as `nohup` does: such a run outlives its
    terminal."""
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
