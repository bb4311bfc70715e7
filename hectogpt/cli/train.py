"""`hectogpt train [RECIPE]`: read the options, train, and print the result.

It runs by itself or as one of torchrun's processes. Progress goes to stderr, the final table (or
--json) to stdout. Under torchrun, rank 0 behaves like a single process and does the printing; the
other ranks follow. A failing process reports its own error; ranks 0 and 1 also report that another
process failed.

From here to the weights on disk: `parse` makes a Plan, with a recipe from lab/ideas.py.
`train_plan` hands it to `run_and_score` in lab/full_run.py, which trains it in a locked folder
(training/run_folder.py). The steps are a stream of events: training/events.py, from the Session in
training/session.py. The Saver in training/listeners.py hears them, and writes the weights after
the last step.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from hectogpt import errors
from hectogpt.cli import Option, options_in, read_words
from hectogpt.cli.console import loss_table, remarks, show
from hectogpt.cli.options import TrainOptions
from hectogpt.data import Corpus, find_tokenizer
from hectogpt.display import NGRAMS, Progress, one_line
from hectogpt.errors import CheckpointError, UserError
from hectogpt.files import check_hashes
from hectogpt.idea_file import remember
from hectogpt.lab import ideas, recipes
from hectogpt.lab.full_run import (
    FullRun,
    Plan,
    check_same,
    find_corpus,
    follow,
    is_it_usual,
    named_folder,
    run_and_score,
    size_notes,
)
from hectogpt.lab.recipes import DEFAULT
from hectogpt.run_records import PICTURE, RUN, RUNNING, locate_run, read_record
from hectogpt.serialization import dump
from hectogpt.training import setup
from hectogpt.training.checkpoint import code_hash
from hectogpt.training.history import History
from hectogpt.training.listeners import check_tensorboard
from hectogpt.training.parallel import (
    ALONE,
    DisagreementError,
    Launch,
    PeerError,
    SharedWorld,
    World,
    choose_leaves,
    find_launch,
    recorded,
)
from hectogpt.training.run import Run, changes, files_of, label_of, load_run
from hectogpt.training.run_folder import Branch, read_run

# Exit codes that all processes of a run share.
COMMON = (errors.DIVERGED, errors.INTERRUPTED, errors.TERMINATED, errors.HANGUP)


@dataclass(frozen=True)
class Words(TrainOptions):
    """The options of a command line, and the words that override fields of the run.

    TrainOptions derives from Habits, so this object also holds the Habits of the run.

    Attributes:
        corpus: the text to train on; None takes the run's own.
        fields: the words that override fields.
        typed: all words after `hectogpt train`.
    """

    corpus: str | None = None
    fields: tyro.conf.Fixed[tuple[str, ...]] = ()
    typed: tyro.conf.Fixed[tuple[str, ...]] = ()


def main(argv: list[str]) -> None:
    """Train a new run, or resume one; score it and print the result. Raises UserError."""
    options, plan = parse(argv)
    launch = find_launch()  # None unless torchrun has started this process
    ideas.check_causal(plan.run)
    if options.track == "tensorboard":
        check_tensorboard()
    if options.resume is None and plan.run.recipe == "finetune" and plan.run.first_weights is None:
        fix = "hectogpt train finetune --init gpt2, or a folder"
        why = "the recipe finetune starts from another model"
        raise UserError("nothing to fine-tune", why=why, fix=fix)
    if launch is not None and not options.dry_run:
        train_shared(launch, options, plan)
    elif launch is None or launch.rank == 0:
        progress = Progress(options.quiet)
        if found := find_plan(options, plan, progress):
            train_plan(options, found, find_corpus(found.run, progress), progress)


def parse(argv: list[str]) -> tuple[Words, Plan]:
    """Read a command line. Returns its options, and the plan of the run that it describes."""
    named = bool(argv) and not argv[0].startswith("-")
    given, words = (argv[0], argv[1:]) if named else (DEFAULT, argv)
    recipe = ideas.find_run(given)
    if "--help-all" in words:
        about = recipes.describe(recipe.recipe) if recipe.recipe in recipes.RECIPES else ""
        read(arguments_of(recipe), ["--help"], argv, recipe, description=about)
    options, fields = read(Words, words, argv, recipe, return_unknown_args=True)
    options = replace(options, fields=tuple(fields), typed=tuple(argv))
    recipe = fitted(replace(recipe, corpus=options.corpus or recipe.corpus))
    if options.init:
        own = [options.idea] if options.idea else []
        recipe = ideas.start_from(recipe, options.init, own, remarks(options.quiet))
    run = recipe
    branch = None
    name = ideas.folder_name(given) if named else None
    if options.branch:
        branch = find_branch(options.branch, options)
        name = f"{Path(branch.run).name[:50]}-at-{branch.step}"
        run = run_in(Path(branch.run), recipe if named else None, options.idea)
        recipe = fitted(recipes.recipe_of(run) or run)
    run = override(run, options)
    if branch and run.steps <= branch.step:
        why = f"it counts the trunk's {branch.step} steps too"
        raise UserError(f"--steps {run.steps}", why=why, fix=f"--steps {branch.step + run.steps}")
    return options, Plan(run, habits=options, name=name, recipe=recipe, branch=branch)


def read(kind: Any, words: list[str], typed: Sequence[str], run: Run, **settings: Any) -> Any:
    """Parse words as `kind`. An error suggests options of the command and fields of the run."""
    known = chain(
        [Option("RECIPE", str, DEFAULT)],
        options_in(TrainOptions),
        options_in(Run, run),
    )
    config = (tyro.conf.AvoidSubcommands,)
    return read_words(kind, words, list(typed), "train", known, config=config, **settings)


def override(run: Run, options: Words) -> Run:
    """The run with the fields that the command line overrides."""
    run = run if options.corpus is None else replace(run, corpus=options.corpus)
    found: Run = read(Run, list(options.fields), options.typed, run, default=run)
    return found


def fitted(run: Run) -> Run:
    """The run with the vocabulary of its text."""
    return setup.fit_vocabulary(run, find_tokenizer(run.corpus))


def arguments_of(run: Run) -> type:
    """The class that tyro reads for --help-all: the command's options and the run's fields."""
    unnamed = tyro.conf.arg(name="")
    arguments: list[Any] = [
        ("options", Annotated[TrainOptions, unnamed], field(default=TrainOptions())),
        ("run", Annotated[Run, unnamed], field(default=run)),
    ]
    return make_dataclass("Train", arguments, frozen=True)


# --- the run to train ---


def find_branch(place: str, options: Words) -> Branch:
    """Find the run and step that a branch starts from, given as RUN@N. Raises UserError."""
    given = f"--branch {place}"
    name, _, step = place.rpartition("@")
    if not name or not step.isdecimal():
        fix = f"--branch {name or place}@50"
        raise UserError(given, why="it needs a run and one of its steps, as RUN@N", fix=fix)
    if options.resume or options.init:
        why = "--resume and --init begin somewhere else"
        raise UserError(given, why=why)
    folder = locate_run(name)
    if read_record(folder).state == RUNNING:
        why = f"a process is training in {folder} now"
        raise UserError(given, why=why, fix="wait until it has ended", code=errors.LOCKED)
    history = History(folder)
    history.check(int(step))
    return Branch(str(folder.resolve()), int(step), history.hashes.get(int(step)) or "")


def find_plan(options: Words, plan: Plan, progress: Progress) -> Plan | None:
    """Return the plan, with the run to resume if there is one; None if that is already complete.

    Raises UserError.
    """
    if options.resume is None:
        return plan
    folder, step = find_resumed(options, plan)
    if folder is None:
        where = f"in {options.out}" if options.out else "below runs"
        progress.line(f"nothing to resume {where}: starting a new run")
        return plan
    run = continued(plan, options, folder)
    record = read_record(folder)
    if record.hashes_lost:
        progress.line(f"note: {folder}: {record.hashes_lost}; the run is scored again")
    if record.is_complete and step is None and record.run.get("corpus") == run.corpus:
        check_hashes(folder)
        lines = [f"already complete ({run.steps}/{run.steps}): {folder}"]
        show(options.json, record.summary, lines, options.quiet)
        return None
    if record.state == "diverged" and step is None:
        raise UserError(
            f"the run in {folder} has diverged",
            why="from the same state it would diverge again",
            fix=f"`hectogpt check {folder} --diagnose` finds where; then use a lower "
            "learning rate",
            kept="the run, untouched",
            code=errors.DIVERGED,
        )
    return replace(plan, run=run, resume=folder, step=step)


def find_resumed(options: TrainOptions, plan: Plan) -> tuple[Path | None, int | None]:
    """Find the folder of the run to resume, and its step if the command line names one.

    The folder is the one that --resume or --out names, otherwise that of the newest run. If the
    command line names a recipe, only runs with this recipe and the same fields count. Raises
    UserError.
    """
    if options.resume not in (None, "auto"):
        folder, step = named_folder(str(locate_run(str(options.resume))))
        if options.out and options.out.resolve() != folder.resolve():
            why = f"--resume trains in {folder}"
            fix = f"hectogpt train --branch {folder}@{step or 'N'} --out {options.out}"
            raise UserError(f"--out {options.out}", why=why, fix=fix)
        return folder, step
    if options.out is not None:
        return (options.out if (options.out / RUN).exists() else None), None
    folders = runs_of(plan.name)
    fitting = (f for f in folders if plan.name is None or holds_run(f, plan.run))
    return next(fitting, None), None


def runs_of(name: str | None) -> list[Path]:
    """The folders below runs/ that `hectogpt train` gave this name, the newest first.

    With None, returns the folders of all runs there.
    """
    pattern = re.compile(".*" if name is None else re.escape(name) + r"(-\d+)?")
    found = [path for path in Path("runs").glob(f"*/{RUN}") if pattern.fullmatch(path.parent.name)]
    return [
        path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    ]


def holds_run(folder: Path, run: Run) -> bool:
    """True if the folder holds this run: the same recipe and text, and no changed field."""
    try:
        before = read_run(folder)
    except UserError:  # made by a different idea, or damaged
        return False
    return (before.recipe, before.corpus) == (run.recipe, run.corpus) and not changes(before, run)


def continued(plan: Plan, options: Words, folder: Path) -> Run:
    """Return the run in a folder with the fields that the command line overrides.

    Raises UserError if the folder holds a different run.
    """
    before = run_in(folder, plan.recipe if plan.name else None, options.idea)
    given = replace(before, first_weights=plan.run.first_weights) if options.init else before
    after = override(given, options)
    check_same(folder, before, after)
    return after


def run_in(folder: Path, recipe: Run | None, idea: Path | None) -> Run:
    """Read the run in a folder, and check that it has the recipe that the command names.

    Args:
        folder: the folder of the run.
        recipe: the recipe; None if the command names none. Then the user's own files that made the
            run are imported if the user has run them here before, and they have not changed.
        idea: such a file, which may be imported.

    Raises UserError.
    """
    if recipe is None:
        run = History(folder, [idea] if idea else []).run
        for file in files_of(run):
            remember(file)  # a branch computes its trunk's steps again
        return run
    before = read_record(folder)
    if before.recipe != recipe.recipe:
        raise UserError(
            f"{folder} holds a run of {before.recipe}, not of {recipe.recipe}",
            fix="leave out the recipe, or name another run",
            kept="the old run, untouched",
        )
    if before.run.get("ideas", []) != [*recipe.ideas]:
        raise CheckpointError(
            f"the file of {before.recipe} has changed since the run in {folder} began",
            why="a different idea makes it a different run",
            fix=f"the file as it was: {folder / 'idea.py'}",
            kept="the old run, untouched",
        )
    return read_run(folder)


# --- the run and its result ---


def train_plan(
    options: TrainOptions, plan: Plan, corpus: Corpus, progress: Progress, world: World = ALONE
) -> None:
    """Train to the end and print the results; with --dry-run, only print what would be trained.

    Args:
        options: the command's options.
        plan: the run.
        corpus: its text.
        progress: shows progress.
        world: the processes that share the run, of which this is rank 0.
    """
    if options.dry_run:
        label = label_of(plan.run, plan.modified)
        show_plan(plan.run, corpus, label, progress, options.json)
    else:
        done = run_and_score(plan, corpus, progress, world)
        show(options.json, done.summary, result_lines(done), options.quiet)


def show_plan(run: Run, corpus: Corpus, label: str, progress: Progress, as_json: bool) -> None:
    """Print the run, its size and what it would read, or with `as_json` all its fields."""
    for line in size_notes(run, corpus):
        progress.line(f"note: {line}")
    epochs = run.tokens / len(corpus.train)
    reads = (
        f"{run.tokens:,} training tokens of {len(corpus.train):,} in {corpus.name} ({epochs:.2f} "
        "epochs)"
    )
    show(
        as_json,
        dump(run),
        [repr(run), f"{label}: {setup.count_parameters(run, corpus):,} parameters", reads],
    )


def result_lines(done: FullRun) -> Iterator[str]:
    """Yield lines: the loss next to those of the baseline and n-grams, the samples, the paths."""
    summary = done.summary
    losses = {
        label: summary["ngrams"][key] for key, label in NGRAMS.items() if key in summary["ngrams"]
    }
    if done.baseline:
        losses["baseline"] = done.baseline["dev_loss"]
    if "dev_loss_before" in summary:
        losses["before training"] = summary["dev_loss_before"]
    branch = summary.get("branch") or {}
    if branch.get("trunk_loss"):
        losses["trunk"] = branch["trunk_loss"]
    label = summary["recipe"] + (" (modified)" if summary["modified"] else "")
    losses |= {label: summary["dev_loss"], f"{label} + n-grams": summary["dev_loss_with_ngrams"]}
    bits = summary["dev_bpb"] / summary["dev_loss"]
    rows = [
        (name, loss, loss * bits) for name, loss in sorted(losses.items(), key=lambda row: -row[1])
    ]
    yield f"{one_line(summary['corpus'])}: held-out loss after {summary['steps']} steps"
    yield from loss_table(rows)
    names = ("recipe", "corpus", "steps", "dev_loss")
    said = "" if summary["modified"] else is_it_usual(*(summary[name] for name in names))
    if said:
        yield f"This loss is {said}."
    for name, text in summary["samples"].items():
        yield f"{name}: {text}"
    picture = Path(summary["folder"], PICTURE)
    yield "" if not picture.is_file() else f"\nThe picture: {picture}"
    yield f"Everything:  {summary['folder']}"


# --- under torchrun ---


def train_shared(launch: Launch, options: Words, plan: Plan) -> None:
    """Train as one of several processes.

    Raises UserError at rank 0, and SystemExit with the same code at the others.
    """
    try:
        recorded(lambda: _train_as_one(launch, options, plan))()
    except Exception as error:
        if launch.rank == 0 or "--debug" in sys.argv:
            raise
        common = isinstance(error, DisagreementError) or getattr(error, "code", None) in COMMON
        # Rank 1 also reports PeerError, because rank 0 may be the process that failed.
        if not common and not (isinstance(error, PeerError) and launch.rank > 1):
            raise
        raise SystemExit(error.code if isinstance(error, UserError) else errors.BUG) from None


def _train_as_one(launch: Launch, options: Words, plan: Plan) -> None:
    if launch.attempt:  # torchrun has started all processes again: they resume the run
        options = replace(options, resume=options.resume or "auto")
    world = SharedWorld(launch, options.dist_timeout)
    with world:
        config = dump(plan.run)
        code = {"hectogpt": code_hash(), "torch": torch.__version__}
        facts = {"code": code, "idea file": config.pop("ideas"), "configuration": config}
        world.agree(facts | {"options": [options.dist_timeout, options.eval_every]})
        progress = Progress(options.quiet or not world.is_first)
        found = find_plan(options, plan, progress) if world.is_first else None

        if found is not None:
            data = choose_leaves(found.run.data, world.size)
            found = replace(found, run=replace(found.run, data=data))
        decided = world.share("the plan", lambda: found and dump(found.run))
        if decided is None:
            world.wait_for_all("the end")  # the store may end with rank 0
            return
        run = load_run(decided)
        corpus = find_corpus(run, progress, check=launch.local_rank == 0)
        world.agree({"data": corpus.sha256, "tokenizer": corpus.tokenizer.sha256})
        if found is None:  # every rank except 0
            follow(run, corpus, world, options.eval_every)
        else:
            train_plan(options, found, corpus, progress, world)
