"""One training run with a folder, from its corpus to its summary: `hectogpt train` and `hectogpt.train(run, out=...)`.

Progress goes to stderr. What ends a run early raises UserError after what can be kept is written.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hectogpt import errors, hardware
from hectogpt.api.describing import StepLine, long_run_note, say_what_is_done, spike_note
from hectogpt.api.first_weights import score_before
from hectogpt.api.progress import Progress
from hectogpt.api.resuming import Resume, take_folder_again
from hectogpt.api.scoring import check_prompt, score, unscored
from hectogpt.api.tracking import tracking
from hectogpt.data import Corpus, open_corpus
from hectogpt.errors import UserError
from hectogpt.files import free_bytes
from hectogpt.lab import ideas
from hectogpt.lab.baseline_curves import Curve
from hectogpt.model.weights import save_model
from hectogpt.signals import Stopped, exit_code, raise_on_signal, stop_on_signal
from hectogpt.training import precision, setup
from hectogpt.training.autosave import Autosave
from hectogpt.training.parallel import Alone, World
from hectogpt.training.run import Run
from hectogpt.training.run_folder import RunFolder
from hectogpt.training.session import ALONE, RunResult, Session


@dataclass(frozen=True)
class FullRun:
    """A finished run: its result, what summary.json holds, and the baseline's curve on the same text if there is
    one."""

    result: RunResult
    summary: dict[str, Any]
    baseline: Curve | None


def find_corpus(run: Run, progress: Progress, encoding: str = "utf-8", force: bool = False) -> Corpus:
    """The run's corpus, once it is known that run, corpus and memory fit each other. Raises UserError."""
    precision.check_memory(run.model, torch.device("cpu"), run.data, run.dtype)
    corpus = open_corpus(run.corpus, encoding=encoding, force=force)
    for problem in corpus.problems:
        progress.line(f"note: {problem}")
    setup.check_corpus(run, corpus)
    return corpus


def run_to_folder(
    run: Run,
    corpus: Corpus,
    progress: Progress,
    *,
    name: str,
    modified: bool,
    out: Path | None = None,
    prompt: str | None = None,
    save_every: int | None = None,
    resume: Resume | None = None,
    world: Alone | World = ALONE,
    track: Sequence[str] = (),
) -> FullRun:
    """Take the folder `out` (or runs/NAME, runs/NAME-2 ...) or that of `resume`, train, score, draw, summarise.

    modified: whether the recipe was changed. prompt: what the trained model continues at the end. save_every: steps
    between checkpoints, 0 for none; by default they are saved by time. world: the processes that share the run, of
    which this is rank 0; the others `follow`. track: trackers that hear of it. Raises UserError; its code is
    INTERRUPTED, TERMINATED or HANGUP if a signal ended the run.
    """
    check_prompt(prompt)
    if save_every is not None and save_every < 0:
        raise UserError(f"save_every = {save_every}", why="it counts steps; 0 means no checkpoints")
    with raise_on_signal():
        if resume is None:
            folder, session = take_folder(run, corpus, progress, modified, name, out, world)
        else:
            folder, session = take_folder_again(run, corpus, progress, resume, world)
        with folder:
            world.keep("folder", str(folder.path.resolve()))
            world.share(lambda: session.step)
            facts = {"modified": folder.modified, "folder": str(folder.path)}
            facts |= score_before(session, folder, progress)
            with tracking(track, session, folder, progress.line):
                run_steps(session, folder, progress, facts, save_every)
                try:
                    summary, baseline = score(session, folder, progress, facts, prompt)
                except (Exception, KeyboardInterrupt) as error:
                    told = unscored(error, session, folder, facts)
                    if told is error:
                        raise
                    raise told from None
            if save_every is None:
                folder.checkpoints.keep_newest(1)  # to extend the run; the others have served
    return FullRun(replace(session.result(), folder=folder.path), summary, baseline)


def take_folder(
    run: Run,
    corpus: Corpus,
    progress: Progress,
    modified: bool,
    name: str,
    out: Path | None,
    world: Alone | World = ALONE,
) -> tuple[RunFolder, Session]:
    """Take the run's folder, then build the model and say what will be done; if that fails, nothing of the folder is
    left."""
    own_files = ideas.files_of(run)
    wanted = out or Path("runs") / name
    before = {path for path in (wanted, *wanted.parents) if path.exists()}
    folder = RunFolder.create(run, modified, name, out)
    try:
        folder.sharing = world.record
        session = Session.open(run, corpus, world=world)
        check_space(session, folder, progress)
        say_what_is_done(session, folder, progress)
        folder.keep_ideas(own_files)
        folder.begin(session.machine)
    except BaseException:
        folder.give_up()
        with suppress(OSError):  # a folder that holds something else stays
            for path in (folder.path, *folder.path.parents):
                if path not in before:
                    path.rmdir()
        raise
    return folder, session


def check_space(session: Session, folder: RunFolder, progress: Progress) -> None:
    """Refuse a disk without room for the weights; where there is no room for as many checkpoints as are kept, keep one.
    Raises UserError (STORAGE)."""
    weights = sum(p.nbytes for p in session.model.parameters())
    try:
        free = free_bytes(folder.path)
    except OSError:  # it cannot be known: writing will tell
        return
    if free < 1.1 * weights:
        raise UserError(
            f"the disk of {folder.path} is full",
            why=f"the weights take {weights:,} bytes, {free:,} are free",
            fix="free some space on it, or set out to a folder on another disk",
            code=errors.STORAGE,
        )
    if free < 1.1 * 3 * weights * (folder.checkpoints.keep + 1):
        folder.checkpoints.keep = 1
        progress.line(f"note: {free:,} bytes are free on the disk of {folder.path}: one checkpoint is kept at a time")


def run_steps(
    session: Session, folder: RunFolder, progress: Progress, facts: dict[str, Any], save_every: int | None
) -> None:
    """Train to the end and save the weights. Raises UserError for a run that was stopped or diverged, after a
    checkpoint, its weights and a summary are written."""
    run = session.run
    autosave = Autosave(folder.checkpoints, save_every, progress.line, folder.sync_metrics)
    with stop_on_signal() as signals:
        try:
            steps = progress.follow(session.steps(signals), run.steps, StepLine(run, session.step), done=session.step)
            for step in steps:
                folder.add(step)
                if step.spike:
                    progress.line(spike_note(step))
                if step.number == 5 and (long := long_run_note(session)):
                    progress.line(f"note: {long}")
                if session.stopping:
                    break
                if step.number < run.steps:
                    autosave.after(session)
            interrupted = session.stopping and session.step < run.steps
            save_last(session, folder, autosave, progress, needed=interrupted)
        except Stopped as stop:
            raise stopped_at_once(session, folder, autosave, stop) from None
        except UserError as error:
            if error.code == errors.DIVERGED:
                save_last(session, folder, autosave, progress, needed=False)
                save_summary(session, folder, facts | {"state": "diverged"})
                error.kept += f", in {folder.path}" if error.kept else str(folder.path)
                error.fix += f"; `hectogpt check {folder.path} --diagnose` finds where"
            else:
                if error.code == errors.PEER and session.step:  # the steps done are whole here
                    with suppress(UserError):
                        autosave.last(session)
                error.kept = error.kept or kept_so_far(folder, autosave)
            raise
        except Exception as error:
            if not hardware.is_out_of_memory(error):
                progress.line(f"kept: {kept_so_far(folder, autosave)}")
                raise
            rows, leaves = run.data.rows_at_once, run.data.leaves
            field = f"data.micro_batch to {max(rows // 2, 1)}" if leaves is None else f"data.leaves to {2 * leaves}"
            raise UserError(
                f"out of memory in step {session.step + 1} of {run.steps}",
                why=str(error).strip().partition("\n")[0][:300],
                fix=f"set {field} for a new run; the batch stays the same",
                kept=kept_so_far(folder, autosave),
                code=errors.MEMORY,
            ) from None
        finally:
            autosave.wait()
    if interrupted:
        save_summary(session, folder, facts | {"state": "interrupted"})
        raise UserError(
            f"stopped by a signal after step {session.step} of {run.steps}",
            fix=f"set resume to {folder.path} to go on",
            kept=f"weights, metrics and run.json in {folder.path}",
            code=exit_code(signals[0] if signals else signal.SIGTERM),  # it came to another process
        )


def save_last(session: Session, folder: RunFolder, autosave: Autosave, progress: Progress, needed: bool) -> None:
    """Save a checkpoint of the last step done, then the weights. needed: whether the run is to go on from it, so that
    failing to save it is an error. Raises UserError (STORAGE, MEMORY)."""
    try:
        autosave.last(session)
    except UserError as error:
        if needed and error.code in (errors.STORAGE, errors.MEMORY):
            raise
        progress.line(f"note: {error.what}: {error.why}")
    folder.unseal()
    save_model(session.model, folder.path)
    folder.seal()


def stopped_at_once(session: Session, folder: RunFolder, autosave: Autosave, stop: Stopped) -> UserError:
    """The error of a run that a second signal has ended in the middle of a step or of saving."""
    return UserError(
        f"stopped during step {min(session.step + 1, session.run.steps)} of {session.run.steps}",
        why="a second signal ended it at once, so its last steps are not saved",
        fix=f"set resume to {folder.path} to go on",
        kept=kept_so_far(folder, autosave),
        code=stop.code,
    )


def kept_so_far(folder: RunFolder, autosave: Autosave) -> str:
    """What of a run is on disk before it has ended, in words."""
    autosave.wait()
    steps = folder.checkpoints.steps()
    return f"{f'the checkpoint of step {steps[-1]}, ' if steps else ''}metrics and run.json in {folder.path}"


def save_summary(session: Session, folder: RunFolder, facts: dict[str, Any]) -> None:
    """Write the summary of a run that ends early."""
    summary = session.result().summary() | facts
    missing = {key: None for key, value in summary.items() if isinstance(value, float) and not np.isfinite(value)}
    folder.finish(summary | missing)  # a run that diverged at its first step has no loss
