"""A run in words: its name, its size, its machine, its steps as they come."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hectogpt import torch_private
from hectogpt.data import Corpus
from hectogpt.progress import Progress
from hectogpt.serialization import diff
from hectogpt.training.loop import Step
from hectogpt.training.run import Run
from hectogpt.training.run_folder import RunFolder
from hectogpt.training.session import Session

FEW_TOKENS = 2000  # held-out tokens below which a score is rough
TOKEN_SD = 3.0  # nats, of the losses of single tokens: 2.6 to 3.2 for n-gram models and small networks
# Changing these does not make a run another recipe: they choose text, luck and machine.
UNMARKED = {"corpus", "seed", "device", "dtype", "head_dtype", "threads", "compile"}


def is_modified(base: Run, run: Run) -> bool:
    """Whether a run is another recipe than `base`: whether they differ in more than text, seed, machine and leaves."""
    return bool({path.split(".")[0] for path in diff(base, run) if path != "data.leaves"} - UNMARKED)


def label_of(run: Run, modified: bool) -> str:
    """The recipe's name, marked if it was changed."""
    return run.recipe + (" (modified)" if modified else "")


def size_notes(run: Run, corpus: Corpus) -> list[str]:
    """What there is to say about a small corpus."""
    found = []
    read, have, held_out = tokens_of(run), len(corpus.train), len(corpus.dev)
    if read >= 2 * have:
        found.append(f"{run.steps} steps read the {have:,} tokens of training text {read / have:,.0f} times over")
    if held_out < FEW_TOKENS:
        found.append(
            f"the held-out text has only {held_out:,} tokens, so the score is rough: its standard error is about "
            f"{TOKEN_SD / held_out**0.5:.2g} nats"
        )
    return found


def tokens_of(run: Run) -> int:
    """Tokens that the run reads."""
    return run.steps * run.data.batch_size * run.data.seq_len


def say_what_is_done(session: Session, folder: RunFolder, progress: Progress) -> None:
    """Say the run's size and machine, and what there is to say about its folder and its text."""
    progress.line(f"{label_of(session.run, folder.modified)}: {describe(session)}")
    if versions := torch_private.untested():
        progress.line(f"note: {versions}")
    if session.machine.device.type == "mps":
        progress.line("note: Apple's GPU is not tested: compare a run with one at device cpu")
    if not folder.locked:
        progress.line(f"note: the file system of {folder.path} has no locks: start no second run there")
    for line in size_notes(session.run, session.corpus):
        progress.line(f"note: {line}")


def describe(session: Session) -> str:
    """Sizes and machine of a run, on one line."""
    run, facts = session.run, session.machine.describe()
    return (
        f"{session.result().params:,} parameters, {run.steps} steps of {run.data.batch_size} x {run.data.seq_len} "
        f"tokens from {session.corpus.name}; {facts['device']}, {facts['threads']} "
        f"thread{'' if facts['threads'] == 1 else 's'}, {facts['dtype']} blocks, {facts['head_dtype']} head, "
        f"{session.head}" + (f"; {session.world.in_words}" if session.world.in_words else "")
    )


def spike_note(step: Step) -> str:
    """A line about a loss far above the last ones."""
    done = "its update was skipped" if step.skipped else "set on_spike to skip to leave such updates out"
    return f"note: step {step.number}: loss {step.loss:.3f} is a spike ({done})"


def unmoved_note(names: Sequence[str], steps: int) -> str:
    """A line about trained tensors that have never moved."""
    named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"note: after {steps} steps {named} still have their first numbers: does the loss reach them?"


class StepLine:
    """One line about a step, with the time that is left. done: the steps before the first one shown."""

    def __init__(self, run: Run, done: int = 0) -> None:
        self.run, self.done = run, done
        self.begun = time.perf_counter()

    def seconds_of_run(self, step: Step) -> float:
        """The seconds that all steps take at the pace so far."""
        return (time.perf_counter() - self.begun) / (step.number - self.done) * self.run.steps

    def __call__(self, step: Step) -> str:
        steps = self.run.steps
        left = self.seconds_of_run(step) * (1 - step.number / steps)
        speed = self.run.data.batch_size * self.run.data.seq_len / step.seconds
        return (
            f"step {step.number:05d}/{steps:05d} | eta {left / 60:.1f}m | loss {step.loss:.3f} | lr {step.lr:.1e} | "
            f"norm {step.grad_norm:.2f} | dt {step.seconds * 1000:.0f}ms | tok/s {speed:,.0f}"
        )
