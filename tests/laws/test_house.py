"""The rules of the house: imports point down, each deed has its owner, data files run no code, errors say how to go on.

The layers are the table of tools/layers.py, the owners the table below. `python -m tools.layers` writes what is made
from the code: the picture, the list of files, the list of errors.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT

from tools import errors, layers

PACKAGE = ROOT / "hectogpt"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
PROGRAMS = ROOT / "tests" / "programs"
MAKE = "run `.venv/bin/python -m tools.layers`"

# What few may do: the names that do it ("time" stands for all of time), and the files that use them.
OWNERS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "replace, sync and lock files": (
        *[("os.replace", "os.rename", "os.renames", "os.fsync", "os.fdatasync", "shutil.move", "fcntl", "msvcrt")],
        {"files.py"},
    ),
    "ask the machine": (
        *[("resource", "os.cpu_count", "os.sched_getaffinity", "os.sysconf", "torch.cuda.mem_get_info", "psutil")],
        {"hardware.py"},
    ),
    "start processes": (
        (
            *("subprocess", "multiprocessing", "concurrent.futures.ProcessPoolExecutor", "asyncio.subprocess", "pty"),
            *("os.system", "os.popen", "os.fork", "os.posix_spawn", "os.execv", "os.execvp", "os.spawnv"),
        ),
        {"process.py", "feed.py", "hardware.py", "lab/slurm.py", "kernels/compiler.py"},
