"""Run the trials of a comparison: in processes on this machine, or on a Ray cluster.

Only `perform` touches the comparison and its records; an engine only runs one trial in a process.
The result of a trial depends on its run, seed and threads, so it is the same bit for bit wherever
it runs and whatever else is running.
"""

from __future__ import annotations

import os
import threading
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch

from hectogpt import __version__, files, hardware, process
from hectogpt.display import Progress, in_notebook
from hectogpt.errors import Setting, SetTo, UserError, not_installed
from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.trial import PACKAGE, OnStep, ask
from hectogpt.training.precision import fast_matmul_dtype
from hectogpt.training.setup import count_parameters


@dataclass(frozen=True)
class Engine:
    """A way to run trials.

    Attributes:
        workers: how many trials it runs at a time.
        do: run one trial and return what `trial.ask` returns. It is called in a thread, and raises
            process.CancelledError soon after the event is set.
    """

    workers: int
    do: Callable[[dict[str, Any], OnStep, threading.Event], dict[str, Any]]


def expected_seconds(comparison: Comparison) -> dict[str, float]:
    """Arm label -> estimated seconds of one of its trials.

    That is the mean of the arm's recorded trials. If there are none, it is 10 s plus twice the
    time for a trial's large matrix products, estimated from one product that is timed here.
    """
    matrix = torch.ones(1024, 1024, dtype=fast_matmul_dtype())
    # the shortest time: the first includes torch's warm-up
    product = min(timeit.repeat(lambda: matrix @ matrix, number=1))
    found = dict[str, float]()
    for arm in comparison.arms:
        known = [
            record.wall_seconds
            for (label, _), record in comparison.records.items()
            if label == arm.label and record.wall_seconds
        ]
        products = (
            3
            * arm.run.tokens
            * count_parameters(arm.run, comparison.corpus, "matrix", "head")
            / 1024**3
        )
        found[arm.label] = sum(known) / len(known) if known else 10 + 2 * products * product
    return found


def minutes(seconds: float) -> str:
    """Format a time, such as "about 4.5 minutes"."""
    return f"about {seconds / 60:.1f} minutes"


def perform(
    comparison: Comparison, trials: Sequence[Trial], engine: Engine, progress: Progress
) -> None:
    """Run the trials, `engine.workers` at a time, and add their records to the comparison.

    Prints a line when a trial begins and one with its result, and shows progress: a bar on
    a terminal, a percentage in a notebook, elsewhere a line a minute. An exception kills the
    trials that are running. Raises UserError (STORAGE).
    """
    # A message: (step, loss), the time at which the trial began, or the trial's result.
    Post = tuple[int, float] | float | Future[dict[str, Any]]
    posts = SimpleQueue[tuple[Trial, Post]]()
    cancelled = threading.Event()
    steps = dict.fromkeys((trial.name for trial in trials), 0)
    ended = 0
    began = dict[tuple[str, int], float]()
    said = time.monotonic()
    bar = progress.bar(sum(trial.arm.run.steps for trial in trials), "")
    live = progress.console.is_terminal or in_notebook()
    expected = expected_seconds(comparison) if trials else {}

    def do(trial: Trial) -> dict[str, Any]:
        begun = time.perf_counter()
        posts.put((trial, time.monotonic()))
        result = engine.do(
            comparison.request(trial), lambda *step: posts.put((trial, step)), cancelled
        )
        return result | {"wall_seconds": round(time.perf_counter() - begun, 2)}

    def start(trial: Trial) -> None:
        pool.submit(do, trial).add_done_callback(lambda done: posts.put((trial, done)))

    with ThreadPoolExecutor(engine.workers) as pool, ExitStack() as end, bar as show:
        end.callback(pool.shutdown, wait=False, cancel_futures=True)
        end.callback(cancelled.set)
        for trial in trials:
            start(trial)
        while ended < len(trials):
            trial, post = posts.get()
            name = f"{trial.arm.label}, seed {trial.seed}"
            of = f"{trial.arm.run.steps} steps"
            if isinstance(post, float):
                began[trial.name] = post
                time_text = minutes(expected[trial.arm.label])
                progress.line(
                    f"trial {len(began)} of {len(trials)} begins: {name}, {of}, {time_text}"
                )
                continue
            if isinstance(post, tuple):
                steps[trial.name] = post[0]
                show(sum(steps.values()), f"{name}: loss {post[1]:.3f}")
                now = time.monotonic()
                if not live and now - said > 60:
                    left = (now - began[trial.name]) * (trial.arm.run.steps / post[0] - 1)
                    progress.line(
                        f"{name}: step {post[0]} of {of}, loss {post[1]:.3f}, {minutes(left)} left"
                    )
                    said = now
                continue
            result = post.result()
            if engine.workers > 1 and isinstance(result.get("machine"), dict):
                result["machine"] = result["machine"] | {"workers": engine.workers}
            record = comparison.add(trial, result)
            steps[trial.name], ended = trial.arm.run.steps, ended + 1
            progress.line(f"{ended} of {len(trials)}: {name}: {record.outcome(comparison.split)}")
    comparison.read()


# --- processes of this machine


def local_engine(comparison: Comparison, workers: int = 1) -> Engine:
    """An engine that starts processes on this machine.

    Raises UserError if the trials would have to share cores, because their times would then be
    meaningless.
    """
    if workers < 1:
        raise UserError(
            Setting("workers", workers),
            why="at least one worker is needed",
            fix=SetTo("workers", 1),
        )
    threads = threads_of(comparison)
    cores = hardware.usable_cores()
    if workers > 1 and workers * threads > cores:
        raise UserError(
            f"{workers} trials at a time of {threads} thread{'' if threads == 1 else 's'} each do "
            f"not fit on {cores} cores",
            why="trials that share cores take longer, and their seconds count",
            fix=(
                SetTo("workers", max(cores // threads, 1)),
                ", or fewer threads for every run",
            ),
        )
    return Engine(workers, ask)


def threads_of(comparison: Comparison) -> int:
    """The number of threads of one trial, the largest if the arms differ."""
    runs = [comparison.run_of(Trial(arm, 0)) for arm in comparison.arms]
    return max(run.threads or hardware.physical_cores() for run in runs)


def may_use_gpu(comparison: Comparison) -> bool:
    """True if every arm would train on a GPU where there is one."""
    return all(arm.run.device in ("auto", "cuda") for arm in comparison.arms)


# --- Ray: each trial is a task of a cluster

RAY_POLL_SECONDS = 0.2
# Without these, Ray sends usage statistics and runs its tasks at a low priority.
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


def code_here() -> str:
    """The version and a hash of this package's files, which must be equal on all machines."""
    return f"{__version__}, files {files.code_hash([PACKAGE])}"


def do_trial(request: dict[str, Any], code: str) -> dict[str, Any]:
    """Run a trial in a Ray task. Returns the fields of its record, as `trial.ask` does."""
    if (here := code_here()) == code:
        return ask(request, lambda step, loss: None)
    what = "a different hectogpt runs Ray's trials"
    why = f"there {here}; here {code}"
    return {
        "status": "failed",
        "error": str(UserError(what, why=why, fix="the same version on every machine")),
    }


@contextmanager
def open_ray(comparison: Comparison, workers: int | None = None) -> Iterator[Engine]:
    """Context manager: an engine on a Ray cluster.

    The cluster is the one that RAY_ADDRESS names, otherwise one started on this machine by `ray
    start`, otherwise a local one that is started here and shut down at the end.

    Args:
        comparison: the comparison whose trials will run.
        workers: trials at a time; None runs as many as the cluster has room for.

    Raises UserError if the package ray is missing, if no cluster can be reached, or if the
    cluster is too small for one trial.
    """
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise not_installed("the engine ray", "ray", "ray") from None
    try:
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            "Ray did not start", why=_last_line(error), fix="ray status, or unset RAY_ADDRESS"
        ) from None
    try:
        have = ray.cluster_resources()
        threads = threads_of(comparison)
        code = code_here()
        gpus = 1 if have.get("GPU", 0) >= 1 and may_use_gpu(comparison) else 0
        room = int(have["GPU"] if gpus else have.get("CPU", 0) // threads)
        if not room:
            raise UserError(
                f"Ray has no room for a trial of {threads} threads",
                why=f"its machines have {have.get('CPU', 0):g} cores in all",
                fix=SetTo("threads", max(int(have.get("CPU", 1)), 1)),
            )
        task = ray.remote(max_retries=1, num_cpus=threads, num_gpus=gpus)(do_trial)

        def do(
            request: dict[str, Any], on_step: OnStep, cancelled: threading.Event
        ) -> dict[str, Any]:
            reference = task.remote(request, code)
            while not ray.wait([reference], timeout=RAY_POLL_SECONDS)[0]:
                if cancelled.is_set():
                    ray.cancel(reference, force=True)
                    raise process.CancelledError
            try:
                return dict(ray.get(reference))
            except (
                ray.exceptions.RayError
            ) as error:  # hectogpt is not installed there, or the process died twice
                return {"status": "failed", "error": f"Ray could not run it: {_last_line(error)}"}

        yield Engine(max(workers or room, 1), do)
    finally:
        ray.shutdown()


def _last_line(error: Exception) -> str:
    return [type(error).__name__, *(line for line in str(error).splitlines() if line.strip())][-1][
        :300
    ]
