"""A measurement as one line of JSON: what was asked, on which machine, with which versions, and the figures."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.race import Row
from hectogpt import hardware, process
from hectogpt.files import append_line

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "bench.jsonl"
SECONDS = ROOT / "results" / "seconds.jsonl"  # of every recipe, which the report of the ladder reads
CODE = ("hectogpt", "bench", "reference")  # what a timing depends on


def machine() -> str:
    """The GPU's name, or the processor's with the number of usable cores and its vector instructions."""
    if torch.cuda.is_available():
        return hardware.device_name("cuda")
    return ", ".join([hardware.cpu_name(), f"{hardware.usable_cores()} cores", *hardware.cpu_features()])


# Entries of /proc/cpuinfo that distinguish CPUs of the same name. The last two are ARM's.
NUMBERS = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part")


def processor() -> dict[str, Any]:
    """Name, family, model and stepping of the processor, its features and cores, and how many cores may be used."""
    return {
        "name": hardware.cpu_name(),
        **{name: hardware.cpu_facts()[name] for name in NUMBERS if name in hardware.cpu_facts()},
        "features": hardware.cpu_features(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "usable": hardware.usable_cores(),
    }


def now() -> str:
    """The time, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python, torch and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in ("torch", *packages):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def record(
    path: Path, question: str, rows: Sequence[Row], asked: dict[str, Any], threads: int, packages: Sequence[str]
) -> None:
    """Append the figures of all contenders to a file of JSON lines. asked: a module of bench/, its setting, all
    its settings, and the time, which tell later which records are still valid. Raises OSError."""
    revision = process.revision(ROOT)
    line = {
        "question": question,
        **asked,
        "date": now(),
        "machine": machine(),
        "processor": processor(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "commit": (revision.commit or "unknown")[:7],
        "dirty": any(process.revision(ROOT / folder).dirty for folder in CODE),
        "versions": versions(packages),
        "rows": list(rows),
    }
    append_line(path, json.dumps(line))


def show(question: str, rows: Sequence[Row]) -> None:
    """Print the figures, one contender a line."""
    for row in rows:
        print(f"{question}:", "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
