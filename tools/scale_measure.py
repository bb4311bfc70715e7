"""Measures what docs/scale.md says of one machine: gloo's processes, their memory, and preparing corpora."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from hectogpt import hardware
from tools import ROOT
from tools.scale import RESULTS
from tools.scale_data import measure as measure_data

PROCESSES = (1, 2, 4)


def run_gloo(processes: int) -> dict[str, Any]:
    """What rank 0 of so many processes prints of the schedules. Raises CalledProcessError."""
    return ask(processes, "tools.scale_gloo")


def run_memory(how: str, processes: int) -> dict[str, Any]:
    """What each of so many processes takes, MiB, by "none", "ddp" or "fsdp"."""
    return {"processes": processes, **ask(processes, "tools.scale_memory", how)}


def ask(processes: int, *program: str) -> dict[str, Any]:
    """The JSON object that rank 0 of the program's processes prints. Raises CalledProcessError."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*launch, "-m", *program],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        timeout=300,
    )
    found: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return found


def measure_memory() -> list[dict[str, Any]]:
    return [run_memory("none", 1), *(run_memory(how, n) for how in ("ddp", "fsdp") for n in PROCESSES)]


PARTS: dict[str, Callable[[], Any]] = {
    "gloo": lambda: [run_gloo(processes) for processes in PROCESSES],
    "memory": measure_memory,
    "data": measure_data,
}


def measure(parts: Sequence[str] = ()) -> dict[str, Any]:
    """The named PARTS of results/scale.json, all if none is named, and where they were measured."""
    here = {"machine": f"{hardware.cpu_name()}, {hardware.usable_cores()} cores, torch {metadata.version('torch')}"}
    found: dict[str, Any] = {
        "about": json.loads(RESULTS.read_text(encoding="utf-8"))["about"] if RESULTS.exists() else {}
    }
    for name in parts or PARTS:
        here |= {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "load": f"{os.getloadavg()[0]:.1f}"}
        found["about"][name] = dict(here)
        found[name] = PARTS[name]()
    return found
