"""Runs that several processes share, for test_parallel.py: python shared_runs.py SCENARIO FOLDER prints JSON.

This process loads torch once and forks the processes of every run, which saves seconds for each. They are real
processes that find each other through a port, as those of torchrun do.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hectogpt.data import Corpus, open_corpus
from hectogpt.lab import recipes
from hectogpt.model.inputs import NgramHash
from hectogpt.training import leaves
from hectogpt.training.checkpoint import Checkpoints
from hectogpt.training.launch import Launch
from hectogpt.training.parallel import ALONE, Alone, World
from hectogpt.training.run import Run
from hectogpt.training.session import Session

Work = Callable[[Launch], Any]

leaves.BUCKET = 1 << 20  # so that the table of tokens, small here, has a bucket to itself as a large one has


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def in_processes(count: int, work: Work) -> list[Any]:
    """What the work returns in each of so many forked processes that share a run."""
    port = free_port()
    launches = [Launch(rank, count, rank, count, "127.0.0.1", port, 0, False) for rank in range(count)]
    return answers([lambda launch=launch: work(launch) for launch in launches])


def answers(works: list[Callable[[], Any]]) -> list[Any]:
    """What each of these returns in a process of its own. Raises EOFError for one that fails."""
    fork, pipes = multiprocessing.get_context("fork"), []
    for work in works:
        reading, writing = fork.Pipe(duplex=False)
        fork.Process(target=lambda: writing.send(work())).start()  # noqa: B023  it is forked at once
        writing.close()
        pipes.append(reading)
    return [pipe.recv() for pipe in pipes]


# --- what runs -------------------------------------------------------------------------------------------------------


def small(name: str, steps: int, in_leaves: int | None = 4) -> Run:
    """A recipe of the ladder with all its parts at a small size."""
    whole = recipes.recipe(name)
    inputs = tuple(replace(p, rows=200) if isinstance(p, NgramHash) else p for p in whole.model.inputs)
    model = replace(whole.model, d_model=12, n_heads=2, n_layers=2, context_length=16, inputs=inputs)
    data = replace(whole.data, batch_size=8, seq_len=16, leaves=in_leaves)
    more = {"steps": steps, "threads": 1, "device": "cpu", "dtype": "float32", "head_dtype": "float32"}
    return replace(whole, model=replace(model, vocab_size=50257), data=data, **more)


def dropped(run: Run) -> Run:
    """With dropout, a user's own part, so that chance has to be the same as well."""
    from parts_for_tests import Drop

    return replace(run, model=replace(run.model, inputs=(*run.model.inputs, Drop())))


def take_steps(run: Run, corpus: Corpus, world: World | Alone, folder: Path, stop: int, saved: int) -> dict[str, Any]:
    """Train from the checkpoint of step `saved` (0: from the start) to step `stop`, and save one there."""
    checkpoints = Checkpoints(folder)
    first = world.is_first
    session = Session.open(run, corpus, checkpoints.load(saved) if saved and first else None, world)
    for step in session.steps():
        if step.number == stop:
            break
    if first and stop < run.steps:
        checkpoints.save(session.checkpoint())
    weights = hashlib.sha256()
    for tensor in session.model.state_dict().values():
        weights.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return {
        "losses": [step.loss.hex() for step in session.done],
        "norms": [step.grad_norm.hex() for step in session.done],
        "weights": weights.hexdigest(),
    }


def shared(count: int, run: Run, corpus: Corpus, folder: Path, stop: int = 0, saved: int = 0) -> list[Any]:
    """The run to step `stop` in so many processes; 0 stands for one without a world. An answer for each process."""
    stop = stop or run.steps
    if count == 0:
        return answers([lambda: take_steps(run, corpus, ALONE, folder, stop, saved)])

    def work(launch: Launch) -> Any:
        with World(launch, 60.0) as world:
            return take_steps(run, corpus, world, folder, stop, saved)

    return in_processes(count, work)


def elastic(folder: Path, steps: int, names: list[str]) -> dict[str, Any]:
    """Every recipe by 0 (no world), 1, 2 and 4 processes, and stopped and gone on with by other numbers."""
    corpus = open_corpus(str(folder))
    found: dict[str, Any] = {}
    for name in names:
        run = dropped(small(name, steps))
        take_steps(run, corpus, ALONE, folder / "first", 1, 0)  # loads what is loaded late, once for all children
        found[name] = {str(count): shared(count, run, corpus, folder / f"{name}-{count}") for count in (0, 1, 2, 4)}
        where, at = folder / f"{name}-moved", 0
        for count, stop in ((4, steps // 4), (1, steps // 2), (2, steps - 1)):
            shared(count, run, corpus, where, stop, at)
            at = stop
        found[name]["moved"] = shared(0, run, corpus, where, 0, at)
    return found


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "elastic": lambda folder: elastic(folder, 4, ["top"]),
    "hundred": lambda folder: elastic(folder, 100, ["baseline", "top"]),
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.alarm(600)
    print(json.dumps(SCENARIOS[sys.argv[1]](Path(sys.argv[2]))))
