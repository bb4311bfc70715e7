"""Ray as the engine of a comparison: each trial is a task of a Ray cluster, or of the Ray that is started here.

The task runs the trial's own process on the machine that Ray gives it, and yields how far it is. Records are written
where the comparison runs. docs.ray.io: "Ray generators", "Fault tolerance".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hectogpt import errors, process
from hectogpt.errors import UserError
from hectogpt.lab.compare import Comparison
from hectogpt.lab.engines import Engine, LostError, OnStep, gpus_for, threads_of
from hectogpt.lab.ray_task import code_here, do_trial

POLL_SECONDS = 0.2
# Ray asks and counts over the network unless it is told not to, and its tasks would wait for all else on a machine.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


@dataclass(frozen=True)
class RayEngine(Engine):
    """Tasks of Ray. ray: the package, in a cluster. task: the remote function of a trial. code: `code_here`."""

    workers: int
    ray: Any
    task: Any
    code: dict[str, str]

    def do(self, request: dict[str, Any], slot: int, on_step: OnStep, cancelled: threading.Event) -> dict[str, Any]:
        """A trial as a task."""
        corpus = Path(request["corpus"])
        if corpus.exists():  # a task has another working folder
            request = request | {"corpus": str(corpus.absolute())}
        stream = self.task.remote(request, self.code)
        while not cancelled.is_set():
            if not self.ray.wait([stream], timeout=POLL_SECONDS)[0]:
                continue
            try:
                message = self.ray.get(next(stream))
            except StopIteration:
                raise LostError("Ray's task ended without a result") from None
            except self.ray.exceptions.RayTaskError as error:
                raise _as_user_error(error) from None
            except self.ray.exceptions.RayError as error:
                raise LostError(_first_line(error)) from None
            if "step" not in message:
                return dict(message)
            on_step(message["step"], message["loss"])
        self.ray.cancel(stream, force=True)
        raise process.CancelledError


@contextmanager
def open_ray(comparison: Comparison, workers: int | None = None) -> Iterator[RayEngine]:
    """The cluster that RAY_ADDRESS names, the one that `ray start` has started on this machine, or a Ray that this
    process starts and ends.

    workers: trials at a time; None for as many as the cluster has room for. Raises UserError without the package ray,
    without a cluster, and for trials that no machine has room for.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        what, why = "the engine ray needs the package ray", "it is an optional dependency"
        raise UserError(what, why=why, fix='pip install "hectogpt[ray]"') from None
    try:
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError("Ray did not start", why=_first_line(error), fix="ray status, or unset RAY_ADDRESS") from None
    try:
        have, threads = ray.cluster_resources(), threads_of(comparison)
        gpus = 1 if have.get("GPU", 0) >= 1 and gpus_for(comparison.arms, int(have["GPU"])) else 0
        room = int(have["GPU"] if gpus else have.get("CPU", 0) // threads)
        if not room:
            raise UserError(
                f"Ray has no room for a trial of {threads} threads",
                why=f"its machines have {have.get('CPU', 0):g} cores in all",
                fix=f"set threads to {max(int(have.get('CPU', 1)), 1)}",
            )
        task = ray.remote(max_retries=0, num_cpus=threads, num_gpus=gpus)(do_trial)
        yield RayEngine(max(workers or room, 1), ray, task, code_here())
    finally:
        ray.shutdown()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _as_user_error(error: Any) -> UserError:
    """An exception of the task, which carries the one that was raised there."""
    cause = error.cause
    if isinstance(cause, UserError):
        return UserError(cause.what, why=cause.why, fix=cause.fix, code=cause.code)
    last = [line for line in str(error).splitlines() if line.strip()][-1:]
    return UserError(
        "Ray could not run a trial",
        why=" ".join(last)[:300],
        fix="install hectogpt on every machine of the cluster",
        code=errors.USAGE,
    )
