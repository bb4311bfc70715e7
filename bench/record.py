"""Appends a measurement to results/bench.jsonl: what was asked, on which machine, with which versions, the figures."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

CHECKOUT = Path(__file__).resolve().parent.parent
RESULTS = CHECKOUT / "results" / "bench.jsonl"


def machine() -> str:
    """The processor's name and the number of usable cores, or the GPU's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name, features = platform.processor() or platform.machine(), []
    if Path("/proc/cpuinfo").exists():
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        name = fields.get("model name", name)
        flags = fields.get("flags", "").split()
        features = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return ", ".join([name, f"{len(os.sched_getaffinity(0))} cores", *features])


def commit() -> tuple[str, bool]:
    """Short hash of the checkout, and whether tracked files differ from it ("unknown" outside a checkout)."""

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=CHECKOUT, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    return git("rev-parse", "--short", "HEAD") or "unknown", bool(git("status", "--porcelain", "--untracked-files=no"))


def record(question: str, rows: list[dict[str, Any]], packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Append one line: `rows` are the contenders' figures (numbers and short strings); returns the line."""
    head, dirty = commit()
    line = {
        "question": question,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "commit": head,
        "dirty": dirty,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "rows": rows,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return line
