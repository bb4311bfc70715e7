"""Saves checkpoints while a run trains: every N steps, or by how much work is at stake.

The state is copied between two steps; a thread writes the copy while the next steps are computed. A checkpoint counts
only when it is on disk. One that cannot be saved is noted, and saved again at the next occasion.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from hectogpt import hardware
from hectogpt.errors import UserError
from hectogpt.signals import postponed
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.session import Session

AT_STAKE = 10.0  # seconds of work that a kill may cost, if that is to be had
SHARE = 0.02  # of the time that saving may take


class Autosave:
    """Saves a session's state.

    every: steps between checkpoints; 0 for none; None for by time: so often that a kill costs about 10 s of work, but
    not so often that saving takes more than 2 % of the time (a model of 60 million parameters has 700 MB of state).
    note: is called with a line about a checkpoint that could not be saved. before: is called before one is written (to
    put on disk what belongs to it).
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        every: int | None,
        note: Callable[[str], None],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self.checkpoints, self.every, self.note, self.before = checkpoints, every, note, before
        self._noted = ""  # what is wrong since the last checkpoint that could be saved
        self._thread: threading.Thread | None = None
        self._begun = time.monotonic()  # of the last attempt
        self._cost = self._duration = 0.0  # seconds of the last attempt: taken from training, and until it was done

    def __enter__(self) -> Autosave:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def after(self, session: Session) -> None:
        """To be called after each step: saves the session's state if it is time, and if memory has room for the copy:
        training must not die of its own safety."""
        if not self._is_due(session.step):
            return
        needed, free = 3 * sum(p.nbytes for p in session.model.parameters()), hardware.free_memory()
        if needed * 1.5 > free:
            self._note_once(f"no checkpoint for now: a copy takes {needed:,} bytes of memory, {free:,} are free")
            return
        self.wait()
        self._begun = time.monotonic()
        try:
            checkpoint = session.checkpoint()
        except UserError as error:
            self.note(f"note: no checkpoints: {error.what}: {error.why}")
            self.every = 0
            return
        copied = time.monotonic() - self._begun
        self._thread = threading.Thread(target=self._save, args=(checkpoint, copied), name="checkpoint")
        with postponed():
            self._thread.start()

    def _is_due(self, step: int) -> bool:
        if self.every is not None:
            return self.every > 0 and step % self.every == 0
        is_busy = self._thread is not None and self._thread.is_alive()
        at_stake = time.monotonic() - self._begun + self._duration  # when the next would be on disk
        return at_stake >= max(AT_STAKE, self._cost / SHARE) and not is_busy

    def last(self, session: Session) -> None:
        """Save the session's state and wait until it is on disk. Raises UserError (STORAGE)."""
        self.wait()
        if self.every != 0:
            self.before()
            self.checkpoints.save(session.checkpoint())

    def wait(self) -> None:
        """Wait for the checkpoint that is being written; so does a second signal."""
        if self._thread is not None:
            with postponed():
                self._thread.join()
                self._thread = None

    def _note_once(self, line: str) -> None:
        if not self._noted:
            self.note(f"note: {line}")
        self._noted = line

    def _save(self, checkpoint: Checkpoint, copied: float) -> None:
        """The thread's work. copied: seconds that the copy took."""
        begun = time.thread_time()
        try:
            self.before()
            self.checkpoints.save(checkpoint)
            self._noted = ""
        except (UserError, OSError) as error:
            what = f"{error.what}: {error.why}" if isinstance(error, UserError) else str(error)
            self._note_once(f"{what}; training goes on and tries again")
        finally:
            self._cost = copied + (time.thread_time() - begun) / hardware.physical_cores()
            self._duration = time.monotonic() - self._begun
