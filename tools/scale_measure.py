"""Measures what docs/scale.md says of one machine: gloo's processes under torchrun, and preparing corpora."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from hectogpt import hardware
from tools import ROOT
from tools.scale import RESULTS
from tools.scale_data import measure as measure_data

PROCESSES = (1, 2, 4)


def run_gloo(processes: int) -> dict[str, Any]:
    """What rank 0 of so many processes prints. Raises CalledProcessError."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*launch, "-m", "tools.scale_gloo"],
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


def measure(parts: Sequence[str] = ()) -> dict[str, Any]:
    """The parts "gloo" and "data" of results/scale.json, both if none is named, and where they were measured."""
    here = {"machine": f"{hardware.cpu_name()}, {hardware.usable_cores()} cores, torch {metadata.version('torch')}"}
    found: dict[str, Any] = {
        "about": json.loads(RESULTS.read_text(encoding="utf-8"))["about"] if RESULTS.exists() else {}
    }
    for name in parts or ("gloo", "data"):
        here |= {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "load": f"{os.getloadavg()[0]:.1f}"}
        found["about"][name] = dict(here)
        found[name] = [run_gloo(processes) for processes in PROCESSES] if name == "gloo" else measure_data()
    return found
