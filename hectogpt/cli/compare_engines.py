"""Which engine runs a comparison's trials: processes here, Ray, or an array of Slurm."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

from hectogpt.cli.console import note
from hectogpt.cli.options import CompareArguments
from hectogpt.cli.slurm_script import render_script
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
def open_runner(arguments: CompareArguments, comparison: Comparison, seed_by_seed: bool) -> Iterator[Runner]:
    """What runs the trials of `hectogpt compare`. seed_by_seed: whether their number is found while they run.

    Raises UserError for an engine that cannot be had, and for more workers than there are cores.
    """
    if arguments.engine == "ray":
        from hectogpt.lab.ray_engine import RayEngine

        with redirect_stdout(sys.stderr):  # where Ray tells of workers that die; stdout is for the results
            engine = RayEngine(comparison, arguments.workers)
            try:
                yield Runner(engine.workers, lambda trials: run_trials(comparison, trials, engine))
            finally:
                engine.close()
    elif arguments.engine == "slurm":
        workers = tasks_of(arguments, comparison, seed_by_seed)
        if is_task(arguments):
            yield Runner(workers, lambda trials: run_trials(comparison, trials, LocalEngine(), seed_by_seed))
        else:
            yield Runner(workers, lambda trials: slurm.follow(comparison, trials))
    else:
        here = local_engine(comparison, 1 if arguments.workers is None else arguments.workers)
        yield Runner(here.workers, lambda trials: run_trials(comparison, trials, here))


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
    """The script of an array that runs this comparison."""
    tasks, threads = tasks_of(arguments, comparison, seed_by_seed), threads_of(comparison)
    gpu = comparison.track.allows_gpu and bool(gpus_for(comparison.arms, 1))
    same = len({comparison.run_of(Trial(arm, 0)).threads for arm in comparison.arms}) == 1
    command = [sys.executable, "-m", "hectogpt", "compare", *command_of(arguments)]
    command += ["--threads", str(threads)] if same else []
    command += ["--workers", str(tasks), "--out", str(arguments.out.absolute())]
    return render_script(command, arguments.out, tasks, threads, gpu)


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
    """Write the script of an array and say how to submit it, unless this is a task of it, it runs already, or nothing
    is missing. Returns whether that is all there is to do now. Raises UserError (STORAGE)."""
    if arguments.engine != "slurm" or is_task(arguments) or not missing:
        return False
    if any(comparison.is_claimed(trial) for trial in missing):
        note("the array is under way: this follows its records; Ctrl-C ends the following alone", arguments.quiet)
        return False
    path = slurm.script_path(arguments.out)
    write_atomic(path, array_script(arguments, comparison, rounds))
    note(f"written: {path}", arguments.quiet)
    note(f"submit it with  sbatch {path}  and give this command again to follow it", arguments.quiet)
    return True
