"""Drives a comparison for `hectogpt compare`: the plan, the trials with a live table, the results."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import replace

from hectogpt import errors
from hectogpt.cli import compare_slurm as slurm
from hectogpt.cli.compare_table import (
    Asked,
    LiveTable,
    as_json,
    notes_on,
    rounds_line,
    show_plan,
    show_results,
    state_of,
)
from hectogpt.cli.options import CompareArguments
from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.files import write_atomic
from hectogpt.lab.compare import Comparison, Result, Trial
from hectogpt.lab.engines import Engine, local_engine, run_trials
from hectogpt.lab.plan import plan
from hectogpt.lab.record import check_writable
from hectogpt.lab.rounds import MOST_SEEDS, Rounds, parse_duration
from hectogpt.lab.tracks import find_track
from hectogpt.signals import WORDS, Stopped, raise_on_signal
from hectogpt.training.setup import check_corpus

SEEDS = 5  # if no number is given


def compare(arguments: CompareArguments, words: Sequence[str]) -> None:
    """Run the missing trials and print what all of them say. words: of the command, for an array of Slurm. Raises
    UserError, also for trials that crashed."""
    asked = read_arguments(arguments)
    comparison, task = asked.comparison, slurm.task_number() if arguments.engine == "slurm" else None
    missing = comparison.missing()
    if task is not None:
        mine = [trial for trial in missing if trial == comparison.trials()[task]]
        run_all(asked, mine, local_engine(comparison))
        raise_for_crashes(comparison, bool(comparison.records))
    elif arguments.engine == "slurm" and (missing or arguments.dry_run):
        words = [word for word in words if word != "--dry-run"]
        script = slurm.array_script(comparison, missing, words, arguments.workers)
        if arguments.dry_run:
            print(script, end="")
            return
        check_writable(arguments.out)
        path = slurm.script_path(arguments.out)
        write_atomic(path, script)
        asked.note(f"{state_of(comparison, len(missing))}\nwritten: {path}\nsubmit it with  sbatch {path}")
        asked.note("give this command again for the results when the array has ended")
    elif arguments.dry_run:
        show_plan(comparison, missing, asked.rounds)
    else:
        run_and_report(asked, missing)


def read_arguments(arguments: CompareArguments) -> Asked:
    """The arms, text, track and seeds that the arguments name. Raises UserError."""
    budget = None if arguments.budget is None else parse_duration(arguments.budget)
    arms = plan(arguments.recipes, arguments.without, arguments.sweep, arguments.steps)
    if arguments.threads:
        arms = [replace(arm, run=replace(arm.run, threads=arguments.threads)) for arm in arms]
    track, corpus = find_track(arguments.track), open_corpus(arguments.corpus)
    for arm in arms:
        check_corpus(arm.run, corpus)
    first, seeds = arguments.first_seed, arguments.seeds
    wanted = range(first, first + (SEEDS if seeds is None else seeds))
    comparison = Comparison(arms, wanted, corpus, track, arguments.out, arguments.test)
    rounds = None
    if budget is not None or arguments.until is not None:
        if arguments.engine == "slurm":
            why = "an array has a task for each trial, so their number must be known"
            raise UserError("budget or until with slurm", why=why, fix="set seeds to 10, or set engine to ray")
        rounds = Rounds(comparison, first, MOST_SEEDS if seeds is None else seeds, budget, arguments.until is not None)
    return Asked(arguments, comparison, rounds)


def run_and_report(asked: Asked, missing: list[Trial]) -> None:
    """Run the trials and say what came of all."""
    arguments, comparison = asked.arguments, asked.comparison
    check_writable(arguments.out)
    if arguments.html is not None:
        check_writable(arguments.html, "html")
    with open_engine(arguments, comparison) as engine:
        if asked.rounds is None:
            run_all(asked, missing, engine)
        else:
            run_rounds(asked, asked.rounds, engine)
    results = asked.results()
    if arguments.json:
        print(json.dumps(as_json(asked, results), allow_nan=False))
    elif not arguments.quiet and results:
        show_results(asked, results)
    if arguments.html is not None and results:
        from hectogpt.lab.comparison_page import page_data
        from hectogpt.web.page import fill

        notes = notes_on(comparison, results)
        data = page_data(comparison, results, asked.verdicts(results), notes, asked.ended)
        write_atomic(arguments.html, fill("report", data))
        asked.note(f"page: {arguments.html}")
    raise_for_lost_trials(comparison, results)


@contextmanager
def open_engine(arguments: CompareArguments, comparison: Comparison) -> Iterator[Engine]:
    """What runs the trials. Raises UserError for an engine that cannot be had, and for more workers than there are
    cores."""
    if arguments.engine == "ray":
        from hectogpt.lab.ray_engine import open_ray

        with redirect_stdout(sys.stderr), open_ray(comparison, arguments.workers) as ray:  # stdout is for the results
            yield ray
    else:
        yield local_engine(comparison, 1 if arguments.workers is None else arguments.workers)


def run_all(asked: Asked, missing: Sequence[Trial], engine: Engine) -> None:
    """Run the trials. Raises UserError when a signal ends it."""
    comparison = asked.comparison
    asked.note(state_of(comparison, len(missing)))
    table = LiveTable(comparison, len(missing), asked.arguments.quiet, asked.results)
    with table, interruptible(comparison):
        run(comparison, missing, engine, table)


def run_rounds(asked: Asked, rounds: Rounds, engine: Engine) -> None:
    """Run the trials seed by seed until the rounds end. Raises UserError when a signal ends it."""
    comparison, rounds.workers = asked.comparison, engine.workers
    asked.note(rounds_line(rounds))
    with LiveTable(comparison, None, asked.arguments.quiet, asked.results) as table, interruptible(comparison, rounds):
        for trials in rounds:
            run(comparison, trials, engine, table)
            if rounds.until_decided and trials and not table.live:
                for verdict in asked.verdicts(rounds.results()):
                    word = "not decided" if verdict.word == "unproven" else verdict.word
                    asked.note(f"  {verdict.arm}: gain {verdict.pair}, {word}")
    asked.note(rounds.ended)


def run(comparison: Comparison, trials: Sequence[Trial], engine: Engine, table: LiveTable) -> None:
    """Run those of the trials that nobody has run when it is their turn. An exception ends those under way."""
    with closing(run_trials(comparison, trials, engine)) as all_news:
        for news in all_news:
            table.show(news)
    comparison.missing()  # of the others' trials too


@contextmanager
def interruptible(comparison: Comparison, rounds: Rounds | None = None) -> Iterator[None]:
    """Make SIGINT, SIGTERM and SIGHUP a UserError that tells what is kept."""
    try:
        with raise_on_signal():
            yield
    except KeyboardInterrupt as stop:
        left, all_trials = len(comparison.missing()), len(comparison.trials())
        where = f"{left} of {all_trials} trials missing" if rounds is None else f"at seed {comparison.seeds[-1]}"
        code = stop.code if isinstance(stop, Stopped) else errors.INTERRUPTED
        raise UserError(
            f"{WORDS[code]}, {where}",
            fix="the same command goes on where it stopped",
            kept=f"the finished trials, in {comparison.out}" if left < all_trials else "",
            code=code,
        ) from None


def raise_for_crashes(comparison: Comparison, kept: bool) -> None:
    """Raise UserError if trials of this call crashed. kept: whether there are records of others."""
    if comparison.failed:
        seeds: dict[tuple[str, str], list[str]] = {}
        for record in comparison.failed:
            seeds.setdefault((record.arm, str(record.error)), []).append(str(record.seed))
        whys = [f"{arm}, seed {', '.join(which)}: {error}" for (arm, error), which in seeds.items()]
        raise UserError(
            f"{len(comparison.failed)} of {len(comparison.trials())} trials crashed and are not counted",
            why="\n".join(whys),
            fix="the same command runs them again",
            kept=f"the other trials, in {comparison.out}" if kept else "",
            code=1,
        )


def raise_for_lost_trials(comparison: Comparison, results: Sequence[Result]) -> None:
    """Raise UserError if trials of this call crashed, or if no trial gave a model."""
    raise_for_crashes(comparison, bool(results))
    records = [record for result in results for record in result.records]
    if all(record.status == "diverged" for record in records):
        raise UserError(
            f"none of {len(records)} trials gave a model",
            why=str(records[0].error),
            fix=f"a lower learning rate; to run them again, remove their lines from {comparison.out}",
            code=errors.DIVERGED,
        )
