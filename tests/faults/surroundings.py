"""What surrounds a command: locale, environment, streams, hash seed, clock. None changes what a run learns.

Every try is a whole `hectogpt` of its own: a small training, whose losses and weights are compared bit by bit with
those of an ordinary one, or a command that only has to answer.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forks
import runs
from command import HECTOGPT, TINY
from helpers import ROOT, write_tokens

Environment = dict[str, str | None]  # None: not set
TRAIN = ("train", "baseline", *TINY[:-1], "3", "--corpus", "täxt", "--out", "run")
BITS = "surroundings: the same bits in every locale, environment, hash seed and clock"
STREAMS = "surroundings: training survives a full, closed or narrow stream"
ANSWERS = "surroundings: every command answers, without a traceback or an unprintable character"
CLOCK = "clock"  # in PYTHONPATH: the folder of a clock that jumps back and forth by months, and others that leap ahead
JUMPING = """\
import itertools, time
_calls, _time, _leaps = itertools.count(), time.time, {n: getattr(time, n) for n in ("monotonic", "perf_counter")}
time.time = lambda: _time() + (next(_calls) * 7919 % 13 - 6) * 30 * 86400.0
for _name, _real in _leaps.items():
    setattr(time, _name, lambda real=_real: real() + 5.0 * next(_calls))
"""
POOR: Environment = {
    **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii", "LANGUAGE": "tr"},
    **{"PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati", "COLUMNS": "20", "TERM": "dumb", "NO_COLOR": "1"},
    **{"XDG_CACHE_HOME": "relative", "PYTHONPATH": CLOCK},
}
FOREIGN: Environment = {"LC_ALL": "tr_TR.UTF-8", "HOME": None, "XDG_CACHE_HOME": None, "PATH": "", "FORCE_COLOR": "1"}


@dataclass(frozen=True)
class Try:
    """A command; RUN in it stands for a finished run. streams: the shell's words for them. code: its exit code."""

    promise: str
    command: tuple[str, ...] = TRAIN
    code: int = 0
    environment: Environment = field(default_factory=dict)
    streams: str = ""


TRIES = (
    Try(BITS, environment=POOR),
    Try(BITS, environment=FOREIGN),
    Try(STREAMS, environment={"PYTHONPATH": CLOCK}, streams=">/dev/full 2>/dev/null <&-", code=7),
    Try(STREAMS, streams=">/dev/full", code=7),
    Try(STREAMS, streams="2>&-"),
    Try(STREAMS, streams=">&-"),
    Try(ANSWERS, ("--help",), streams=">&- 2>&- <&-"),
    Try(ANSWERS, ("--help",), streams="| true"),
    Try(ANSWERS, ("--help",), streams="2>/dev/full"),
    Try(ANSWERS, ("--help",), 7, streams=">/dev/full"),
    Try(ANSWERS, ("--help",), 0, POOR),
    Try(ANSWERS, ("show",), 0, POOR),
    Try(ANSWERS, ("train", "ü\x1b[31m"), 2, POOR),
    Try(ANSWERS, ("show", "r\udc80n"), 4, POOR),
    Try(ANSWERS, ("show", "RUN"), 0, POOR),
    Try(ANSWERS, ("generate", "RUN", "The", "--max-new-tokens", "3"), 0, POOR),
    Try(ANSWERS, ("idea", "mïne.py"), 0, POOR),
    Try(ANSWERS, ("compare", "baseline", "adamw_128", "--dry-run", "--corpus", "täxt"), 0, POOR),
)


def check(quick: bool) -> list[forks.Line]:
    """The lines of all tries. quick: a third of them."""
    tries = TRIES[:: 3 if quick else 1]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(forks.WORKERS) as pool:
        place = Path(name)
        write_tokens(place / "täxt")
        (place / CLOCK).mkdir()
        (place / CLOCK / "sitecustomize.py").write_text(JUMPING, encoding="utf-8")
        begun = time.monotonic()
        code, said, folder = run_in(place, Try(BITS), Path())
        expected = learned(folder / "run") if code == 0 else said
        found = list(pool.map(lambda one: fault_of(place, one, folder / "run", expected), tries))
    lines = []
    for promise in dict.fromkeys(one.promise for one in tries):
        faults = [fault for one, fault in zip(tries, found, strict=True) if one.promise == promise]
        lines.append(forks.Line(promise, len(faults), list(filter(None, faults)), time.monotonic() - begun))
    return lines


def fault_of(place: Path, one: Try, finished: Path, expected: Any) -> str:
    """What is wrong with a command, "" if nothing: its code, what cannot be printed there, or what a training learns.
    That stdout is full is told, with exit code 7, after all is kept."""
    code, said, folder = run_in(place, one, finished)
    plain = one.environment.get("PYTHONIOENCODING") != "ascii" or said.isascii()
    colored = "\x1b" in said and "FORCE_COLOR" not in one.environment
    if code != one.code or re.search("Traceback|Error:", said) or not plain or colored:
        return f"{one}: exit code {code}: {said[-400:]}"
    found = learned(folder / "run") if one.command == TRAIN else expected
    return "" if found == expected else f"{one}: {found}, not {expected}"


def learned(run: Path) -> Any:
    """What a training has computed, and whether no time that it measured is negative."""
    rows, found = [json.loads(line) for line in (run / "metrics.jsonl").open()], runs.signature(run)
    del found["steps"]  # checkpoints are saved by time
    return found, min(row.get(key, 0) for row in rows for key in ("train/dt", "train/tok_per_sec")) >= 0


def run_in(place: Path, one: Try, finished: Path) -> tuple[int, str, Path]:
    """Exit code, all that was printed, and the folder of a command, which is a new one with the text in it."""
    folder = Path(tempfile.mkdtemp(dir=place))
    (folder / "täxt").symlink_to(place / "täxt")
    command = [*HECTOGPT, *(str(finished) if word == "RUN" else word for word in one.command)]
    if one.streams:
        command = ["/bin/sh", "-c", f'"$@" {one.streams}', "sh", *command]
    known = os.environ | {"HECTOGPT_CACHE": str(folder / "cache"), "COLUMNS": "100"} | one.environment
    known["PYTHONPATH"] = os.pathsep.join(
        [*([str(place / CLOCK)] if "PYTHONPATH" in one.environment else []), str(ROOT)]
    )
    given = {name: value for name, value in known.items() if value is not None}
    ended = subprocess.run(command, cwd=folder, env=given, capture_output=True, timeout=300, check=False)
    return ended.returncode, (ended.stdout + ended.stderr).decode("utf-8", errors="replace"), folder
