"""`hectogpt compare`: train recipes with paired seeds and compare them.

Progress goes to stderr, the results (or --json) to stdout.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.cli.console import note, show
from hectogpt.cli.options import CompareOptions
from hectogpt.data import open_corpus
from hectogpt.display import NGRAMS, Progress, columns, printable
from hectogpt.errors import SetTo, UserError
from hectogpt.files import write_atomic
from hectogpt.lab.compare import Comparison, Trial, ngram_means, result_table
from hectogpt.lab.engines import (
    Engine,
    expected_seconds,
    local_engine,
    may_use_gpu,
    minutes,
    open_ray,
    perform,
    threads_of,
)
from hectogpt.lab.plan import plan
from hectogpt.lab.record import check_writable
from hectogpt.lab.statistics import LEAST_DIFFERENCE, SIGNIFICANCE
from hectogpt.lab.tracks import broken_rules, find_track
from hectogpt.lab.verdict import ComparisonResult
from hectogpt.signals import WORDS, code_of, ignore_more
from hectogpt.training.setup import count_parameters

SEEDS = 5
MOST_SEEDS = 1000  # default numbers of seeds, without and with --until
VERDICT_WORDS = (
    f"tie: within the noise or {LEAST_DIFFERENCE}. unproven: beyond both, but p >= {SIGNIFICANCE}."
)
SEQUENTIAL_WORDS = (
    f"Intervals hold at every look. tie: within {LEAST_DIFFERENCE} of 0. unproven: not decided."
)


def main(options: CompareOptions) -> None:
    """Run the missing trials and print the results of all.

    Raises UserError, including for trials that crashed.
    """
    comparison = read(options)
    task = os.environ.get("SLURM_ARRAY_TASK_ID") if options.engine == "slurm" else None
    if task:
        mine = [trial for trial in comparison.missing() if trial == comparison.trials()[int(task)]]
        run_trials(options, comparison, local_engine(comparison), [mine])
        raise_for_crashes(comparison)
    elif options.engine == "slurm" and (comparison.missing() or options.dry_run):
        write_array(options, comparison)
    elif options.dry_run:
        print(printable("\n".join(plan_lines(comparison))))
    else:
        run_and_report(options, comparison)


def read(options: CompareOptions) -> Comparison:
    """The comparison that the options describe. Raises UserError."""
    arms = plan(options.recipes, options.without, options.sweep, options.steps)
    if options.threads:
        arms = [replace(arm, run=replace(arm.run, threads=options.threads)) for arm in arms]
    track = find_track(options.track)
    corpus = open_corpus(options.corpus)
    sequential = options.until is not None
    if sequential and options.engine == "slurm":
        why = "a job array has one task per trial, so their number must be known"
        raise UserError(
            "until with slurm",
            why=why,
            fix=(SetTo("seeds", 10), ", or ", SetTo("engine", "ray")),
        )
    number = (MOST_SEEDS if sequential else SEEDS) if options.seeds is None else options.seeds
    seeds = range(options.first_seed, options.first_seed + number)
    return Comparison(arms, seeds, corpus, track, options.out, options.test, sequential)


def run_and_report(options: CompareOptions, comparison: Comparison) -> None:
    """Run the trials and print the results."""
    workers = None if options.engine == "slurm" else options.workers
    opened = (
        open_ray(comparison, workers)
        if options.engine == "ray"
        else nullcontext(local_engine(comparison, 1 if workers is None else workers))
    )
    check_writable(options.out)
    # Standard output is for the results, so Ray prints to stderr.
    with redirect_stdout(sys.stderr), opened as engine:
        run_trials(options, comparison, engine, comparison.rounds(engine.workers))
    found = ComparisonResult.of(comparison)
    show(
        options.json,
        results_json(comparison, found),
        result_lines(options, comparison, found),
        options.quiet,
    )
    raise_for_crashes(comparison)
    if all(record.status == "diverged" for record in found.records):
        raise UserError(
            f"no model from {len(found.records)} trials",
            why=str(found.records[0].error),
            fix="use a lower learning rate; to repeat the trials, remove their lines from "
            f"{comparison.out}",
            code=errors.DIVERGED,
        )


def run_trials(
    options: CompareOptions, comparison: Comparison, engine: Engine, batches: Iterable[list[Trial]]
) -> None:
    """Run the trials, batch by batch. Raises UserError when a signal stops them."""
    progress = Progress(options.quiet)
    note("\n".join(plan_lines(comparison)), options.quiet)
    try:
        for trials in batches:
            perform(comparison, trials, engine, progress)
            if comparison.sequential and trials:
                for verdict in ComparisonResult.of(comparison).verdicts:
                    word = "not decided" if verdict.word == "unproven" else verdict.word
                    note(f"  {verdict.arm}: gain {verdict.pair}, {word}", options.quiet)
    except KeyboardInterrupt as stop:
        ignore_more()
        left = len(comparison.missing())
        trials = comparison.trials()
        raise UserError(
            f"{WORDS[code_of(stop)]}, {left} of {len(trials)} trials missing",
            fix="run the same command again to resume",
            kept=f"the finished trials, in {comparison.out}" if left < len(trials) else "",
            code=code_of(stop),
        ) from None
    if comparison.ended:
        note(comparison.ended, options.quiet)


def raise_for_crashes(comparison: Comparison) -> None:
    """Raise UserError if trials of this call crashed."""
    if failed := comparison.failed:
        raise UserError(
            f"{len(failed)} of {len(comparison.trials())} trials crashed and are not counted",
            why="\n".join(
                f"{record.arm}, seed {record.seed}: {record.error}" for record in failed[:5]
            ),
            fix="run the same command again",
            kept=f"the other trials, in {comparison.out}" if comparison.records else "",
            code=1,
        )


# --- output


def results_json(comparison: Comparison, found: ComparisonResult) -> dict[str, Any]:
    """Convert the results to JSON values."""
    return {
        "corpus": comparison.corpus.name,
        "track": comparison.track.name,
        "metric": f"{comparison.split}_loss",
        "seeds": comparison.seeds,
        "arms": [result.as_json() for result in found.results],
        "verdicts": [verdict.as_json() for verdict in found.verdicts],
        "ended": comparison.ended or None,
        "ngrams": ngram_means(found.results, found.split),
        "notes": found.notes,
    }


def result_lines(
    options: CompareOptions, comparison: Comparison, found: ComparisonResult
) -> list[str]:
    """The final table, the n-gram baselines, remarks on single trials, and the verdicts."""
    if not found.results:
        return []
    means = ngram_means(found.results, found.split)
    levels = ", ".join(f"{NGRAMS[name]} {level:.3f}" for name, level in means.items())
    words = SEQUENTIAL_WORDS if comparison.sequential else VERDICT_WORDS
    lines = ["", f"N-gram baselines of the same tokens ({found.split}): {levels or 'unknown'}"]
    lines.append(
        f"Gains: {comparison.split} nats/token over paired seeds; positive is better. {words}"
    )
    if options.sweep:
        fresh = (
            f"run it again with fresh seeds (--first-seed {comparison.seeds[-1] + 1}) and quote "
            "those."
        )
        lines.append(f"The best of several settings is partly lucky: {fresh}")
    lines += found.notes
    lines += [""] * bool(found.verdicts) + [verdict.text for verdict in found.verdicts]
    lines += [f"Seeds: {comparison.ended}."] * bool(comparison.ended)
    table = columns(*result_table(found.results, comparison.split), width=width())
    return table + [text for line in lines for text in textwrap.wrap(line, width()) or [""]]


def plan_lines(comparison: Comparison) -> list[str]:
    """The plan: the arms and their sizes, the number of trials, and an estimate of the time."""
    missing = comparison.missing()
    rows = []
    broken = comparison.unchanged()
    seconds = expected_seconds(comparison)
    for arm in comparison.arms:
        count = count_parameters(arm.run, comparison.corpus)
        data = arm.run.data
        todo = (
            str(sum(trial.arm.label == arm.label for trial in missing))
            + " a seed" * comparison.sequential
        )
        sizes = [f"{count:,}", str(arm.run.steps), f"{data.batch_size * data.seq_len:,}"]
        rows.append([arm.label, *sizes, todo, f"{seconds[arm.label] / 60:.1f}"])
        if rules := broken_rules(comparison.track, arm.run, comparison.corpus, count):
            broken.append(
                f"{arm.label} breaks the rules of {comparison.track.name}: {'; '.join(rules)}"
            )
    if len(rows) == 1:
        broken.append("One arm only: losses, mean and SD, but no test.")
    header = ["arm", "parameters", "steps", "tokens per step", "trials to run", "minutes each"]
    total = sum(seconds[trial.arm.label] for trial in missing)
    per_seed = " per seed" if comparison.sequential else ""
    line = f"{state_line(comparison)}; {minutes(total)}{per_seed}"
    return [*columns(header, rows, width=width()), *broken, line]


def state_line(comparison: Comparison) -> str:
    """The number of trials to run and, if the number of seeds is open, when to stop."""
    title = f"{comparison.corpus.name}, {comparison.track.name}"
    most = len(comparison.all_seeds)
    if not comparison.sequential:
        n = len(comparison.trials())
        left = len(comparison.missing())
        return f"{title}: {n} trials, {n - left} recorded in {comparison.out}, {left} to run"
    return (
        f"{title}: seed by seed until decided, at most {most} seed{'' if most == 1 else 's'}; "
        f"{comparison.out}"
    )


def width() -> int:
    """Columns of the terminal; 160 for a pipe, unless $COLUMNS is set."""
    return shutil.get_terminal_size((160, 0)).columns


# --- Slurm: an array with a task for each missing trial, all sharing one file of records


def write_array(options: CompareOptions, comparison: Comparison) -> None:
    """Write the script of the job array, or print it for --dry-run."""
    script = array_script(comparison, options.workers)
    path = options.out.with_suffix(".sbatch.sh")
    if options.dry_run:
        print(script, end="")
        return
    check_writable(options.out)
    write_atomic(path, script)
    said = f"{state_line(comparison)}\nwritten: {path}\nsubmit it with  sbatch {path}"
    note(f"{said}\nrun this command again for the results when the array has ended", options.quiet)


def array_script(comparison: Comparison, at_a_time: int | None) -> str:
    """The script for `sbatch` (slurm.schedmd.com: "Job array support").

    Each task repeats the command line of this process for its own trial.
    """
    threads = threads_of(comparison)
    out = shlex.quote(str(comparison.out.absolute()))
    trials = comparison.trials()
    most = f"%{at_a_time}" if at_a_time else ""
    numbers = ",".join(str(trials.index(trial)) for trial in comparison.missing()) + most
    gpu = comparison.track.allows_gpu and may_use_gpu(comparison)
    words = [word for word in sys.argv[1:] if word != "--dry-run"]
    if len({comparison.run_of(Trial(arm, 0)).threads for arm in comparison.arms}) == 1:
        words += ["--threads", str(threads)]  # the same number on every node
    return f"""#!/bin/bash
# Trials of a comparison, one task each; their records go to {out}
# Every node must see that file, and its file system must have locks (flock).
# Options given to sbatch, such as --partition=NAME --time=2:00:00, override those below.
#SBATCH --array={numbers}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={threads}
#SBATCH --chdir={shlex.quote(str(Path.cwd()))}
#SBATCH --output={out}.task-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
{"#SBATCH --gpus-per-task=1" if gpu else ""}
exec {shlex.join([sys.executable, "-m", "hectogpt", *words])}
"""
