"""`hectogpt train` once its options are read: trains and prints the result, alone or as one of torchrun's processes.

Progress goes to stderr, the final table (or --json) to stdout. Under torchrun rank 0 does what one alone does and
prints, the others follow it. It names the failure of another process with its cause; if it cannot, rank 1
does. A process that has not found the others says so itself.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from hectogpt import errors
from hectogpt.cli.console import output_console
from hectogpt.cli.train import DEFAULT, TrainOptions, parse
from hectogpt.data import Corpus
from hectogpt.display import NGRAMS, printable
from hectogpt.errors import UserError
from hectogpt.lab import ideas
from hectogpt.lab.bands import band_of
from hectogpt.lab.baseline_curves import Curve
from hectogpt.lab.scoring import FullRun, run_and_score
from hectogpt.progress import Progress
from hectogpt.run_records import PICTURE, RUN, read_state
from hectogpt.serialization import dump
from hectogpt.training import setup
from hectogpt.training.checkpoint import file_hashes
from hectogpt.training.full_run import follow
from hectogpt.training.launch import Launch, NotJoinedError, PeerError
from hectogpt.training.leaves import choose_leaves
from hectogpt.training.parallel import ALONE, Alone, World, recorded
from hectogpt.training.run import Run, changes, is_modified, label_of, load_run
from hectogpt.training.run_folder import read_run
from hectogpt.training.task import Resume, Task, check_same, extended, find_corpus, named_folder, runs_of, size_notes
from hectogpt.training.trackers import parse_names

FOLDER = "folder"  # under which the run's folder is kept for attempts of torchrun after a failure


def train(run: Run, name: str, modified: bool, options: TrainOptions) -> None:
    """Train a new run, score it, print it. Raises UserError."""
    progress = Progress(options.quiet)
    corpus = find_corpus(run, progress, options.encoding, options.force)
    finish(run, corpus, progress, name, modified, options)


def resume(run: Run, name: str | None, recipe: Run, argv: list[str], options: TrainOptions) -> None:
    """Go on with the run that --resume names, or with the newest one that the command line fits; a new one if there is
    none. `run` and `recipe` are what the command line means for a new run. Raises UserError."""
    progress = Progress(options.quiet)
    settled = settle(run, name, recipe, argv, options, progress)
    if settled is None:
        return
    where, run = settled
    if where is None:
        train(run, name or DEFAULT, is_modified(recipe, run), options)
        return
    corpus = find_corpus(run, progress, options.encoding, options.force)
    finish(run, corpus, progress, where.folder.name, False, options, where)


def settle(
    run: Run, name: str | None, recipe: Run, argv: list[str], options: TrainOptions, progress: Progress
) -> tuple[Resume | None, Run] | None:
    """What is to be trained: the run to go on with, if there is one, and the Run that it goes on as, or the new one;
    None if there is nothing left to do. Raises UserError."""
    found = find(run, name, recipe, argv, options)
    if found is None:
        progress.line(f"nothing to go on with {'in ' + str(options.out) if options.out else 'below runs'}: a new run")
        return None, run
    where, run = found
    state = read_state(where.folder)
    if options.extend is not None:
        run = extended(where.folder, run, options.extend, progress)
    elif state == "done" and where.step is None:
        print(f"already complete ({run.steps}/{run.steps}): {where.folder}")
        return None
    elif state == "diverged" and where.step is None:
        raise UserError(
            f"the run in {where.folder} has diverged",
            why="from the same state it would diverge again",
            fix=f"`hectogpt check {where.folder} --diagnose` finds where; a new run with a lower learning rate",
            kept="the run, untouched",
            code=errors.DIVERGED,
        )
    return where, run


def find(run: Run, name: str | None, recipe: Run, argv: list[str], options: TrainOptions) -> tuple[Resume, Run] | None:
    """The run to go on with, and the Run that it is to go on as; None if there is none. Raises UserError.

    A folder that is named keeps its own values of options that the command line does not name. Among the runs of a
    recipe it is the newest that the same command line has begun.
    """
    assert options.resume is not None
    exact = options.require_exact
    if options.resume != "auto":
        where = named_folder(options.resume)
        return replace(where, require_exact=exact), continued(where.folder, name, recipe, argv)
    if options.out is not None:
        if not (options.out / RUN).exists():
            return None
        return Resume(options.out, require_exact=exact), continued(options.out, name, recipe, argv)
    for folder in runs_of(name):
        if name is None or is_begun_by(folder, run):
            return Resume(folder, require_exact=exact), continued(folder, name, recipe, argv)
    return None


def is_begun_by(folder: Path, run: Run) -> bool:
    """Whether the run in a folder is this one, a number of added steps aside."""
    try:
        before = read_run(folder)
    except UserError:  # of an idea that is not this one, or damaged
        return False
    return before.recipe == run.recipe and not changes(before, replace(run, steps=max(run.steps, before.steps)))


def continued(folder: Path, name: str | None, recipe: Run, argv: list[str]) -> Run:
    """The run in a folder with the options that the command line names. Raises UserError for another run."""
    before = read_run(folder)
    try:
        ideas.files_of(before)
    except UserError as error:
        file = f"{before.recipe} --resume {folder}"
        raise UserError(error.what, why=error.why, fix=f"hectogpt train {file}, with the path of the file") from None
    if name is not None and before.recipe != recipe.recipe:
        raise UserError(
            f"{folder} holds a run of {before.recipe}, not of {recipe.recipe}",
            fix=f"hectogpt train --resume {folder}, or --out with another folder",
            kept="the old run, untouched",
        )
    if before.ideas != recipe.ideas and name is not None:
        raise UserError(
            f"the file of {before.recipe} has changed since the run in {folder} began",
            why="with another idea it would be another run",
            fix=f"the file as it was: {folder / 'idea.py'}",
            kept="the old run, untouched",
            code=errors.CHECKPOINT,
        )
    _, after, _, _ = parse(argv, before)
    check_same(folder, before, after)
    return after


def finish(
    run: Run,
    corpus: Corpus,
    progress: Progress,
    name: str,
    modified: bool,
    options: TrainOptions,
    resume: Resume | None = None,
    world: Alone | World = ALONE,
) -> None:
    """Train to the end and print what came of it. world: the processes that share the run, of which this is rank 0."""
    task = Task(
        run,
        corpus,
        name,
        options.out,
        resume,
        modified,
        ideas.files_of(run),
        options.save_every,
        options.eval_every,
        parse_names(options.track),
        "" if modified else shorter_run(name, corpus.name),
        options.keep_checkpoints,
    )
    if options.dry_run:
        show_plan(run, corpus, label_of(run, modified), progress)
        return
    print_result(run_and_score(task, progress, options.prompt, world), options.json, options.quiet)


SHORTER = "half_minute"  # the recipe for machines on which the default takes minutes


def shorter_run(name: str, corpus: str) -> str:
    """What to say of a quicker recipe where the default one takes minutes; "" for other recipes."""
    if name != DEFAULT:
        return ""
    ours, other = (band_of(recipe, corpus, 100) for recipe in (name, SHORTER))
    losses = f" and reaches {other.mean:.2f} instead of {ours.mean:.2f}" if ours and other else ""
    return f"`hectogpt train {SHORTER}` takes half as long{losses}"


def print_result(done: FullRun, json: bool, quiet: bool) -> None:
    """Print the summary as JSON, or as a table."""
    if json:
        print(dumps(done.summary, allow_nan=False))
    elif not quiet:
        final_table(done.summary, done.baseline)


def show_plan(run: Run, corpus: Corpus, label: str, progress: Progress) -> None:
    """Print the run's size, what it would read, and its fields."""
    for line in size_notes(run, corpus):
        progress.line(f"note: {line}")
    print(f"{label}: {setup.count_parameters(run, corpus):,} parameters")
    epochs = run.tokens / len(corpus.train)
    print(printable(f"{run.tokens:,} training tokens of {len(corpus.train):,} in {corpus.name} ({epochs:.2f} epochs)"))
    print(dumps(dump(run), indent=2, allow_nan=False))


def final_table(summary: dict[str, Any], baseline: Curve | None) -> None:
    """Print the run beside the baseline and the n-gram models, then its two continuations and its files."""
    console = output_console()
    title = printable(f"{summary['corpus']}: held-out loss after {summary['steps']} steps")
    table = Table(title=escape(title), title_justify="left")
    for column in ("model", "nats/token", "bits/byte", "last training loss"):
        table.add_column(column, justify="left" if column == "model" else "right")
    ngrams = summary["ngrams"]
    rows = [(label, ngrams[key], "") for key, label in NGRAMS.items() if key in ngrams]
    if baseline:
        rows.append(("baseline", baseline.dev_loss, f"{baseline.losses[-1]:.3f}"))
    if "dev_loss_before" in summary:
        rows.append(("before training", summary["dev_loss_before"], ""))
    label = summary["recipe"] + (" (modified)" if summary["modified"] else "")
    rows.append((f"[bold]{label}[/bold]", summary["dev_loss"], f"{summary['train_loss_last']:.3f}"))
    rows.append((f"[bold]{label} + n-grams[/bold]", summary["dev_loss_with_ngrams"], ""))
    for name, loss, last in sorted(rows, key=lambda row: -row[1]):
        table.add_row(name, f"{loss:.3f}", f"{loss * summary['dev_bpb'] / summary['dev_loss']:.3f}", last)
    console.print(table)
    for name, text in summary["samples"].items():
        console.print(f"{name}: {printable(text)}", markup=False, highlight=False, soft_wrap=True)
    folder = printable(summary["folder"])
    console.print(f"\nThe picture: {folder}/{PICTURE}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"All of it:   {folder}", markup=False, highlight=False, soft_wrap=True)


# --- under torchrun ---------------------------------------------------------------------------------------------------


def train_shared(
    launch: Launch, run: Run, name: str | None, recipe: Run, argv: list[str], options: TrainOptions
) -> None:
    """Train as one of several processes. Raises UserError at rank 0, SystemExit with the same code at the others."""
    try:
        recorded(lambda: _train_as_one(launch, run, name, recipe, argv, options))()
    except Exception as error:
        failure = error.failure if isinstance(error, PeerError) else {}
        silent = failure.get("rank") == 0 and "wordless" in failure  # rank 0 cannot print it
        if launch.rank == 0 or isinstance(error, NotJoinedError) or (launch.rank == 1 and silent):
            raise
        if "--debug" in sys.argv:
            raise
        raise SystemExit(error.code if isinstance(error, UserError) else errors.BUG) from None


def _train_as_one(
    launch: Launch, run: Run, name: str | None, recipe: Run, argv: list[str], options: TrainOptions
) -> None:
    if options.parallel == "fsdp":
        raise UserError(
            "--parallel fsdp is gone: hectogpt shards no weights",
            why="a model that does not fit into one GPU is beyond a hundred steps on a laptop",
            fix="--parallel ddp; docs/scale.md says what serves beyond",
        )
    world = World(launch, options.dist_timeout)
    with world:
        config = dump(run)
        facts = {"code": file_hashes() | {"torch": torch.__version__}, "idea file": config.pop("ideas")}
        world.agree(facts | {"configuration": config, "options": [options.dist_timeout]})
        progress = Progress(options.quiet or not world.is_first)
        where: Resume | None = None

        def decide() -> dict[str, Any] | None:
            nonlocal where
            found = _again(world) or _settle(run, name, recipe, argv, options, progress)
            if found is None:
                return None
            where, chosen = found
            data: dict[str, Any] = dump(replace(chosen, data=choose_leaves(chosen.data, world.size)))
            return data

        decided = world.share(decide)
        if decided is None:
            world.wait_for_all("the end")  # rank 0 may keep the store
            return
        shared = load_run(decided)
        corpus = find_corpus(shared, progress, options.encoding, options.force, launch.local_rank == 0)
        world.agree({"data": corpus.sha256, "tokenizer": corpus.tokenizer.sha256})
        if not world.is_first:
            follow(shared, corpus, world)
            return
        modified = where is None and is_modified(recipe, run)
        finish(shared, corpus, progress, name or DEFAULT, modified, options, where, world)


def _again(world: World) -> tuple[Resume, Run] | None:
    """The run that an earlier attempt of this launch has begun, if there was one."""
    folder = world.kept(FOLDER) if world.launch.attempt else None
    if folder is None or not (Path(folder) / RUN).exists():
        return None
    return Resume(Path(folder)), read_run(Path(folder))


def _settle(
    run: Run, name: str | None, recipe: Run, argv: list[str], options: TrainOptions, progress: Progress
) -> tuple[Resume | None, Run] | None:
    """What the command line means; None if nothing is to be trained."""
    if options.resume is not None:
        return settle(run, name, recipe, argv, options, progress)
    if options.dry_run:
        train(run, name or DEFAULT, is_modified(recipe, run), options)
        return None
    return None, run
