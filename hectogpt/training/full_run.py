"""A training run with a folder, in each of its processes: from its corpus to what it leaves.

Progress goes to stderr. What ends a run early raises UserError after what can be kept is written.
The score at the end is the caller's: lab/scoring.py has it for commands and for Python."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TypeVar

from hectogpt import errors, hardware
from hectogpt.data import Corpus
from hectogpt.display import Progress
from hectogpt.errors import UserError, set_to
from hectogpt.model.weights import save_model
from hectogpt.run_records import METRICS, read_scores
from hectogpt.serialization import dump
from hectogpt.signals import (
    CODES,
    code_of,
    ignore_more,
    raise_on_signal,
    stop_behind,
    stop_on_signal,
)
from hectogpt.training.evaluate import evaluate
from hectogpt.training.leaves import ALONE, World
from hectogpt.training.loop import Step
from hectogpt.training.run import Run
from hectogpt.training.run_folder import TRAINED, RunFolder
from hectogpt.training.session import Session
from hectogpt.training.task import Task, as_first_asked, begin
from hectogpt.training.tracker import Tracker

T = TypeVar("T")
LONG = 90.0  # seconds of a run from which a quicker one is named
AT_STAKE = 10.0  # seconds of work that a kill may cost, if that is to be had
SHARE = 0.02  # of the time that saving may take


def run_to_folder(
    task: Task, progress: Progress, score: Callable[[Session, RunFolder], T], world: World = ALONE
) -> T:
    """Take the run's folder, train to the end, score. Returns what `score` does, which finishes
    the folder.

    world: the processes that share the run, of which this is rank 0; the others `follow`. Raises
    UserError; its code is INTERRUPTED, TERMINATED or HANGUP if a signal ended the run."""
    task = as_first_asked(task)
    with raise_on_signal(), begin(task, progress, world) as (folder, session):
        score_before(session, folder, progress)
        world.share(lambda: session.step)  # `follow` waits here, however long the score takes
        fields = {"run": dump(session.run), "machine": session.machine.describe()}
        with closing(
            Tracker(task.track, folder.path, fields, session.step, progress.line)
        ) as tracker:
            folder.on_row = tracker.add
            train_in_folder(session, folder, progress, task)
            folder.facts["unmoved"] = note_unmoved(session, progress)
            with ending_as(lambda error: _unscored(error, session, folder, progress)):
                found = score(session, folder)
        if task.save_every is None:
            folder.checkpoints.remove()  # they have served
    return found


def follow(run: Run, corpus: Corpus, world: World, eval_every: int) -> None:
    """Take part in a run that rank 0 leads, to its end, and leave nothing. eval_every: as in rank
    0's Task. Raises UserError with the code that rank 0 ends with."""
    with raise_on_signal():
        session = Session.open(run, corpus, world=world)
        done = world.share(lambda: session.step)
        if done >= run.steps:
            return
        with stop_on_signal(quiet=True) as signals:
            for step in session.steps(signals):
                if is_scored(step, eval_every, run):
                    world.share(lambda: None)
                if session.stopping:
                    break
        if session.step < run.steps:
            raise _stopped(
                session, signals, why="rank 0 saves what there is, and says how to go on"
            )


def score_before(session: Session, folder: RunFolder, progress: Progress) -> None:
    """Add to the folder's facts where the run's first weights came from, their hash, and their
    held-out loss, which is measured before the first step and kept in metrics.jsonl. Nothing for a
    run that drew its weights."""
    first = session.run.first_weights
    corpus = session.corpus
    if first is None:
        return
    folder.facts["first_weights"] = {"source": first.source, "sha256": first.sha256}
    if not session.step:
        progress.line(
            f"first weights: {first.source}; scoring {len(corpus.dev):,} held-out tokens with "
            "them ..."
        )
        score = evaluate(session.model, corpus.tokens["dev"], corpus.tokenizer.token_bytes)
        folder.add_score(0, score)
        progress.line(f"before training: held-out loss {score}")
    if (before := dict(read_scores(folder.path / METRICS)).get(0)) is not None:
        folder.facts["dev_loss_before"] = before


def train_in_folder(session: Session, folder: RunFolder, progress: Progress, task: Task) -> None:
    """Train to the end and save the weights. Raises UserError for a run that was stopped or
    diverged, after a checkpoint, its weights and a summary are written."""
    run = session.run
    begun = time.monotonic()
    autosave = Autosave(session, folder, task.save_every, progress.line)
    with stop_on_signal() as signals, ending_as(lambda error: _explained(error, autosave)):
        for step in progress.follow(
            session.steps(signals), run.steps, partial(step_line, run), session.step
        ):
            folder.add(step, session.metrics)
            if score_between(session, step, task.eval_every, progress):
                folder.add_score(step.number, session.scores["dev"])
            if (
                step.number == 5
                and task.shorter
                and (seconds := (time.monotonic() - begun) / 5 * run.steps) > LONG
            ):
                progress.line(
                    f"note: this run takes about {seconds / 60:.1f} minutes here; {task.shorter}"
                )
            if step.number == 10 < run.steps:
                note_unmoved(session, progress)
            if session.stopping:
                break
            if step.number < run.steps:
                autosave.after_step()
        interrupted = session.stopping and session.step < run.steps
        autosave.end(needed=interrupted)
        if interrupted:
            ignore_more()
    if interrupted:
        finish_early(session, folder, "interrupted")
        kept = f"weights, metrics and run.json in {folder.path}"
        fix = ""
        if folder.checkpoints.steps():
            fix = set_to("resume", folder.path)
        raise _stopped(session, signals, fix=fix, kept=kept)


def note_unmoved(session: Session, progress: Progress) -> list[str]:
    """The trained tensors that have never moved, which are said."""
    names = session.unmoved()
    if names:
        named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        progress.line(f"note: {named} still have their first numbers: does the loss reach them?")
    return names


def _stopped(
    session: Session, signals: Sequence[int], why: str = "", fix: str = "", kept: str = ""
) -> UserError:
    """The error of a run that a signal has ended after a step; it may have come to another
    process.
    """
    what = f"by a signal after step {session.step} of {session.run.steps}"
    return UserError(
        what, why=why, fix=fix, kept=kept, code=CODES[signals[0] if signals else signal.SIGTERM]
    )


def is_scored(step: Step, every: int, run: Run) -> bool:
    """Whether a held-out score follows a step: only every so many (0: never), and not after the
    last, which is scored anyway."""
    return every > 0 and step.number % every == 0 and step.number != run.steps


def score_between(session: Session, step: Step, every: int, progress: Progress) -> bool:
    """Score on dev if it is time, and say it; whether it was. Scoring changes no bit of the
    run.
    """
    if not is_scored(step, every, session.run):
        return False
    progress.line(f"step {step.number}: held-out loss {session.evaluate('dev')}")
    session.world.share(lambda: None)  # `follow` waits here, however long the score takes
    return True


def step_line(run: Run, step: Step) -> str:
    """Return a step as one line; `eta` assumes that the remaining steps take as long as this."""
    left = step.seconds * (run.steps - step.number)
    return (
        f"step {step.number:05d}/{run.steps:05d} | eta {left / 60:.1f}m | loss {step.loss:.3f} | "
        f"lr {step.lr:.1e} | "
        f"norm {step.grad_norm:.2f} | dt {step.seconds * 1000:.0f}ms | tok/s "
        f"{step.own_tokens / step.seconds:,.0f}"
    )


# --- checkpoints along a run
# ---


class Autosave:
    """Saves a session's state in its folder.

    every: steps between checkpoints; 0 for none but that of a run that is stopped; None for by
        time: so often that a
    kill costs about 10 s of work, but not so often that saving takes more than 2 % of the time (a
    model of 60 million
    parameters has 700 MB of state).
    note: is called with a line about a checkpoint that could not be saved, once until one can; the
        next occasion is
    taken again.
    """

    def __init__(
        self, session: Session, folder: RunFolder, every: int | None, note: Callable[[str], None]
    ) -> None:
        self.session = session
        self.folder = folder
        self.every = every
        self.note = note
        self._first = session.step - (
            session.step in folder.checkpoints.steps()
        )  # from weights alone: nothing to save
        self._noted = False  # whether the last attempt failed
        self._tried = time.monotonic()
        self._cost = 0.0  # when the last attempt was over, and its seconds

    def after_step(self) -> None:
        """Save the state if it is time, and if memory has room for a copy: training must not die
        of its own safety."""
        if not self._is_due(self.session.step):
            return
        begun = time.monotonic()
        problem = ""
        needed = 3 * sum(p.nbytes for p in self.session.model.parameters())
        free = hardware.free_memory()
        if needed * 1.5 > free:
            problem = (
                f"no checkpoint for now: a copy takes {needed:,} bytes of memory, {free:,} are "
                "free"
            )
        else:
            try:
                self.save()
            except (UserError, OSError) as error:
                problem = (
                    f"{error.what}: {error.why}" if isinstance(error, UserError) else str(error)
                )
                if (
                    isinstance(error, UserError) and error.code == errors.CHECKPOINT
                ):  # nor can any later one be
                    self.every = 0
        if problem and not self._noted:
            self.note(
                f"note: {problem}; training goes on "
                + ("without any" if self.every == 0 else "and tries again")
            )
        self._noted = bool(problem)
        self._tried = time.monotonic()
        self._cost = self._tried - begun

    def _is_due(self, step: int) -> bool:
        if self.every is None:
            return time.monotonic() - self._tried >= max(AT_STAKE, self._cost / SHARE)
        return self.every > 0 and step % self.every == 0

    def save(self) -> None:
        """Save the state, after the rows of metrics.jsonl. Raises UserError (STORAGE,
        CHECKPOINT).
        """
        self.folder.sync_metrics()
        self.folder.checkpoints.save(self.session.checkpoint())

    def end(self, needed: bool) -> None:
        """Save a checkpoint of the last step done, if this process has done one, then the weights.
        needed: whether the run is to go on from it, so that failing to save it is an error. Raises
        UserError (STORAGE, MEMORY)."""
        step = self.session.step
        steps = self.session.run.steps
        try:
            if step > self._first and (needed or self.every != 0) and (self.every or step < steps):
                self.save()
        except UserError as error:
            if needed and error.code in (errors.STORAGE, errors.MEMORY):
                raise
            self.note(f"note: {error.what}: {error.why}")
        self.folder.unseal()
        save_model(self.session.model, self.folder.path)
        self.folder.seal(TRAINED)  # scoring changes the others, and may be killed


# --- what ends a run early
# ---


@contextmanager
def ending_as(explain: Callable[[BaseException], BaseException]) -> Iterator[None]:
    """What ends the context early is raised as what `explain` makes of it, which no further signal
    disturbs.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        ignore_more()
        if (ending := explain(error)) is error:
            raise
        raise ending from None


def _explained(error: BaseException, autosave: Autosave) -> BaseException:
    """What to raise for what ended a run before its last step, after what can be kept is
    written.
    """
    session = autosave.session
    folder = autosave.folder
    run = autosave.session.run
    if isinstance(error, UserError) and error.code == errors.DIVERGED:
        autosave.end(needed=False)
        finish_early(session, folder, "diverged")
        kept = f"{error.kept}, in {folder.path}" if error.kept else str(folder.path)
        return error.amended(
            fix=error.fix + f"; `hectogpt check {folder.path} --diagnose` finds where", kept=kept
        )
    if (
        isinstance(error, UserError) and error.code == errors.PEER and session.step
    ):  # the steps done are whole here
        with suppress(UserError):
            autosave.save()
    steps = folder.checkpoints.steps()
    kept = (
        f"{f'the checkpoint of step {steps[-1]}, ' if steps else ''}metrics and run.json in "
        f"{folder.path}"
    )
    if stop := stop_behind(error):
        what = f"stopped during step {min(session.step + 1, run.steps)} of {run.steps}"
        why = "a second signal ended it at once, so its last steps are not saved"
        fix = set_to("resume", folder.path)
        return UserError(what, why=why, fix=fix, kept=kept, code=code_of(stop))
    if hardware.is_out_of_memory(error):
        return UserError(
            f"out of memory in step {session.step + 1} of {run.steps}",
            why=errors.first_line(error),
            fix=set_to("data.leaves", 2 * (run.data.leaves or 1))
            + " for a new run; the batch stays the same",
            kept=kept,
            code=errors.MEMORY,
        )
    if isinstance(error, UserError):
        return error.amended(kept=error.kept or kept)
    autosave.note(f"kept: {kept}")
    return error


def _unscored(
    error: BaseException, session: Session, folder: RunFolder, progress: Progress
) -> BaseException:
    """What to raise when scoring ends early: says that the weights are kept, after a summary
    without scores is written if that can be done."""
    diverged = isinstance(error, UserError) and error.code == errors.DIVERGED
    with suppress(UserError):
        finish_early(session, folder, "diverged" if diverged else "unscored")
    kept = f"the trained weights, metrics and run.json in {folder.path}"
    fix = f"hectogpt check {folder.path} --repair"
    if stop := stop_behind(error):
        what = "stopped while the trained model was being scored"
        return UserError(what, fix=fix, kept=kept, code=code_of(stop))
    if isinstance(error, OSError):
        return errors.unwritable(error.filename or folder.path, error, fix=fix, kept=kept)
    if isinstance(error, UserError):
        return error.amended(fix=error.fix or fix, kept=kept)
    progress.line(f"kept: {kept}\nfix: {fix}")
    return error


def finish_early(session: Session, folder: RunFolder, state: str) -> None:
    """Write the summary of a run that ends before it is scored. Raises UserError (STORAGE)."""
    folder.finish(session.result().summary() | {"unmoved": session.unmoved(), "state": state})
