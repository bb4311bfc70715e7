"""Everything that a run does besides training, as listeners to the run's events.

Each of these functions and classes makes one listener:

step_lines     progress on stderr
rows           a line of metrics.jsonl for each step and score
Saver          checkpoints during training, and the weights at the end
early_summary  summary.json of a run that ends before it is scored
tracker        the same rows for TensorBoard
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hectogpt import errors, hardware
from hectogpt.display import Note, Progress
from hectogpt.errors import UserError
from hectogpt.model.weights import hash_weights, save_model
from hectogpt.run_records import HASH, METRICS, read_scores
from hectogpt.signals import ignore_more
from hectogpt.training.events import Ended, Event, Listener, Scored, Stepped, Trained
from hectogpt.training.loop import Step
from hectogpt.training.run import Run
from hectogpt.training.run_folder import TRAINED, RunFolder, step_row
from hectogpt.training.session import Session

AT_STAKE = 10.0  # seconds of work that a kill may lose, unless SHARE forces fewer saves
SHARE = 0.02  # the largest share of the time that saving may take


def step_lines(session: Session, progress: Progress) -> Listener:
    """Show the steps, and the scores during training."""
    run = session.run
    live = ExitStack()
    show = live.enter_context(progress.counting(run.steps))

    def listen(event: Event) -> None:
        match event:
            case Stepped(step):
                show(step.number, step_line(run, step))
            case Scored(number, _, score) if number < run.steps:
                when = f"step {number}" if number else "before training"
                progress.line(f"{when}: held-out loss {score}")
            case Trained() | Ended():
                live.close()

    return listen


def step_line(run: Run, step: Step) -> str:
    """Format a step as one line. Its ETA assumes that all later steps take as long as this one."""
    left = step.seconds * (run.steps - step.number)
    return (
        f"step {step.number:05d}/{run.steps:05d} | eta {left / 60:.1f}m | loss {step.loss:.3f} | "
        f"lr {step.lr:.1e} | norm {step.grad_norm:.2f} | dt {step.seconds * 1000:.0f}ms | "
        f"tok/s {step.own_tokens / step.seconds:,.0f}"
    )


def rows(session: Session, folder: RunFolder) -> Listener:
    """Append steps and held-out scores to metrics.jsonl as they happen.

    Each row has the hash of the weights after its step.
    """

    def listen(event: Event) -> None:
        if row := row_of(event):
            session.hashes[row["step"]] = found = hash_weights(session.model)
            folder.add(row | {HASH: found})

    return listen


def row_of(event: Event) -> dict[str, Any]:
    """Return the row of metrics.jsonl for an event, or {} if the event has no row."""
    match event:
        case Stepped(step, own):
            memory = {"mem_mb": round(hardware.peak_memory_mb(), 1)}
            return step_row(step) | {**own} | memory
        case Scored(step=number, split="dev", score=score):
            return {"step": number, "dev/loss": score.loss, "dev/bpb": score.bits_per_byte}
    return {}


@dataclass
class Saver:
    """Saves checkpoints while a run trains, and the last state and the weights when it ends.

    Attributes:
        session: the run's session.
        folder: the run's folder.
        every: steps between checkpoints. 0 saves only the checkpoint of a run that is stopped.
            None saves by time: so often that a kill loses about 10 s of work, but not so often
            that saving takes more than 2 % of the time (a model of 60 million parameters has 700
            MB of state).
        note: called with a message at the first of several failed saves in a row.
        has_weights: True once the trained model's weights are in the folder.
    """

    session: Session
    folder: RunFolder
    every: int | None
    note: Note
    has_weights = False
    _noted = False  # True if the last attempt failed
    _cost = 0.0  # seconds that the last attempt took

    def __post_init__(self) -> None:
        step = self.session.step
        is_saved = step in self.folder.checkpoints.steps()
        self._first = step - is_saved  # a session with only weights has nothing to save
        self._tried = time.monotonic()  # the end of the last attempt

    def __call__(self, event: Event) -> None:
        match event:
            case Stepped(step) if step.number < self.session.run.steps and self._is_due(
                step.number
            ):
                self._save_if_possible()
            case Trained():
                self.end(needed=False)
                self.has_weights = True
            case Ended("stopped"):
                self.end(needed=True)
            case Ended("diverged") if not self.has_weights:
                ignore_more()
                self.end(needed=False)
            case Ended("failed", UserError(code=errors.PEER)) if self.session.step:
                with suppress(UserError):  # the state is that of a complete step
                    self.save()

    def _is_due(self, step: int) -> bool:
        if self.every is None:
            return time.monotonic() - self._tried >= max(AT_STAKE, self._cost / SHARE)
        return self.every > 0 and step % self.every == 0

    def _save_if_possible(self) -> None:
        """Save the state if memory has room for a copy. A failed save must not end the run."""
        start = time.monotonic()
        problem = ""
        needed = 3 * sum(p.nbytes for p in self.session.model.parameters())
        free = hardware.free_memory()
        try:
            if needed * 1.5 > free:
                problem = f"no checkpoint for now: a copy takes {needed:,} bytes of memory; "
                problem += f"{free:,} are free"
            else:
                self.save()
        except OSError as error:
            problem = str(error)
        except UserError as error:
            problem = error.line
            if error.code == errors.CHECKPOINT:  # later checkpoints cannot be saved either
                self.every = 0
        if problem and not self._noted:
            how = "without checkpoints" if self.every == 0 else "and tries again"
            self.note(f"note: {problem}; training continues {how}")
        self._noted = bool(problem)
        self._tried = time.monotonic()
        self._cost = self._tried - start

    def save(self) -> None:
        """Save the state, after syncing metrics.jsonl. Raises UserError (STORAGE, CHECKPOINT)."""
        self.folder.sync_metrics()
        self.folder.checkpoints.save(self.session.checkpoint())

    def end(self, needed: bool) -> None:
        """Save a checkpoint of the last step if this process has done one, then save the weights.

        Args:
            needed: the run will be resumed from the checkpoint, so failing to save it is an error.

        Raises UserError (STORAGE, MEMORY).
        """
        step = self.session.step
        steps = self.session.run.steps
        # By default (every is None) a run that is done keeps no checkpoint, so none is saved then.
        try:
            if step > self._first and (needed or self.every != 0) and (self.every or step < steps):
                self.save()
        except UserError as error:
            if needed and error.code in (errors.STORAGE, errors.MEMORY):
                raise
            self.note(f"note: {error.line}")
        self.folder.unseal()
        save_model(self.session.model, self.folder.path)
        self.folder.seal(TRAINED)  # scoring changes the other files, and may be killed


def early_summary(session: Session, folder: RunFolder, note: Note) -> Listener:
    """Collect facts for summary.json, and write it if the run ends before it is scored.

    After ten steps and at the end, prints a note about trained tensors that have not changed.

    Args:
        session: the run's session.
        folder: the run's folder, whose `facts` are filled in.
        note: called with each note.
    """
    facts = folder.facts
    if first := session.run.first_weights:
        facts["first_weights"] = {"source": first.source, "sha256": first.sha256}
        before = dict(read_scores(folder.path / METRICS)).get(0)
        if before is not None:
            facts["dev_loss_before"] = before
        elif not session.step:
            note(f"scoring the weights of {first.source} ...")

    def note_unmoved() -> None:
        facts["unmoved"] = names = session.unmoved()
        if names:
            named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
            note(f"note: {named} have not changed: does the loss depend on them?")

    def write(state: str) -> None:
        facts["unmoved"] = session.unmoved()
        folder.finish(session.result().summary() | {"state": state})

    trained = False

    def listen(event: Event) -> None:
        nonlocal trained
        match event:
            case Stepped(step) if step.number == 10 < session.run.steps:
                note_unmoved()
            case Scored(0, _, score):
                facts["dev_loss_before"] = score.loss
            case Trained():
                trained = True
                note_unmoved()
            case Ended("stopped"):
                ignore_more()
                write("interrupted")
            case Ended("diverged"):
                write("diverged")
            case Ended("failed") if trained:
                with suppress(UserError):
                    write("unscored")

    return listen


def tracker(folder: Path, fields: dict[str, Any], step: int, note: Note) -> Listener:
    """Write the rows of metrics.jsonl to event files in RUN/tensorboard.

    If TensorBoard raises, the run prints one note and continues without it.

    Args:
        folder: the run's folder.
        fields: the run and the machine, as plain values.
        step: how many steps are done.
        note: called with a message if something fails, and at the end with the command that shows
            the events.
    """
    writer: Any = None  # False once it has failed

    def open_writer() -> None:
        nonlocal writer
        from torch.utils.tensorboard import SummaryWriter

        # Discard rows of later steps that an earlier process has written.
        where = str(folder.resolve() / "tensorboard")
        writer = SummaryWriter(where, purge_step=step + 1, flush_secs=2)
        text = json.dumps(fields, indent=2, allow_nan=False)
        writer.add_text("run", "    " + text.replace("\n", "\n    "), 0)

    def add(event: Event) -> None:
        row = row_of(event)
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                writer.add_scalar(name, value, row["step"])
        if isinstance(event, Ended):
            writer.close()
            note(f"tensorboard: tensorboard --logdir {folder.resolve()}")

    def attempt(do: Callable[..., None], *arguments: Any) -> None:
        nonlocal writer
        try:
            with redirect_stdout(sys.stderr):
                do(*arguments)
        except (Exception, SystemExit) as error:  # any error: a tracker must not end a run
            writer = False
            why = str(error).strip().rpartition("\n")[2][:300]
            name = type(error).__name__
            note(f"note: TensorBoard failed: {name}: {why}; training continues")

    attempt(open_writer)

    def listen(event: Event) -> None:
        if writer:
            attempt(add, event)

    return listen


def check_tensorboard() -> None:
    """Raise UserError if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise errors.not_installed("the tracker", "tensorboard", "tensorboard")
