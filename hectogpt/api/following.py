"""What a process of a shared run does that is not rank 0: its part of every step, and nothing that lasts."""

from __future__ import annotations

import signal

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.signals import exit_code, raise_on_signal, stop_on_signal
from hectogpt.training.parallel import World
from hectogpt.training.run import Run
from hectogpt.training.session import Session


def follow(run: Run, corpus: Corpus, world: World) -> None:
    """Take part in a run that rank 0 leads, to its end. Raises UserError with the code that rank 0 ends with."""
    with raise_on_signal():
        session = Session.open(run, corpus, world=world)
        done = world.share(lambda: session.step)
        if done >= run.steps:
            return
        with stop_on_signal(quiet=True) as signals:
            for _ in session.steps(signals):
                if session.stopping:
                    break
        if session.step < run.steps:
            code = exit_code(signals[0] if signals else signal.SIGTERM)
            what = f"stopped by a signal after step {session.step} of {run.steps}"
            raise UserError(what, why="rank 0 saves what there is, and says how to go on", code=code)
