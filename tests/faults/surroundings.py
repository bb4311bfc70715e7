"""What surrounds a command: locale, environment, streams, hash seed, clock. None changes what a run learns.

Every try is a whole `hectogpt` of its own: a small training, whose losses and weights are compared bit by bit with
those of an ordinary one, or a command that only has to answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command import HECTOGPT, TINY
from forks import WORKERS, Line
from helpers import ROOT, write_tokens

FULL = ">/dev/full"
COMPUTED = ("step", "tokens", "train/loss", "train/grad_norm", "train/lr", "dev/loss", "dev/bpb")
BITS, STREAMS, ANSWERS = (
    "surroundings: the same bits in every locale, environment, hash seed and clock",
    "surroundings: a full, closed or narrow stream ends no training",
    "surroundings: every command answers, without a traceback or a character that cannot be printed",
)
# A clock that jumps back and forth by months, and others that leap ahead, as after a sleep: for a sitecustomize.
CLOCKS = """\
import itertools, time
_calls, _time, _leaps = itertools.count(), time.time, {n: getattr(time, n) for n in ("monotonic", "perf_counter")}
time.time = lambda: _time() + (next(_calls) * 7919 % 13 - 6) * 30 * 86400.0
for _name, _real in _leaps.items():
    setattr(time, _name, lambda real=_real: real() + 5.0 * next(_calls))
"""
EVERYTHING_ODD: dict[str, str | None] = {
    **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii", "LANGUAGE": "tr"},
    **{"PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati", "COLUMNS": "20", "TERM": "dumb", "NO_COLOR": "1"},
    "XDG_CACHE_HOME": "relative",
}
ENVIRONMENTS: tuple[dict[str, str | None], ...] = (
    {"LC_ALL": "C"},
    {"LC_ALL": "tr_TR.UTF-8"},
    {"LC_ALL": "de_DE.UTF-8"},
    {"FORCE_COLOR": "1"},
    {"HOME": None, "XDG_CACHE_HOME": None},
    {"PATH": ""},
    {"PYTHONHASHSEED": "0"},
)
COMMANDS: dict[tuple[str, ...], int] = {  # and their exit codes; RUN stands for a finished run
    ("show",): 0,
    ("--help",): 0,
    ("train", "ü\x1b[31m"): 2,
    ("show", "r\udc80n"): 4,
    ("show", "RUN"): 0,
    ("generate", "RUN", "The", "--max-new-tokens", "3"): 0,
    ("idea", "mïne.py"): 0,
    ("compare", "baseline", "adamw_128", "--dry-run", "--corpus", "täxt.bin"): 0,
}


@dataclass(frozen=True)
class Surrounding:
    """Environment variables (None: not set), the shell's words for the streams, whether the clock jumps."""

    environment: dict[str, str | None] = field(default_factory=dict)
    streams: str = ""
    clock: bool = False


ODD, JUMPING = Surrounding(EVERYTHING_ODD), Surrounding(clock=True)


def trainings(quick: bool) -> Iterator[tuple[str, Surrounding]]:
    """(promise, surrounding) of every training but the ordinary one."""
    yield BITS, ODD
    yield STREAMS, Surrounding({"PYTHONHASHSEED": "random"}, f"{FULL} 2>/dev/full <&-", clock=True)
    if not quick:
        yield from ((BITS, Surrounding(environment)) for environment in ENVIRONMENTS)
        yield BITS, JUMPING
        yield from ((STREAMS, Surrounding(streams=words)) for words in (FULL, "2>&-", ">&-"))


def check(quick: bool) -> list[Line]:
    """Run all trainings, then the commands on the folder of one of them."""
    begun = time.perf_counter()
    faults: dict[str, list[str]] = {promise: [] for promise in (BITS, STREAMS, ANSWERS)}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(WORKERS) as pool:
        write_tokens(Path(name, "täxt.bin"))
        Path(name, "sitecustomize.py").write_text(CLOCKS, encoding="utf-8")
        expected, run = trained(Path(name), Surrounding())
        chosen = list(trainings(quick))
        for (promise, where), (found, _) in zip(
            chosen, pool.map(lambda one: trained(Path(name), one[1]), chosen), strict=True
        ):
            faults[promise].append("" if found == expected else f"{where}: {found}, not {expected}")
        asked = [(command, where) for command in COMMANDS for where in ([ODD] if quick else [ODD, JUMPING])]
        asked = asked[: 4 if quick else None]
        faults[ANSWERS] = list(pool.map(lambda one: fault_of(Path(name), one[0], one[1], run), asked))
    seconds = (time.perf_counter() - begun) / len(faults)
    return [
        Line(promise, len(found), sum(map(bool, found)), seconds, "; ".join(filter(None, found))[:2000])
        for promise, found in faults.items()
    ]


def trained(place: Path, surrounding: Surrounding) -> tuple[Any, Path]:
    """What a training in this surrounding computes, or what was wrong with it; and its folder. That stdout is full is
    told, with exit code 7, after all is kept."""
    command = ["train", "baseline", *TINY[:-1], "3", "--corpus", "täxt.bin", "--out", "run"]
    code, said, folder = run_in(place, command, surrounding)
    wanted, run = 7 if surrounding.streams.startswith(FULL) else 0, folder / "run"
    if code != wanted or "Traceback" in said or "Error:" in said:
        return f"exit code {code}, not {wanted}: {said[-400:]}", run
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    weights = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    computed = [{key: row[key] for key in COMPUTED if key in row} for row in rows]
    durations = min(row.get(key, 0) for row in rows for key in ("train/dt", "train/tok_per_sec"))
    return (computed, weights, [summary[n] for n in ("dev_loss", "samples", "state")], durations >= 0), run


def fault_of(place: Path, command: tuple[str, ...], surrounding: Surrounding, finished: Path) -> str:
    """What is wrong with a command's answer, "" if nothing: its code, or what cannot be printed there."""
    code, said, _ = run_in(place, [str(finished) if word == "RUN" else word for word in command], surrounding)
    plain = surrounding.environment.get("PYTHONIOENCODING") != "ascii" or said.isascii()
    wrong = code != COMMANDS[command] or "Traceback" in said or not plain or "\x1b" in said
    return f"{' '.join(command)!r}: exit code {code}: {said[-400:]}" if wrong else ""


def run_in(place: Path, arguments: Sequence[str], surrounding: Surrounding) -> tuple[int, str, Path]:
    """Exit code, all that was printed, and the folder of a command, which is a new one with the text in it."""
    folder = Path(tempfile.mkdtemp(dir=place))
    (folder / "täxt.bin").symlink_to(place / "täxt.bin")
    path = os.pathsep.join([str(place)] * surrounding.clock + [str(ROOT)])
    own = {"HECTOGPT_CACHE": str(folder / "cache"), "PYTHONPATH": path, "COLUMNS": "100"}
    command = [*HECTOGPT, *arguments]
    if surrounding.streams:
        command = ["/bin/sh", "-c", f'"$@" {surrounding.streams}', "sh", *command]
    known = {name: value for name, value in (os.environ | own | surrounding.environment).items() if value is not None}
    ended = subprocess.run(command, cwd=folder, env=known, capture_output=True, timeout=300, check=False)
    return ended.returncode, (ended.stdout + ended.stderr).decode("utf-8", errors="replace"), folder
