"""Which engine runs a comparison's trials: processes here, Ray, or an array of Slurm, whose script is written here."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from hectogpt.cli.console import note
from hectogpt.cli.options import CompareArguments
from hectogpt.errors import UserError
from hectogpt.files import write_atomic
from hectogpt.lab import slurm
from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.engines import LocalEngine, News, gpus_for, local_engine, run_trials, threads_of

NOT_FOR_TASKS = ("workers", "dry_run", "json", "html", "quiet", "out", "threads")


@dataclass(frozen=True)
class Runner:
    """How the trials of a comparison are run. workers: how many at a time, here or elsewhere. run: the news of these
    trials, until they have ended."""

    workers: int
    run: Callable[[Sequence[Trial]], Generator[News, None, None]]


@contextmanager
def open_engine(arguments: CompareArguments, comparison: Comparison, seed_by_seed: bool) -> Iterator[Runner]:
    """What runs the trials of `hectogpt compare`. seed_by_seed: whether their number is found while they run.

    Raises UserError for an engine that cannot be had, and for more workers than there are cores.
    """
    if arguments.engine == "ray":
        from hectogpt.lab.ray_engine import open_ray

        with redirect_stdout(sys.stderr), open_ray(comparison, arguments.workers) as ray:  # stdout is for the results
            yield Runner(ray.workers, lambda trials: run_trials(comparison, trials, ray))
    elif is_task(arguments):
        workers = tasks_of(arguments, comparison, seed_by_seed)
        yield Runner(workers, lambda trials: run_trials(comparison, trials, LocalEngine(), seed_by_seed))
    elif arguments.engine == "slurm":
        workers = tasks_of(arguments, comparison, seed_by_seed)
        yield Runner(workers, lambda trials: slurm.follow(comparison, trials))
    else:
        here = local_engine(comparison, 1 if arguments.workers is None else arguments.workers)
        yield Runner(here.workers, lambda trials: run_trials(comparison, trials, here))


# --- an array of Slurm ------------------------------------------------------------------------------------------------


def is_task(arguments: CompareArguments) -> bool:
    """Whether this process is a task of an array, which leaves the results to the command that follows the array."""
    return arguments.engine == "slurm" and slurm.is_task()


def tasks_of(arguments: CompareArguments, comparison: Comparison, seed_by_seed: bool) -> int:
    """How many tasks the array has: `workers`, else one for each trial, or for each arm if seeds come one by one."""
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"workers = {arguments.workers}", why="an array has at least one task", fix="set workers to 1")
    trials = len(comparison.arms) if seed_by_seed else len(comparison.missing())
    return arguments.workers or max(trials, 1)


def array_script(arguments: CompareArguments, comparison: Comparison, seed_by_seed: bool) -> str:
    """The script for `sbatch`: each task runs one trial at a time, and all run the same command."""
    tasks, threads, out = (
        tasks_of(arguments, comparison, seed_by_seed),
        threads_of(comparison),
        arguments.out.absolute(),
    )
    gpu = comparison.track.allows_gpu and bool(gpus_for(comparison.arms, 1))
    same = len({comparison.run_of(Trial(arm, 0)).threads for arm in comparison.arms}) == 1
    command = [sys.executable, "-m", "hectogpt", "compare", *command_of(arguments)]
    command += ["--threads", str(threads)] if same else []
    command += ["--workers", str(tasks), "--out", str(out)]
    options = [f"--job-name={slurm.job_name(out)}", f"--array=0-{tasks - 1}", "--ntasks=1"]
    options += [f"--cpus-per-task={threads}"] + ["--gpus-per-task=1"] * gpu
    options += [f"--chdir={shlex.quote(str(Path.cwd()))}", f"--output={shlex.quote(str(out))}.task-%a.log"]
    options += ["--open-mode=append", "--requeue"]
    lines = [
        "#!/bin/bash",
        f"# The trials of a comparison, shared by {tasks} tasks, which write their records to",
        f"# {out}",
        "# Every node must see that folder, and its file system must have locks (flock).",
        f"# Submit it with:  sbatch [--partition=NAME --time=2:00:00 ...] {shlex.quote(str(slurm.script_path(out)))}",
        "# Options given to sbatch count before those below. Submitted again, it runs what is still missing.",
        *(f"#SBATCH {option}" for option in options),
        "",
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def command_of(arguments: CompareArguments) -> list[str]:
    """The options again, without those that are for the terminal; paths that exist are absolute."""
    words = list(arguments.recipes)
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        if field.name == "recipes" or field.name in NOT_FOR_TASKS or value == field.default:
            continue
        name = f"--{field.name.replace('_', '-')}"
        if field.name == "corpus" and os.path.exists(value):
            value = os.path.abspath(value)
        words += [name] if value is True else [name, *(value if isinstance(value, tuple) else [str(value)])]
    return words


def write_script(arguments: CompareArguments, comparison: Comparison, missing: Sequence[Trial], rounds: bool) -> bool:
    """Write the script of an array and say how to submit it, unless this is a task of it, the array is queued or runs
    already, or nothing is missing. Returns whether that is all there is to do now. Raises UserError (STORAGE)."""
    if arguments.engine != "slurm" or is_task(arguments) or not missing:
        return False
    if slurm.is_under_way(comparison, missing):
        note("the array is under way: this follows its records; Ctrl-C ends the following alone", arguments.quiet)
        return False
    path = slurm.script_path(arguments.out)
    write_atomic(path, array_script(arguments, comparison, rounds))
    note(f"written: {path}", arguments.quiet)
    note(f"submit it with  sbatch {path}  and give this command again to follow it", arguments.quiet)
    return True
