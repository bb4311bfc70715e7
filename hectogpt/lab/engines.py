"""Runs the trials of a comparison: in processes of this machine, several at a time, or on the machines of Ray.

`run_trials` alone touches the comparison, its records and claims; an engine only does one trial at a time in a process.
A trial's bits come from its run, seed and threads, so they are the same wherever it runs and whatever runs beside it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from hectogpt import __version__, files, hardware, process
from hectogpt.display import Progress
from hectogpt.errors import UserError, set_to
from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.plan import Arm
from hectogpt.lab.record import Record
from hectogpt.lab.trial import PACKAGE, OnStep, ask

POLL_SECONDS = 0.5  # between looks for a trial that another process has left


@dataclass(frozen=True)
class News:
    """What has become of a trial. step: 0 when it begins, else the last one that is done, with its loss. record: at its
    end; None also for one that another process has recorded (`elsewhere`)."""

    trial: Trial
    step: int = 0
    loss: float = 0.0
    record: Record | None = None
    elsewhere: bool = False


@dataclass(frozen=True)
class Engine:
    """Something that does trials. workers: how many at a time. do: one trial, in a thread of its own, returning what
    `trial.ask` returns; it raises process.CancelledError soon after the event is set."""

    workers: int
    do: Callable[[dict[str, Any], OnStep, threading.Event], dict[str, Any]]


def run_trials(comparison: Comparison, trials: Sequence[Trial], engine: Engine) -> Generator[News, None, None]:
    """Run those of the trials that nobody has run when it is their turn, `engine.workers` at a time.

    A trial that another process is running is left to it until it is recorded; one whose process dies is run here.
    When the iteration is left, by an exception or by `close`, the trials under way are killed. Raises UserError
    (STORAGE).
    """
    waiting, running = list(trials), dict[tuple[str, int], tuple[ExitStack, float]]()
    posts, cancelled = SimpleQueue[tuple[Trial, tuple[int, float] | Future[dict[str, Any]]]](), threading.Event()

    def start(trial: Trial, pool: ThreadPoolExecutor) -> None:
        future = pool.submit(engine.do, comparison.request(trial), lambda *step: posts.put((trial, step)), cancelled)
        future.add_done_callback(lambda done: posts.put((trial, done)))

    with ExitStack() as claims, ThreadPoolExecutor(engine.workers) as pool, ExitStack() as end:
        end.callback(cancelled.set)
        while waiting or running:
            for trial in list(waiting):
                if len(running) == engine.workers:
                    break
                claim = comparison.claim(trial)
                if claim is None:
                    continue
                claims.push(claim)
                waiting.remove(trial)
                comparison.refresh()
                if comparison.find(trial):
                    claim.close()
                    yield News(trial, elsewhere=True)
                else:
                    running[trial.name] = claim, time.perf_counter()
                    start(trial, pool)
                    yield News(trial)
            try:
                is_full = running and (not waiting or len(running) == engine.workers)
                trial, post = posts.get(timeout=None if is_full else POLL_SECONDS)
            except Empty:
                continue
            if isinstance(post, tuple):
                yield News(trial, *post)
                continue
            result, (claim, begun) = post.result(), running.pop(trial.name)
            if engine.workers > 1 and isinstance(result.get("machine"), dict):
                result["machine"] = result["machine"] | {"workers": engine.workers}
            record = comparison.add(trial, result, begun)
            claim.close()
            yield News(trial, record=record)


def perform(comparison: Comparison, trials: Sequence[Trial], engine: Engine, progress: Progress) -> None:
    """Run trials to their end, as `run_trials`: a bar for all of them on a terminal, and a line for what came of each.
    The comparison then has their records, those of other processes too."""
    steps, ended = dict.fromkeys((trial.name for trial in trials), 0), 0
    total = sum(trial.arm.run.steps for trial in trials)
    with closing(run_trials(comparison, trials, engine)) as all_news, progress.bar(total, "") as show:
        for news in all_news:
            trial, name = news.trial, f"{news.trial.arm.label}, seed {news.trial.seed}"
            is_over = news.elsewhere or news.record is not None
            steps[trial.name] = trial.arm.run.steps if is_over else news.step
            show(sum(steps.values()), f"{name}: loss {news.loss:.3f}" if news.step else name)
            ended += is_over
            if news.record is not None:
                progress.line(f"{ended} of {len(trials)}: {name}: {news.record.outcome(comparison.split)}")
    comparison.missing()


# --- processes of this machine ----------------------------------------------------------------------------------------


def local_engine(comparison: Comparison, workers: int = 1) -> Engine:
    """Processes of this machine; with several GPUs each trial sees one of them.

    Raises UserError if they would have to share cores, which makes their seconds those of no machine.
    """
    if workers < 1:
        raise UserError(f"workers = {workers}", why="somebody has to run the trials", fix=set_to("workers", 1))
    gpus = gpus_for(comparison.arms) if workers > 1 else []
    if not gpus and workers > 1:
        check_cores(comparison, workers)
    free = SimpleQueue[dict[str, str]]()  # what each worker's trials have in their environment: its GPU
    for number in range(workers):
        free.put({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if len(gpus) > 1 else {})

    def do(request: dict[str, Any], on_step: OnStep, cancelled: threading.Event) -> dict[str, Any]:
        environment = free.get()
        try:
            return ask(request, on_step, environment, cancelled)
        finally:
            free.put(environment)

    return Engine(workers, do)


def threads_of(comparison: Comparison) -> int:
    """Threads of the comparison's trials, the most if they differ."""
    runs = [comparison.run_of(Trial(arm, 0)) for arm in comparison.arms]
    return max(run.threads or hardware.physical_cores() for run in runs)


def check_cores(comparison: Comparison, workers: int) -> None:
    """Raise UserError if so many trials at a time have more threads than this machine has cores."""
    threads, cores = threads_of(comparison), hardware.usable_cores()
    if workers * threads > cores:
        raise UserError(
            f"{workers} trials at a time of {threads} thread{'s' * (threads != 1)} each do not fit {cores} cores",
            why="trials that share cores take longer, and their seconds count. The number of threads changes the last "
            "bits of a loss, so it does not follow the number of workers by itself",
            fix=set_to("threads", cores // workers) + ", for all trials that are to be compared"
            if workers <= cores
            else set_to("workers", max(cores // threads, 1)),
        )


def gpus_for(arms: Sequence[Arm], count: int | None = None) -> list[str]:
    """The GPUs that trials may be spread over: those that CUDA_VISIBLE_DEVICES names, else all; none if an arm trains
    on the CPU or names its GPU itself. count: how many there are; None for as many as this machine has."""
    if any(arm.run.device not in ("auto", "cuda") for arm in arms):
        return []
    if count is None:
        import torch

        count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


# --- Ray: each trial is a task of a cluster ---------------------------------------------------------------------------

RAY_POLL_SECONDS = 0.2
# Ray asks and counts over the network unless these say no, and its tasks would wait for all else on a machine.
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


def code_here() -> str:
    """Version and hash of this package's files, which must be equal everywhere."""
    return f"{__version__}, files {files.code_hash([PACKAGE])}"


def do_trial(request: dict[str, Any], code: str) -> dict[str, Any]:
    """The task, on Ray's side: the fields of the record, as `trial.ask` gives them."""
    if (here := code_here()) != code:
        raise UserError(
            "another hectogpt is installed where Ray runs trials",
            why=f"there {here}; here {code}. Other code may compute other losses",
            fix="install the same version on every machine",
        )
    return ask(request, lambda step, loss: None)


@contextmanager
def open_ray(comparison: Comparison, workers: int | None = None) -> Iterator[Engine]:
    """The cluster that RAY_ADDRESS names, the one that `ray start` has started on this machine, or a Ray that this
    process starts and ends.

    workers: trials at a time; None for as many as the cluster has room for. Raises UserError without the package ray,
    without a cluster, and for trials that no machine has room for.
    """
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        what, why = "the engine ray needs the package ray", "it is an optional dependency"
        raise UserError(what, why=why, fix='pip install "hectogpt[ray]"') from None
    try:
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError("Ray did not start", why=_last_line(error), fix="ray status, or unset RAY_ADDRESS") from None
    try:
        have, threads, code = ray.cluster_resources(), threads_of(comparison), code_here()
        gpus = 1 if have.get("GPU", 0) >= 1 and gpus_for(comparison.arms, int(have["GPU"])) else 0
        room = int(have["GPU"] if gpus else have.get("CPU", 0) // threads)
        if not room:
            raise UserError(
                f"Ray has no room for a trial of {threads} threads",
                why=f"its machines have {have.get('CPU', 0):g} cores in all",
                fix=set_to("threads", max(int(have.get("CPU", 1)), 1)),
            )
        task = ray.remote(max_retries=1, num_cpus=threads, num_gpus=gpus)(do_trial)

        def do(request: dict[str, Any], on_step: OnStep, cancelled: threading.Event) -> dict[str, Any]:
            reference = task.remote(request, code)
            while not ray.wait([reference], timeout=RAY_POLL_SECONDS)[0]:
                if cancelled.is_set():
                    ray.cancel(reference, force=True)
                    raise process.CancelledError
            try:
                return dict(ray.get(reference))
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                fix = "install hectogpt on every machine of the cluster"
                raise UserError("Ray could not run a trial", why=_last_line(error), fix=fix) from None
            except ray.exceptions.RayError as error:
                return {"status": "failed", "error": f"lost twice with the process that ran it: {_last_line(error)}"}

        yield Engine(max(workers or room, 1), do)
    finally:
        ray.shutdown()


def _last_line(error: Exception) -> str:
    return [type(error).__name__, *(line for line in str(error).splitlines() if line.strip())][-1][:300]
