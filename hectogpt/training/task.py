"""A Task, what is to be trained and where; and its beginning, anew or where a run was left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hectogpt import errors, torch_private
from hectogpt.data import Corpus, open_corpus
from hectogpt.display import Progress
from hectogpt.errors import UserError, set_to
from hectogpt.files import free_bytes
from hectogpt.idea_file import IdeaFile
from hectogpt.run_records import (
    CHECKPOINTS,
    FIX,
    KEEP,
    METRICS,
    RUN,
    STEP_FOLDER,
    count_of,
    read_object,
)
from hectogpt.training import precision, setup
from hectogpt.training.leaves import ALONE, World
from hectogpt.training.run import Run, changes, label_of
from hectogpt.training.run_folder import RunFolder, read_steps
from hectogpt.training.session import Session

FEW_TOKENS = 2000  # held-out tokens below which a score is rough
TOKEN_SD = (
    3.0  # nats, of the losses of single tokens: 2.6 to 3.2 for n-gram models and small networks
)


@dataclass(frozen=True)
class Task:
    """A run that is to be trained, or gone on with, in a folder.

    out: the folder; runs/NAME, runs/NAME-2 ... without it. resume: a run to go on with instead.
    modified: whether the recipe was changed. own_files: the user's own that made the run.
    save_every: steps between checkpoints, 0 for none; None for by time, and none once the run is
    done. keep_checkpoints: how many stay, the newest. eval_every: steps between held-out scores on
    the way, 0 for none. track: whether TensorBoard gets the rows, too. shorter: what to do if the
    run takes long, said after five steps."""

    run: Run
    corpus: Corpus
    name: str
    out: Path | None = None
    resume: Resume | None = None
    modified: bool = False
    own_files: Sequence[IdeaFile] = ()
    save_every: int | None = None
    eval_every: int = 0
    track: bool = False
    shorter: str = ""
    keep_checkpoints: int = KEEP

    def __post_init__(self) -> None:
        for name, value in (("save_every", self.save_every or 0), ("eval_every", self.eval_every)):
            if value < 0:
                raise UserError(f"{name} = {value}", why="it counts steps; 0 means none")
        if self.keep_checkpoints < 1:
            fix = (
                set_to("keep_checkpoints", 1)
                + ", or "
                + set_to("save_every", 0)
                + " for none at all"
            )
            raise UserError(
                f"keep_checkpoints = {self.keep_checkpoints}",
                why="the newest has to stay",
                fix=fix,
            )


@dataclass(frozen=True)
class Resume:
    """A run to go on with. step: from this checkpoint (None: the newest that is whole)."""

    folder: Path
    step: int | None = None


def find_corpus(run: Run, progress: Progress, check: bool = True) -> Corpus:
    """The run's corpus, once it is known that run, corpus and memory fit each other. check:
    compare its files with their hashes. Raises UserError."""
    precision.check_memory(run.model, torch.device("cpu"), run.data, run.dtype)
    corpus = open_corpus(run.corpus, check=check)
    for problem in corpus.problems:
        progress.line(f"note: {problem}")
    setup.check_corpus(run, corpus)
    return corpus


# --- beginning
# ---


@contextmanager
def begin(
    task: Task, progress: Progress, world: World = ALONE
) -> Iterator[tuple[RunFolder, Session]]:
    """Within the context the task's folder, taken, and its session, at its first step or where the
    run to go on with is. Raises UserError."""
    run = task.run
    resume = task.resume
    at = None
    with ExitStack() as taken:
        if resume is None:
            session = Session.open(
                run, task.corpus, world=world
            )  # what is refused leaves no folder
            check_space(session, task.out or Path("runs"))
            folder = taken.enter_context(RunFolder.create(run, task.modified, task.name, task.out))
        else:
            folder = taken.enter_context(RunFolder.reopen(resume.folder, run))
            checkpoints = folder.checkpoints
            at = (
                checkpoints.newest(progress.line)
                if resume.step is None
                else checkpoints.load(resume.step)
            )
            session = Session.open(run, task.corpus, at, world)
        folder.checkpoints.keep = task.keep_checkpoints
        folder.processes = world.size
        folder.saving = {"save_every": task.save_every, "keep_checkpoints": task.keep_checkpoints}
        say_what_is_done(session, folder, progress)
        if at is not None:
            differences = session.differences(at.facts)
            exact = f"no ({', '.join(differences)})" if differences else "yes"
            progress.line(
                f"going on after step {at.step} of {run.steps} in {folder.path}; exact: {exact}"
            )
            folder.begin_again(session.done, differences)
        elif resume is not None and session.take_weights(read_steps(folder.path), folder.path):
            progress.line(
                f"all {run.steps} steps are done in {folder.path}"
            )  # its weights are all that is needed
            folder.unseal(METRICS)
            folder.begin_again(session.done, [])
        else:
            if resume is not None:
                progress.line(
                    f"{folder.path} has no checkpoint yet: the run starts at its first step"
                )
            folder.begin(session.machine, task.own_files, task.corpus.tokenizer)
        yield folder, session


def as_first_asked(task: Task) -> Task:
    """The task, with the checkpoints that the run's first command asked for where this one says
    nothing of them.
    """
    if task.resume is None:
        return task
    saving = read_object(task.resume.folder / RUN).get("saving")  # older runs have none
    told = saving if isinstance(saving, dict) else {}
    if task.save_every is None:
        task = replace(task, save_every=count_of(told.get("save_every")))
    if task.keep_checkpoints == KEEP:
        task = replace(task, keep_checkpoints=count_of(told.get("keep_checkpoints")) or KEEP)
    return task


def check_space(session: Session, where: Path) -> None:
    """Refuse a disk without room for the weights. Raises UserError (STORAGE)."""
    weights = sum(p.nbytes for p in session.model.parameters())
    with suppress(OSError):  # where it cannot be known, writing will tell
        if (free := free_bytes(where)) < 1.1 * weights:
            raise UserError(
                f"the disk of {where} is full",
                why=f"the weights take {weights:,} bytes, {free:,} are free",
                fix="free some space on it, or " + set_to("out", "a folder on another disk"),
                code=errors.STORAGE,
            )


# --- a run that is there
# ---


def named_folder(where: str) -> Resume:
    """The run that a path names: its folder, or one checkpoint inside it
    (FOLDER/checkpoints/step-N). Raises UserError (CHECKPOINT) for a path that is neither."""
    path = Path(where).expanduser()
    match = STEP_FOLDER.fullmatch(path.name)
    if match and path.parent.name == CHECKPOINTS:
        return Resume(path.parent.parent, step=int(match[1]))
    if not (path / RUN).is_file():
        raise UserError(
            f"no run in {path}", why=f"it has no {RUN}", fix=FIX, code=errors.CHECKPOINT
        )
    return Resume(path)


def runs_of(name: str | None) -> list[Path]:
    """The folders of runs that `hectogpt train` has given this name, the newest first; of all
    names without one."""
    pattern = re.compile(".*" if name is None else re.escape(name) + r"(-\d+)?")
    found = [path for path in Path("runs").glob(f"*/{RUN}") if pattern.fullmatch(path.parent.name)]
    return [
        path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    ]


def check_same(folder: Path, before: Run, after: Run) -> None:
    """Refuse to go on with a run as another one. Raises UserError."""
    if found := changes(before, after):
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise UserError(
            f"{folder} holds another run",
            why="; ".join(found[:3]) + more,
            fix="leave these options out, or " + set_to("out", f"{folder}-2") + " for a new run",
            kept="the old run, untouched",
        )


# --- in words
# ---


def say_what_is_done(session: Session, folder: RunFolder, progress: Progress) -> None:
    """Say the run's size and machine, and what there is to say about its folder and its text."""
    progress.line(f"{label_of(session.run, folder.modified)}: {describe(session)}")
    notes = [torch_private.untested()]
    if not folder.locked:
        notes.append(f"the file system of {folder.path} has no locks: start no second run there")
    for line in filter(None, [*notes, *size_notes(session.run, session.corpus)]):
        progress.line(f"note: {line}")


def size_notes(run: Run, corpus: Corpus) -> list[str]:
    """What there is to say about a small corpus."""
    found = []
    have = len(corpus.train)
    held_out = len(corpus.dev)
    if run.tokens >= 2 * have:
        found.append(
            f"{run.steps} steps read the {have:,} tokens of training text "
            f"{run.tokens / have:,.0f} times over"
        )
    if held_out < FEW_TOKENS:
        found.append(
            f"the held-out text has only {held_out:,} tokens, so the score is rough: its "
            "standard error is about "
            f"{TOKEN_SD / held_out**0.5:.2g} nats"
        )
    return found


def describe(session: Session) -> str:
    """Sizes and machine of a run, on one line."""
    run = session.run
    facts = session.machine.describe()
    kernels = session.kernels
    if kernels == "eager" and setup.step_logits(run, session.model) < setup.NATIVE_FROM:
        kernels = "eager: a step this small gains nothing from the kernels"
    return (
        f"{session.result().params:,} parameters, {run.steps} steps of {run.data.batch_size} x "
        f"{run.data.seq_len} "
        f"tokens from {session.corpus.name}; {facts['device']}, {facts['threads']} "
        f"thread{'' if facts['threads'] == 1 else 's'}, {facts['dtype']} blocks, "
        f"{facts['head_dtype']} head, "
        f"{kernels}" + (f"; {session.world.size} processes" if session.world.size > 1 else "")
    )
