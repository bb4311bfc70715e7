"""`hectogpt compare`: recipes over paired seeds. Progress goes to stderr, the results (or --json) to stdout."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

from hectogpt import errors
from hectogpt.cli.compare_text import Asked, plan_lines, result_lines, results_json, state_line
from hectogpt.cli.options import CompareOptions
from hectogpt.data import open_corpus
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.files import write_atomic
from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.engines import Engine, gpus_for, local_engine, open_ray, perform, threads_of
from hectogpt.lab.plan import plan
from hectogpt.lab.record import check_writable
from hectogpt.lab.rounds import MOST_SEEDS, Rounds, parse_duration
from hectogpt.lab.tracks import find_track
from hectogpt.progress import Progress
from hectogpt.signals import WORDS, Stopped, raise_on_signal
from hectogpt.training.setup import check_corpus

SEEDS = 5  # if no number is given


def main(options: CompareOptions) -> None:
    """Run the missing trials and print what all of them say. Raises UserError, also for trials that crashed."""
    asked = read(options)
    comparison, missing = asked.comparison, asked.comparison.missing()
    task = os.environ.get("SLURM_ARRAY_TASK_ID") if options.engine == "slurm" else None
    if task:
        mine = [trial for trial in missing if trial == comparison.trials()[int(task)]]
        run_trials(asked, mine, local_engine(comparison))
        raise_for_crashes(comparison, bool(comparison.records))
    elif options.engine == "slurm" and (missing or options.dry_run):
        write_array(asked, missing)
    elif options.dry_run:
        print(printable("\n".join(plan_lines(asked, missing))))
    else:
        run_and_report(asked, missing)


def read(options: CompareOptions) -> Asked:
    """The arms, text, track and seeds that the options name. Raises UserError."""
    budget = None if options.budget is None else parse_duration(options.budget)
    arms = plan(options.recipes, options.without, options.sweep, options.steps)
    if options.threads:
        arms = [replace(arm, run=replace(arm.run, threads=options.threads)) for arm in arms]
    track, corpus = find_track(options.track), open_corpus(options.corpus)
    for arm in arms:
        check_corpus(arm.run, corpus)
    first, seeds = options.first_seed, options.seeds
    wanted = range(first, first + (SEEDS if seeds is None else seeds))
    comparison = Comparison(arms, wanted, corpus, track, options.out, options.test)
    if budget is None and options.until is None:
        return Asked(options, comparison, None)
    if options.engine == "slurm":
        why = "an array has a task for each trial, so their number must be known"
        raise UserError("budget or until with slurm", why=why, fix="set seeds to 10, or set engine to ray")
    most = MOST_SEEDS if seeds is None else seeds
    return Asked(options, comparison, Rounds(comparison, first, most, budget, options.until is not None))


def run_and_report(asked: Asked, missing: Sequence[Trial]) -> None:
    """Run the trials and say what came of all."""
    options, comparison = asked.options, asked.comparison
    check_writable(options.out)
    if options.html is not None:
        check_writable(options.html, "html")
    with open_engine(options, comparison) as engine:
        run_trials(asked, missing, engine)
    results = asked.results()
    if options.json:
        print(json.dumps(results_json(asked, results), allow_nan=False))
    elif results and not options.quiet:
        for line in result_lines(asked, results):
            print(printable(line))
    if options.html is not None and results:
        from hectogpt.lab.comparison_page import page_data
        from hectogpt.web.page import fill

        data = page_data(comparison, results, asked.verdicts(results), asked.notes(results), asked.ended)
        write_atomic(options.html, fill("report", data))
        asked.note(f"page: {options.html}")
    raise_for_crashes(comparison, bool(results))
    records = [record for result in results for record in result.records]
    if all(record.status == "diverged" for record in records):
        raise UserError(
            f"none of {len(records)} trials gave a model",
            why=str(records[0].error),
            fix=f"a lower learning rate; to run them again, remove their lines from {comparison.out}",
            code=errors.DIVERGED,
        )


@contextmanager
def open_engine(options: CompareOptions, comparison: Comparison) -> Iterator[Engine]:
    """What runs the trials. Raises UserError for an engine that cannot be had, and for more workers than there are
    cores."""
    if options.engine != "ray":
        yield local_engine(comparison, 1 if options.workers is None else options.workers)
        return
    with redirect_stdout(sys.stderr), open_ray(comparison, options.workers) as ray:  # stdout is for the results
        yield ray


def run_trials(asked: Asked, missing: Sequence[Trial], engine: Engine) -> None:
    """Run the trials, seed by seed where their number is open. Raises UserError when a signal ends it."""
    comparison, rounds = asked.comparison, asked.rounds
    progress = Progress(asked.options.quiet)
    asked.note(state_line(asked, missing))
    with interruptible(comparison, rounds):
        if rounds is None:
            perform(comparison, missing, engine, progress)
            return
        rounds.workers = engine.workers
        for trials in rounds:
            perform(comparison, trials, engine, progress)
            for verdict in asked.verdicts(rounds.results()) if rounds.until_decided and trials else ():
                word = "not decided" if verdict.word == "unproven" else verdict.word
                asked.note(f"  {verdict.arm}: gain {verdict.pair}, {word}")
    asked.note(rounds.ended)


@contextmanager
def interruptible(comparison: Comparison, rounds: Rounds | None = None) -> Iterator[None]:
    """Make SIGINT, SIGTERM and SIGHUP a UserError that says what is kept."""
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
        raise UserError(
            f"{len(comparison.failed)} of {len(comparison.trials())} trials crashed and are not counted",
            why="\n".join(f"{arm}, seed {', '.join(which)}: {error}" for (arm, error), which in seeds.items()),
            fix="the same command runs them again",
            kept=f"the other trials, in {comparison.out}" if kept else "",
            code=1,
        )


# --- Slurm: an array with a task for each missing trial, all over one file of records ---------------------------------


def write_array(asked: Asked, missing: Sequence[Trial]) -> None:
    """Write the script of the array, or print it for --dry-run."""
    script, path = array_script(asked, missing), asked.options.out.with_suffix(".sbatch.sh")
    if asked.options.dry_run:
        print(script, end="")
        return
    check_writable(path)
    write_atomic(path, script)
    asked.note(f"{state_line(asked, missing)}\nwritten: {path}\nsubmit it with  sbatch {path}")
    asked.note("give this command again for the results when the array has ended")


def array_script(asked: Asked, missing: Sequence[Trial]) -> str:
    """The script for `sbatch`. Each task runs the command again as it was typed here, for its own trial.
    slurm.schedmd.com: "Job array support"."""
    comparison, at_a_time = asked.comparison, asked.options.workers
    threads, out = threads_of(comparison), shlex.quote(str(comparison.out.absolute()))
    trials = comparison.trials()
    numbers = ",".join(str(trials.index(trial)) for trial in missing) + (f"%{at_a_time}" if at_a_time else "")
    gpu = comparison.track.allows_gpu and bool(gpus_for(comparison.arms, 1))
    words = [word for word in sys.argv[1:] if word != "--dry-run"]
    if len({comparison.run_of(Trial(arm, 0)).threads for arm in comparison.arms}) == 1:
        words += ["--threads", str(threads)]  # as many on every node
    options = [f"--array={numbers}", "--ntasks=1", f"--cpus-per-task={threads}", *["--gpus-per-task=1"] * gpu]
    options += [f"--chdir={shlex.quote(str(Path.cwd()))}", f"--output={out}.task-%a.log", "--open-mode=append"]
    lines = [
        "#!/bin/bash",
        f"# Trials of a comparison, a task for each; their records go to {out}",
        "# Every node must see that folder, and its file system must have locks (flock).",
        "# Options given to sbatch, such as --partition=NAME --time=2:00:00, count before those below.",
        *(f"#SBATCH {option}" for option in (*options, "--requeue")),
        "",
        f"exec {shlex.join([sys.executable, '-m', 'hectogpt', *words])}",
    ]
    return "\n".join(lines) + "\n"
