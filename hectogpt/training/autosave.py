"""Saves checkpoints between the steps of a run: every N steps, or by how much work is at stake."""

from __future__ import annotations

import time
from collections.abc import Callable

from hectogpt import errors, hardware
from hectogpt.errors import UserError
from hectogpt.training.checkpoint import Checkpoints
from hectogpt.training.session import Session

AT_STAKE = 10.0  # seconds of work that a kill may cost, if that is to be had
SHARE = 0.02  # of the time that saving may take


class Autosave:
    """Saves a session's state.

    every: steps between checkpoints; 0 for none; None for by time: so often that a kill costs about 10 s of work, but
    not so often that saving takes more than 2 % of the time (a model of 60 million parameters has 700 MB of state).
    note: is called with a line about a checkpoint that could not be saved, once until one can; the next occasion is
    taken again. before: is called before one is written (to put on disk what belongs to it).
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        every: int | None,
        note: Callable[[str], None],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self.checkpoints, self.every, self.note, self.before = checkpoints, every, note, before
        self._noted = False  # whether the last attempt failed
        self._done, self._cost = time.monotonic(), 0.0  # when the last attempt was over, and its seconds

    def after(self, session: Session) -> None:
        """To be called after each step: saves the session's state if it is time, and if memory has room for a copy:
        training must not die of its own safety."""
        if not self._is_due(session.step):
            return
        begun, problem = time.monotonic(), ""
        needed, free = 3 * sum(p.nbytes for p in session.model.parameters()), hardware.free_memory()
        if needed * 1.5 > free:
            problem = f"no checkpoint for now: a copy takes {needed:,} bytes of memory, {free:,} are free"
        else:
            try:
                self.before()
                self.checkpoints.save(session.checkpoint())
            except (UserError, OSError) as error:
                problem = f"{error.what}: {error.why}" if isinstance(error, UserError) else str(error)
                if isinstance(error, UserError) and error.code == errors.CHECKPOINT:  # nor can any later one be
                    self.every = 0
        if problem and not self._noted:
            self.note(f"note: {problem}; training goes on " + ("without any" if self.every == 0 else "and tries again"))
        self._noted = bool(problem)
        self._done = time.monotonic()
        self._cost = self._done - begun

    def _is_due(self, step: int) -> bool:
        if self.every is None:
            return time.monotonic() - self._done >= max(AT_STAKE, self._cost / SHARE)
        return self.every > 0 and step % self.every == 0

    def last(self, session: Session) -> None:
        """Save the session's state. Raises UserError (STORAGE)."""
        if self.every != 0:
            self.before()
            self.checkpoints.save(session.checkpoint())
