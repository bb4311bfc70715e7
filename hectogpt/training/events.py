"""A training run as a stream of events, from its initial weights to its last score.

    stream = events(run, corpus)
    for event in stream:
        if isinstance(event, Stepped):
            print(event.step.loss)

All code that trains a run reads this stream: commands, users' programs, trials, the judge and the
processes of torchrun. Everything else that a run does (rows, checkpoints, progress) is done by
listeners: functions that take an event and know nothing of each other. `session_of` takes `Began`
off the stream; `drive` then hands every other event to all listeners. The processes that share a
run wait for each other at named points of the stream.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hectogpt import errors
from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.signals import CODES, ignore_more, stop_on_signal
from hectogpt.training.checkpoint import Checkpoint
from hectogpt.training.evaluate import EvalResult
from hectogpt.training.loop import Step
from hectogpt.training.parallel import ALONE, World
from hectogpt.training.run import Run
from hectogpt.training.session import Session


@dataclass(frozen=True)
class Began:
    """The session is built. It is at step 0, or at the checkpoint to resume from."""

    session: Session


@dataclass(frozen=True)
class Stepped:
    """A step is done.

    Attributes:
        step: the step.
        own: the numbers that the run's AfterStep parts returned.
    """

    step: Step
    own: Mapping[str, float]


@dataclass(frozen=True)
class Scored:
    """A held-out split was scored with the weights after `step` steps."""

    step: int
    split: str
    score: EvalResult


@dataclass(frozen=True)
class Trained:
    """All steps are done. The scores at the end follow."""


@dataclass(frozen=True)
class Ended:
    """The last event of a stream.

    Attributes:
        how: how the run ended. "done": after the last score. "stopped": by a signal, after a
            complete step. "diverged": before the update that would have spoiled the weights.
            "failed": for any other reason.
        error: the exception that gives the reason. None if the run is done.
    """

    how: Literal["done", "stopped", "diverged", "failed"]
    error: BaseException | None = None

    @property
    def why(self) -> str:
        """The reason in one sentence."""
        error = self.error
        return error.line if isinstance(error, UserError) else str(error)


Event: TypeAlias = Began | Stepped | Scored | Trained | Ended
Stream: TypeAlias = Generator[Event, None, None]
Listener: TypeAlias = Callable[[Event], None]


def events(
    run: Run,
    corpus: Corpus,
    at: Checkpoint | None = None,
    world: World = ALONE,
    eval_every: int = 0,
    splits: Sequence[str] = (),
    stoppable: bool = False,
) -> Stream:
    """Train a run and yield its events. `Session.open` builds it, and `Session.steps` trains it.

    Args:
        run: the run to train.
        corpus: its text.
        at: the checkpoint to resume from; only rank 0 passes one.
        world: the processes that share the run. Only rank 0 scores.
        eval_every: steps between held-out scores on dev; 0 disables them. The weights do not
            depend on this number.
        splits: the splits to score after the last step. If "dev" is one of them and the run starts
            from another model's weights, dev is scored with those weights too.
        stoppable: when a signal arrives, end the run after the current step, not at once.

    Raises UserError if the run cannot start. Errors in a step are raised too, except divergence,
    which is an event.
    """
    session = Session.open(run, corpus, at, world)
    yield Began(session)
    is_first = world.is_first
    try:
        if "dev" in splits and run.first_weights and not session.step and is_first:
            yield Scored(0, "dev", session.evaluate("dev"))
        # Rank 0 may have loaded the weights of the run's end, and has no step left then.
        done = world.share("the first step", lambda: session.step)
        collected: AbstractContextManager[Sequence[int]] = nullcontext(())
        if stoppable:
            collected = stop_on_signal(quiet=not is_first)
        with collected as signals:
            for step in session.steps(signals) if done < run.steps else ():
                yield Stepped(step, session.metrics)
                is_last = step.number == run.steps
                if eval_every and step.number % eval_every == 0 and not is_last:
                    score = session.evaluate("dev") if is_first else None
                    world.meet("scored", step.number)  # the others wait here until rank 0 is done
                    if score is not None:
                        yield Scored(step.number, "dev", score)
                if session.stopping and not is_last:
                    # If this process received no signal, a different process did.
                    number = signals[0] if signals else signal.SIGTERM
                    what = f"by a signal after step {step.number} of {run.steps}"
                    why = f"{signal.Signals(number).name} arrived"
                    yield Ended("stopped", UserError(what, why=why, code=CODES[number]))
                    return
            if is_first:
                yield Trained()
        for split in splits if is_first else ():
            yield Scored(run.steps, split, session.evaluate(split))
        yield Ended("done")
    except UserError as error:
        if error.code != errors.DIVERGED:
            raise
        yield Ended("diverged", error)


def session_of(stream: Stream) -> Session:
    """Take the first event of a stream and return its session."""
    event = next(stream)
    assert isinstance(event, Began)
    return event.session


def drive(stream: Stream, *listeners: Listener) -> Ended:
    """Hand each event to all listeners, in the given order, and return how the run ended.

    An exception from the stream or a listener ends the run as "failed". All listeners get that
    event too, and from then on further signals are ignored.
    """
    event: Event = Ended("failed")
    try:
        for event in stream:
            for listener in listeners:
                listener(event)
    except (Exception, KeyboardInterrupt) as error:
        ignore_more()
        event = Ended("failed", error)
        for listener in listeners:
            listener(event)
    finally:
        stream.close()
    assert isinstance(event, Ended)
    return event
