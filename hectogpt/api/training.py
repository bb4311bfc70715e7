"""Recipes by name, and training from Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hectogpt import errors
from hectogpt.api.describing import StepLine, describe, is_modified, label_of
from hectogpt.api.full_run import find_corpus, run_to_folder
from hectogpt.api.progress import Progress
from hectogpt.api.resuming import Resume, check_same, extended
from hectogpt.api.show import recipe_of
from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab import ideas, recipes
from hectogpt.signals import Stopped
from hectogpt.training import setup
from hectogpt.training.run import Run
from hectogpt.training.run_folder import RUN, read_run
from hectogpt.training.session import RunResult, Session


def recipe(name: str = recipes.DEFAULT) -> Run:
    """The Run of a recipe ("top" is the best of the ladder, "minute" the best in about a minute), or of an idea in a
    file ("my.py:idea").

    A Run is frozen: `replace(run, steps=50)` gives a changed one. Raises UserError with the nearest name for one that
    does not exist.
    """
    return ideas.find_run(name)


def train(
    run: Run | str = recipes.DEFAULT,
    *,
    out: Path | str | None = None,
    corpus: Corpus | Path | str | None = None,
    prompt: str | None = None,
    quiet: bool = False,
    save_every: int | None = None,
    resume: bool = False,
    extend: int | None = None,
) -> RunResult:
    """Train a run to its end and score it on held-out text, as `hectogpt train` does, to the same bits.

    run: a Run or a recipe's name. out: its folder; None writes nothing. corpus: another text than the run's.
    prompt: what the trained model continues for summary.json. quiet: no progress on stderr. save_every: steps between
    checkpoints in the folder, 0 for none; by default they are saved by time. resume: go on with this run if it was
    begun in `out` before, from its newest checkpoint. extend: steps to add to a run there that is done.

    Raises UserError as the command does. Ctrl-C lets the step under way finish; with a folder, a checkpoint, weights,
    metrics and a summary in state "interrupted" are in it before KeyboardInterrupt goes on.
    """
    run = recipe(run) if isinstance(run, str) else run
    if corpus is not None:
        run = replace(run, corpus=corpus.name if isinstance(corpus, Corpus) else str(corpus))
    progress = Progress(quiet, lines=10)
    if isinstance(corpus, Corpus):
        setup.check_corpus(run, corpus)
    else:
        corpus = find_corpus(run, progress)
    base = recipe_of(run)
    modified = base is not None and is_modified(base, run)
    if out is None:
        return _train_without_folder(run, corpus, progress, label_of(run, modified))
    folder, going_on = Path(out).expanduser(), None
    if resume and (folder / RUN).exists():
        run, going_on = _continued(run, folder, extend, progress)
    try:
        done = run_to_folder(
            run,
            corpus,
            progress,
            name=run.recipe,
            modified=modified,
            out=folder,
            prompt=prompt,
            save_every=save_every,
            resume=going_on,
        )
    except UserError as error:
        if error.code == errors.INTERRUPTED:
            raise KeyboardInterrupt(str(error)) from None
        if error.code in (errors.TERMINATED, errors.HANGUP):
            raise SystemExit(error.code) from None
        raise
    except Stopped as stop:  # before the first step, when there is nothing to keep
        if stop.code != errors.INTERRUPTED:
            raise SystemExit(stop.code) from None
        raise KeyboardInterrupt from None
    return done.result


def _continued(run: Run, folder: Path, extend: int | None, progress: Progress) -> tuple[Run, Resume]:
    """The run in a folder, after a check that it is this one, a number of added steps aside."""
    before = read_run(folder)
    check_same(folder, before, run if extend is None else replace(run, steps=before.steps))
    if extend is not None:
        return extended(folder, before, extend, progress), Resume(folder)
    return run, Resume(folder)


def _train_without_folder(run: Run, corpus: Corpus, progress: Progress, label: str) -> RunResult:
    session = Session.open(run, corpus)
    progress.line(f"{label}: {describe(session)}")
    for _ in progress.follow(session.steps(), run.steps, StepLine(run)):
        pass
    session.evaluate("dev")
    return session.result()
