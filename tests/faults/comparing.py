"""`compare` killed at random moments: no record is lost or made twice, and a trial goes on after its last checkpoint.

The trials' side runs in the process that is killed: what kills a trial's own process is that, and what kills the
caller ends the trial with it. Checkpoints are saved after every step instead of every ten seconds.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import forks
from promises import Line
from small_runs import Case

from hectogpt.lab import trial
from hectogpt.lab.compare import Comparison
from hectogpt.lab.plan import Arm
from hectogpt.lab.record import read_records
from hectogpt.lab.tracks import TRACKS
from hectogpt.training import autosave

STEPS, SEEDS = 25, (0, 1)
CLOCKS = ("seconds", "wall_seconds", "peak_mb")


def perform(cases: dict[str, Case], out: Path, side: Path) -> None:
    """Perform the trials that are missing; each one that is done is written to `side`, and so is each start."""
    autosave.AT_STAKE, autosave.SHARE = 0.0, 1e9
    corpus = next(iter(cases.values())).corpus
    trial.open_corpus = lambda *_, **__: corpus
    arms = [Arm(name, case.run, {}) for name, case in cases.items()]
    comparison = Comparison(arms, SEEDS, corpus, TRACKS["closed"], out)
    for missing in comparison.missing():
        steps: list[int] = []

        def on_step(step: int, loss: float, steps: list[int] = steps) -> None:
            if not steps:
                _note(side, f"began {step}")
            steps.append(step)

        comparison.add(missing, _tried(comparison.request(missing), on_step), time.perf_counter())
        _note(side, f"done {missing.arm.label} {missing.seed}")


def _note(side: Path, text: str) -> None:
    with open(side, "ab", buffering=0) as file:
        file.write(f"{text}\n".encode())


def _tried(request: dict[str, Any], on_step: Callable[[int, float], None]) -> dict[str, Any]:
    """A trial in this process."""
    result: dict[str, Any] = {}
    for message in trial.train_and_score(request):
        if "step" in message:
            on_step(message["step"], message["loss"])
        else:
            result = message
    return {"version": "proof", "commit": None, "dirty": False} | result


def records_of(out: Path) -> list[dict[str, Any]]:
    """The records without what clocks have measured, in order of arm and seed."""
    found = [{k: v for k, v in asdict(record).items() if k not in CLOCKS} for record in read_records(out)]
    return sorted(found, key=lambda record: (record["arm"], record["seed"]))


def kill_compare(cases: dict[str, Case], where: Path, expected: str, seconds: float, kills: int, seed: int) -> Any:
    """Kill a comparison at random moments until it ends, and others until there were `kills`: the number of kills, of
    trials that went on from a checkpoint, and the faults."""
    chance, done, went_on, faults = random.Random(seed), 0, 0, []
    while done < kills:
        base = Path(tempfile.mkdtemp(dir=where))
        out, side = base / "a.jsonl", base / "side"
        while True:
            delay = chance.uniform(0.02, 0.4 * seconds) if done < kills else None
            ended = forks.run(lambda: perform(cases, out, side), kill_after=delay)  # noqa: B023
            told = side.read_text().splitlines() if side.exists() else []
            kept = Counter(f"done {record.arm} {record.seed}" for record in read_records(out))
            faults += [f"lost: {line}" for line in told if line.startswith("done") and not kept[line]]
            faults += [f"twice: {line}" for line, count in kept.items() if count > 1]
            if not ended.killed:
                break
            done += 1
        if ended.code != 0:
            faults.append(f"ended with {ended.code}: {ended.said[-1500:]}")
        elif json.dumps(records_of(out)) != expected:
            faults.append("the records differ")
        faults += [f"left behind: {path.name}" for path in base.glob(".*.trials")]
        went_on += sum(line.startswith("began") and line != "began 1" for line in told)
        shutil.rmtree(base)
    return done, went_on, faults


def compare_kills(cases: dict[str, Case], where: Path, kills: int) -> Line:
    """The line of a comparison of all kinds of runs that is killed at random moments."""
    begun = time.monotonic()
    cases = {name: case.with_steps(STEPS) for name, case in cases.items()}
    alone = Path(tempfile.mkdtemp(dir=where))
    forks.value_of(lambda: perform(cases, alone / "a.jsonl", alone / "side"))
    seconds, expected = time.monotonic() - begun, json.dumps(records_of(alone / "a.jsonl"))

    def part(number: int) -> Any:
        share = kills // forks.WORKERS + (number < kills % forks.WORKERS)
        return kill_compare(cases, where, expected, seconds, share, number)

    found = forks.spread(part, range(forks.WORKERS))
    faults = [fault for _, _, some in found for fault in some]
    went_on = sum(count for _, count, _ in found)
    faults += [] if went_on else ["no trial went on from a checkpoint"]
    good = f"0 lost, {went_on} trials went on from a checkpoint"
    return forks.line("compare killed anywhere", sum(done for done, _, _ in found), faults, begun, good)
