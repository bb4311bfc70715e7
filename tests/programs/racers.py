"""Contenders of bench.race that do little, or fail."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from bench.race import Lap, Row


def prepare(setting: str, contender: str, folder: str) -> dict[str, Lap]:
    """A lap that writes down whose turn it is, and returns how long this process has computed since its last one."""
    if contender == "missing":
        __import__("a_package_that_is_not_there")
    numbers, laps, ended = torch.ones(600, 600), 0, time.process_time()

    def lap() -> Row:
        nonlocal laps, ended
        idle, laps = time.process_time() - ended, laps + 1
        with (Path(folder) / "turns").open("a", encoding="utf-8") as turns:
            turns.write(f"{contender} ")
        if contender == "crashes" and laps == 2:
            os.kill(os.getpid(), signal.SIGILL)
        numbers.mm(numbers).exp()  # by several threads
        time.sleep(0.2)
        ended = time.process_time()
        return {"seconds": float(laps), "idle": idle}

    return {"step": lap}
