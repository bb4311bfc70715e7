"""What a process of a shared run does that is not rank 0: its part of every step, and nothing that lasts."""

from __future__ import annotations

import signal

from hectogpt import errors
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
        if session.sharded is not None:
            session.sharded.see_folder(None)
        if world.hear() >= run.steps:  # so many steps are done at rank 0
            return
        with stop_on_signal(quiet=True) as signals:
            try:
                for step in session.steps(signals):
                    if session.stopping:
                        break
                    if step.number < run.steps:
                        _save_parts(session)
            except UserError as error:
                if error.code == errors.DIVERGED:
                    _save_parts(session)
                raise
            _save_parts(session)
        if session.step < run.steps:
            code = exit_code(signals[0] if signals else signal.SIGTERM)
            what = f"stopped by a signal after step {session.step} of {run.steps}"
            raise UserError(what, why="rank 0 saves what there is, and says how to go on", code=code)


def _save_parts(session: Session) -> None:
    """Write this process's parts of a checkpoint, if one is to be saved so."""
    if session.in_parts:
        from hectogpt.training.sharded_checkpoint import save_parts  # loads torch's checkpoints of several processes

        save_parts(session)
