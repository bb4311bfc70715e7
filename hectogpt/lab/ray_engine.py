"""Ray as the engine of a comparison: each trial is a task of a Ray cluster, or of the Ray that is started here.

The task runs the trial's own process on the machine that Ray gives it; a task that is lost with its machine is given
out once more. Records are written where the comparison runs. docs.ray.io: "Fault tolerance".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hectogpt import __version__, hardware, process
from hectogpt.errors import UserError
from hectogpt.lab.compare import Comparison
from hectogpt.lab.engines import Engine, gpus_for, threads_of
from hectogpt.lab.trial import PACKAGE, OnStep, ask

POLL_SECONDS = 0.2
# Ray asks and counts over the network unless it is told not to, and its tasks would wait for all else on a machine.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


def code_here() -> str:
    """Version and hash of this package's files, which must be equal everywhere."""
    return f"{__version__}, files {hardware.code_hash([PACKAGE])}"


def do_trial(request: dict[str, Any], code: str) -> dict[str, Any]:
    """The task, on Ray's side: the fields of the record, as `trial.ask` gives them."""
    if (here := code_here()) != code:
        raise UserError(
            "another hectogpt is installed where Ray runs trials",
            why=f"there {here}; here {code}. Other code may compute other losses",
            fix="install the same version on every machine",
        )
    folder = Path(request["scratch"])
    if not folder.with_suffix(".claim").exists():  # the comparison's folder is not shared with this machine
        request = request | {"scratch": None}
    return ask(request, lambda step, loss: None)


@contextmanager
def open_ray(comparison: Comparison, workers: int | None = None) -> Iterator[Engine]:
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
        raise UserError("Ray did not start", why=_last_line(error), fix="ray status, or unset RAY_ADDRESS") from None
    try:
        have, threads, code = ray.cluster_resources(), threads_of(comparison), code_here()
        gpus = 1 if have.get("GPU", 0) >= 1 and gpus_for(comparison.arms, int(have["GPU"])) else 0
        room = int(have["GPU"] if gpus else have.get("CPU", 0) // threads)
        if not room:
            raise UserError(
                f"Ray has no room for a trial of {threads} threads",
                why=f"its machines have {have.get('CPU', 0):g} cores in all",
                fix=f"set threads to {max(int(have.get('CPU', 1)), 1)}",
            )
        task = ray.remote(max_retries=1, num_cpus=threads, num_gpus=gpus)(do_trial)

        def do(request: dict[str, Any], on_step: OnStep, cancelled: threading.Event) -> dict[str, Any]:
            reference = task.remote(request, code)
            while not ray.wait([reference], timeout=POLL_SECONDS)[0]:
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
