"""Ray as the engine of a comparison: each trial is a task of a Ray cluster, or of the Ray that is started here.

The task runs the trial's own process on the machine that Ray gives it, and yields how far it is. Records are written
where the comparison runs. docs.ray.io: "Ray generators", "Fault tolerance".
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from hectogpt import errors, worker
from hectogpt.errors import UserError
from hectogpt.lab.compare import Comparison
from hectogpt.lab.engines import Engine, LostError, OnStep, gpus_for, threads_of
from hectogpt.lab.ray_task import code_here, do_trial

POLL_SECONDS = 0.2


class RayEngine(Engine):
    """Tasks of Ray: of the cluster that RAY_ADDRESS names, of the one that `ray start` has started on this machine, or
    of a Ray that this process starts and ends.

    workers: trials at a time; None for as many as the cluster has room for. Raises UserError without the package ray,
    without a cluster, and for trials that no machine has room for.
    """

    def __init__(self, comparison: Comparison, workers: int | None = None) -> None:
        # Ray asks and counts over the network unless it is told not to.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: trials would wait for all else here
        try:
            import ray as ray_module
        except ImportError:
            raise UserError(
                "the engine ray needs the package ray",
                why="it is an optional dependency",
                fix='pip install "hectogpt[ray]"',
            ) from None
        ray: Any = ray_module
        self._ray = ray
        try:
            ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError("Ray did not start", why=first[:300], fix="ray status, or unset RAY_ADDRESS") from None
        have, threads = ray.cluster_resources(), threads_of(comparison)
        self._gpus = 1 if have.get("GPU", 0) >= 1 and gpus_for(comparison.arms, int(have["GPU"])) else 0
        room = int(have["GPU"] if self._gpus else have.get("CPU", 0) // threads)
        if not room:
            self.close()
            raise UserError(
                f"Ray has no room for a trial of {threads} threads",
                why=f"its machines have {have.get('CPU', 0):g} cores in all",
                fix=f"set threads to {max(int(have.get('CPU', 1)), 1)}",
            )
        self.workers = max(workers or room, 1)
        self._code = code_here()
        self._task = ray.remote(max_retries=0, num_cpus=threads, num_gpus=self._gpus)(do_trial)

    def do(self, request: dict[str, Any], slot: int, on_step: OnStep, cancelled: threading.Event) -> dict[str, Any]:
        """A trial as a task."""
        ray = self._ray
        corpus = Path(request["corpus"])
        if corpus.exists():  # a task has another working folder
            request = request | {"corpus": str(corpus.absolute())}
        stream = self._task.remote(request, self._code)
        try:
            while True:
                if cancelled.is_set():
                    raise worker.CancelledError
                if not ray.wait([stream], timeout=POLL_SECONDS)[0]:
                    continue
                try:
                    message = ray.get(next(stream))
                except StopIteration:
                    raise LostError("Ray's task ended without a result") from None
                except ray.exceptions.RayTaskError as error:
                    raise _as_user_error(error) from None
                except ray.exceptions.RayError as error:
                    raise LostError((str(error).splitlines() or [type(error).__name__])[0]) from None
                if "step" not in message:
                    return dict(message)
                on_step(message["step"], message["loss"])
        except worker.CancelledError:
            ray.cancel(stream, force=True)
            raise

    def close(self) -> None:
        """Leave the cluster; end the Ray that this process has started."""
        self._ray.shutdown()


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
