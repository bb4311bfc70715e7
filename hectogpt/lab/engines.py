"""Where the trials of a comparison run: in processes of this machine, several at a time, or where another engine has
them (ray_engine.py, slurm.py).

`run_trials` hands them out. It alone touches the comparison, its records and claims; an engine only does what a trial's
process is asked, and says how far it is. A trial's bits come from its run, seed and threads, so they are the same
wherever it runs and whatever runs beside it.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from hectogpt import hardware
from hectogpt.errors import UserError
from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.plan import Arm
from hectogpt.lab.record import Record
from hectogpt.lab.trial import request_of
from hectogpt.lab.trial_process import ask
from hectogpt.training.run import Run

POLL_SECONDS = 0.5  # between looks for a trial that another process has left
OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class News:
    """What has become of a trial. step: 0 when it begins, else the last one that is done, with its loss. record: at its
    end; None also for one that another process has recorded (`elsewhere`)."""

    trial: Trial
    step: int = 0
    loss: float = 0.0
    record: Record | None = None
    elsewhere: bool = False


class LostError(Exception):
    """The machine or the process that did a trial is gone, and the trial's result with it."""


class Engine(ABC):
    """Something that does trials. workers: how many at a time."""

    workers: int

    @abstractmethod
    def do(self, request: dict[str, Any], slot: int, on_step: OnStep, cancelled: threading.Event) -> dict[str, Any]:
        """Do one trial, in a thread of its own; what `trial_process.ask` returns. slot: from 0 to workers - 1, the
        trial's own as long as it runs. Raises process.CancelledError soon after `cancelled` is set, and LostError."""


@dataclass(frozen=True)
class LocalEngine(Engine):
    """Processes of this machine. gpus: names as CUDA_VISIBLE_DEVICES has them; a slot has one of them, in turn."""

    workers: int = 1
    gpus: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"workers = {self.workers}", why="somebody has to run the trials", fix="set workers to 1")

    def do(self, request: dict[str, Any], slot: int, on_step: OnStep, cancelled: threading.Event) -> dict[str, Any]:
        """A trial in a process; with several GPUs it sees one."""
        environment = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        return ask(request, on_step, environment, cancelled)


def local_engine(comparison: Comparison, workers: int) -> LocalEngine:
    """The engine for processes of this machine. Raises UserError if they would have to share cores, which makes their
    seconds those of no machine."""
    gpus = gpus_for(comparison.arms) if workers > 1 else []
    if not gpus and workers > 1:
        check_cores(comparison, workers)
    return LocalEngine(workers, tuple(gpus) if len(gpus) > 1 else ())


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
            fix=f"set threads to {cores // workers}, for all trials that are to be compared"
            if workers <= cores
            else f"set workers to {max(cores // threads, 1)}",
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


# --- handing out ------------------------------------------------------------------------------------------------------


@dataclass
class _Running:
    """A trial under way, and the right to run it."""

    trial: Trial
    run: Run
    slot: int
    begun: float
    claim: ExitStack


def run_trials(
    comparison: Comparison, trials: Sequence[Trial], engine: Engine, wait_for_others: bool = True
) -> Generator[News, None, None]:
    """Run those of the trials that nobody has run when it is their turn, `engine.workers` at a time.

    A trial that another process is running is left to it. wait_for_others: go on until such trials are recorded too;
    one whose process dies is run here. A trial that is lost with its machine is run once more. When the iteration is
    left, by an exception or by `close`, the trials under way are killed. Raises UserError (STORAGE).
    """
    return _HandOut(comparison, trials, engine, wait_for_others).news()


class _HandOut:
    """The trials of one call of `run_trials`: which wait, and which run where."""

    def __init__(self, comparison: Comparison, trials: Sequence[Trial], engine: Engine, wait: bool) -> None:
        self.comparison, self.engine, self.wait = comparison, engine, wait
        self.waiting, self.running = list(trials), dict[tuple[str, int], _Running]()
        self.free = list(range(engine.workers))[::-1]
        self.posts: SimpleQueue[tuple[Trial, Any]] = SimpleQueue()
        self.cancelled = threading.Event()
        self.threads: list[threading.Thread] = []
        self.lost: set[tuple[str, int]] = set()
        comparison.refresh()
        self.crashes = {trial.name: comparison.crashes(trial) for trial in trials}

    def news(self) -> Generator[News, None, None]:
        try:
            while self.waiting or self.running:
                yield from self._hand_out()
                if not self.running and not (self.waiting and self.wait):
                    return
                try:
                    post = self.posts.get(timeout=POLL_SECONDS if self.waiting and self.free else None)
                except Empty:
                    continue
                yield from self._receive(*post)
        finally:
            self.cancelled.set()
            for thread in self.threads:
                thread.join()
            for running in self.running.values():
                running.claim.close()

    def _hand_out(self) -> Iterator[News]:
        """Start trials while there are free slots; those that others have done are done."""
        for trial in list(self.waiting):
            if not self.free:
                return
            claim = ExitStack()
            if not claim.enter_context(self.comparison.claim(trial)):
                claim.close()
                continue
            self.waiting.remove(trial)
            self.comparison.refresh()
            if self.comparison.find(trial) or self.comparison.crashes(trial) > self.crashes[trial.name]:
                claim.close()
                yield News(trial, elsewhere=True)
                continue
            slot = self.free.pop()
            running = _Running(trial, self.comparison.begin(trial), slot, time.perf_counter(), claim)
            self.running[trial.name] = running
            scratch = self.comparison.scratch(running.run)
            request = request_of(
                running.run, self.comparison.corpus, self.comparison.splits, scratch, self.comparison.track.mixes_counts
            )
            thread = threading.Thread(target=self._do, args=(trial, request, slot), daemon=True)
            self.threads.append(thread)
            thread.start()
            yield News(trial)

    def _do(self, trial: Trial, request: dict[str, Any], slot: int) -> None:
        """In a thread: do the trial, and post (step, loss) and at last the result, or the exception."""
        try:
            result = self.engine.do(request, slot, lambda *step: self.posts.put((trial, step)), self.cancelled)
        except BaseException as error:  # raised where the news are read
            self.posts.put((trial, error))
        else:
            self.posts.put((trial, result))

    def _receive(self, trial: Trial, post: Any) -> Iterator[News]:
        if isinstance(post, tuple):
            yield News(trial, *post)
            return
        running = self.running.pop(trial.name)
        self.free.append(running.slot)
        with running.claim:
            if isinstance(post, LostError):
                if trial.name not in self.lost:
                    self.lost.add(trial.name)
                    self.waiting.append(trial)
                    return
                post = {"status": "failed", "error": f"lost twice with the process that ran it: {post}"}
            elif isinstance(post, BaseException):
                raise post
            if self.engine.workers > 1 and isinstance(post.get("machine"), dict):
                post["machine"] = post["machine"] | {"workers": self.engine.workers}
            yield News(trial, record=self.comparison.add(trial, running.run, post, running.begun))
