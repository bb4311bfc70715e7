"""What surrounds a command: locale, environment, streams, hash seed, clock. None changes what a run learns.

Every try is a whole `hectogpt` of its own: a small training, whose losses and weights are compared bit by bit with
those of an ordinary one, or a command that only has to answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from promises import Line

ROOT = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")
LIMIT = 300.0  # seconds after which a command hangs
TRAIN = (
    *("train", "baseline", "--model.d-model", "16", "--model.n-heads", "2", "--model.n-layers", "1"),
    *("--model.context-length", "64", "--data.seq-len", "64", "--data.batch-size", "4"),
    *("--threads", "1", "--steps", "3", "--corpus", "täxt.bin", "--out"),
)
FILES = ("run.json", "metrics.jsonl", "model.safetensors", "config.json", "summary.json")
COMPUTED = ("step", "tokens", "train/loss", "train/grad_norm", "train/lr", "dev/loss", "dev/bpb")
DURATIONS = ("train/dt", "train/tok_per_sec")
BITS, STREAMS, CLOCK, ANSWERS = (
    "surroundings: the same bits in every locale, environment and hash seed",
    "surroundings: a full, closed or narrow stream ends no training",
    "surroundings: a clock that jumps changes no bit and no decision",
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
ODD_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
WARNINGS = ("-X", "warn_default_encoding", "-W", "error::EncodingWarning:hectogpt")  # a file opened without an encoding
EVERYTHING_ODD = ODD_LOCALE | {
    **{"PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati", "COLUMNS": "20", "TERM": "dumb", "NO_COLOR": "1"},
    **{"LANGUAGE": "tr", "XDG_CACHE_HOME": "relative"},
}


@dataclass(frozen=True)
class Surrounding:
    """Environment variables (None: not set), options of Python, and the shell's words for the streams."""

    environment: dict[str, str | None] = field(default_factory=dict)
    python: tuple[str, ...] = ()
    streams: str = ""
    clock: bool = False  # whether the clock jumps


def trainings(quick: bool) -> Iterator[tuple[str, str, Surrounding]]:
    """(promise, name, surrounding) of every training but the ordinary one."""
    streams = Surrounding({"PYTHONHASHSEED": "random"}, streams=f">{FULL} 2>{FULL} <&-", clock=True)
    yield BITS, "everything odd at once", Surrounding({**EVERYTHING_ODD}, WARNINGS)
    yield STREAMS, "full streams, and a clock that jumps", streams
    if quick:
        return
    environments: dict[str, dict[str, str | None]] = {
        "LC_ALL=C": {"LC_ALL": "C"},
        "LC_ALL=C without UTF-8": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "PYTHONIOENCODING=ascii": {"PYTHONIOENCODING": "ascii"},
        "tr_TR": {"LC_ALL": "tr_TR.UTF-8"},
        "de_DE": {"LC_ALL": "de_DE.UTF-8"},
        "TZ": {"TZ": "America/St_Johns"},
        "colour": {"FORCE_COLOR": "1"},
        "no HOME": {"HOME": None, "XDG_CACHE_HOME": None},
        "no PATH": {"PATH": ""},
        "hash seed 0": {"PYTHONHASHSEED": "0"},
        "hash seed 1": {"PYTHONHASHSEED": "1"},
        "hash seed random": {"PYTHONHASHSEED": "random"},
        "20 columns": {"COLUMNS": "20"},
    }
    for name, environment in environments.items():
        yield BITS, name, Surrounding(environment)
    for words in (f">{FULL}", f"2>{FULL}", ">&-", "2>&-", "<&-", ">&- 2>&- <&-"):
        yield STREAMS, words, Surrounding(streams=words)
    yield CLOCK, "a clock that jumps", Surrounding(clock=True)


def check(quick: bool) -> list[Line]:
    """Run all trainings, then the commands on the folder of one of them."""
    begun = time.perf_counter()
    tries: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        place = Place(Path(name))
        ordinary = pool.submit(place.train, Surrounding())
        found = [
            (promise, name, pool.submit(place.train, surrounding))
            for promise, name, surrounding in trainings(quick)
            if str(FULL) not in surrounding.streams or FULL.exists()
        ]
        reference = ordinary.result()
        if reference.fault:
            return [Line(BITS, 1, 1, time.perf_counter() - begun, reference.fault)]
        for promise, name, future in found:
            told = future.result()
            fault = told.fault or ("" if told.bits == reference.bits else "other losses or weights")
            promises = [promise, CLOCK] if "and a clock" in name else [promise]
            for each in promises:
                tries.setdefault(each, []).append(f"{name}: {fault}" if fault else "")
        for name, fault in place.commands(reference.folder, quick, pool):
            tries.setdefault(ANSWERS, []).append(f"{name}: {fault}" if fault else "")
    seconds = (time.perf_counter() - begun) / len(tries)
    return [
        Line(promise, len(faults), sum(map(bool, faults)), seconds, "; ".join(filter(None, faults)))
        for promise, faults in tries.items()
    ]


@dataclass(frozen=True)
class Trained:
    """A training: its folder, what it computed, and what went wrong; "" if nothing did."""

    folder: Path
    bits: Any
    fault: str


class Place:
    """A folder with a small corpus; each command runs in a folder of its own below it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        draw = np.random.default_rng(1)
        words = draw.integers(0, 50_000, 50)
        ids = [np.append(words[draw.integers(0, 50, 120)], 50_256) for _ in range(80)]
        np.concatenate(ids).astype("<u2").tofile(folder / "täxt.bin")
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(CLOCKS, encoding="utf-8")

    def train(self, surrounding: Surrounding) -> Trained:
        """Train in this surrounding. A full stdout is the one fault that is told, after all is kept."""
        code, said, folder = self.run([*TRAIN, "run"], surrounding)
        wanted = errno_of_stdout(surrounding)
        run = folder / "run"
        if code != wanted or "Traceback" in said or "Error:" in said:
            return Trained(run, None, f"exit code {code}, not {wanted}: {said[-400:]}")
        absent = [name for name in FILES if not (run / name).exists()]
        if absent:
            return Trained(run, None, f"there is no {', '.join(absent)}")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        computed = [{key: row[key] for key in COMPUTED if key in row} for row in rows]
        negative = [row for row in rows if min(row.get(key, 0) for key in DURATIONS) < 0]
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        weights = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
        bits = (computed, weights, summary["dev_loss"], summary["samples"], summary["state"])
        return Trained(run, bits, f"negative durations: {negative}" if negative else "")

    def commands(self, run: Path, quick: bool, pool: ThreadPoolExecutor) -> Iterator[tuple[str, str]]:
        """(name, fault) of every command in odd surroundings: it answers with the code of an ordinary place, and what
        it prints can be printed there."""
        asked = {
            "show": (["show"], 0),
            "help": (["--help"], 0),
            "a name that is not ASCII": (["train", "ü\x1b[31m"], 2),
            "no run": (["show", "r\udc80n"], 4),
        }
        places = {"everything odd": Surrounding({**EVERYTHING_ODD}, WARNINGS)}
        if not quick:
            asked |= {
                "show": (["show", str(run)], 0),
                "generate": (["generate", str(run), "The", "--max-new-tokens", "3"], 0),
                "completion": (["completion", "bash"], 0),
                "idea": (["idea", "mïne.py"], 0),
                "explore numbers": (["explore", "numbers"], 0),
                "compare": (["compare", "baseline", "adamw_128", "--dry-run", "--corpus", "täxt.bin"], 0),
            }
            places["a jumping clock"] = Surrounding(clock=True)
        futures = [
            (f"{command} in {place}", surrounding, wanted, pool.submit(self.run, arguments, surrounding))
            for command, (arguments, wanted) in asked.items()
            for place, surrounding in places.items()
        ]
        for name, surrounding, wanted, future in futures:
            code, said, _ = future.result()
            plain = surrounding.environment.get("PYTHONIOENCODING") != "ascii" or said.isascii()
            wrong = code != wanted or "Traceback" in said or not plain or "\x1b" in said
            yield name, f"exit code {code}: {said[-400:]}" if wrong else ""

    def run(self, arguments: Sequence[str], surrounding: Surrounding) -> tuple[int, str, Path]:
        """Exit code, all that was printed, and the folder of a command."""
        self.count += 1
        folder = self.folder / f"{self.count}"
        folder.mkdir()
        (folder / "täxt.bin").symlink_to(self.folder / "täxt.bin")
        path = [str(self.folder / "site")] * surrounding.clock + [str(ROOT)]
        variables: dict[str, str | None] = {
            "HECTOGPT_CACHE": str(folder / "cache"),
            "PYTHONPATH": os.pathsep.join(path),
            "COLUMNS": "100",
        }
        environment: dict[str, str | None] = {**os.environ, **variables, **surrounding.environment}
        command = [sys.executable, *surrounding.python, "-m", "hectogpt", *arguments]
        if surrounding.streams:
            command = ["/bin/sh", "-c", f'"$@" {surrounding.streams}', "sh", *command]
        known = {name: value for name, value in environment.items() if value is not None}
        ended = subprocess.run(command, cwd=folder, env=known, capture_output=True, timeout=LIMIT, check=False)
        return ended.returncode, (ended.stdout + ended.stderr).decode("utf-8", errors="replace"), folder


def errno_of_stdout(surrounding: Surrounding) -> int:
    """The exit code of a training: 7 if its table cannot be printed."""
    return 7 if surrounding.streams.startswith(f">{FULL}") else 0
