"""Runs that several processes share, for test_parallel.py: python shared_runs.py SCENARIO FOLDER prints JSON.

This process loads torch once and forks the processes of every run, which saves seconds for each. They are real
processes that find each other through a port, as those of torchrun do.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import traceback
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
from hectogpt.training.parallel import World
from hectogpt.training.run import Run
from hectogpt.training.session import Session

Work = Callable[[Launch], Any]

leaves.BUCKET = 1 << 20  # so that the table of tokens, small here, has a bucket to itself as a large one has


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def fork(work: Callable[[], Any]) -> tuple[int, int]:
    """Do the work in a child. Returns its pid and the pipe on which its answer comes as JSON."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    code = 0
    try:
        answer = work()
        with open(writing, "w") as pipe:
            json.dump(answer, pipe)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def in_processes(count: int, work: Work, **world: Any) -> list[Any]:
    """What the work returns in each of so many processes that share a run."""
    port = free_port()
    launches = [Launch(rank, count, rank, count, "127.0.0.1", port, 0, False) for rank in range(count)]
    return answers([fork(lambda launch=launch: work(launch)) for launch in launches])


def answers(children: list[tuple[int, int]]) -> list[Any]:
    found = []
    for pid, pipe in children:
        with open(pipe) as reading:
            text = reading.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            raise RuntimeError(f"a process ended with {code}")
        found.append(json.loads(text))
    return found


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


def take_steps(run: Run, corpus: Corpus, world: World | None, folder: Path, stop: int, saved: int) -> dict[str, Any]:
    """Train from the checkpoint of step `saved` (0: from the start) to step `stop`, and save one there."""
    checkpoints = Checkpoints(folder)
    first = world is None or world.is_first
    session = Session.open(run, corpus, checkpoints.load(saved) if saved and first else None, world)
    session.wants_whole = lambda step: step == stop
    for step in session.steps():
        if step.number == stop:
            break
    if first:
        state = session.checkpoint()
        if stop < run.steps:
            checkpoints.save(state)
    weights, whole = hashlib.sha256(), world is None or world.holds_whole
    for tensor in session.model.state_dict().values() if whole else ():
        weights.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return {
        "losses": [step.loss.hex() for step in session.done],
        "norms": [step.grad_norm.hex() for step in session.done],
        "weights": weights.hexdigest() if whole else "",
        "held": held(session),
        "some": [float(p.detach().double().norm()) for p in session.model.parameters()] if first else [],
    }


def held(session: Session) -> dict[str, int]:
    """Numbers that this process holds: of the whole model and its optimizer, and of its shards."""
    shards = [] if session.sharded is None else list(session.sharded.model.parameters())
    local = [p.to_local() for p in shards]
    whole = [p for p in session.model.parameters() if not any(p is shard for shard in shards)]
    states = {
        "whole_state": session.optimizer,
        "state": None if session.sharded is None else session.sharded.optimizer,
    }
    counts = {
        name: sum(
            t.numel() for o in group.optimizers for s in o.state.values() for t in s.values() if torch.is_tensor(t)
        )
        for name, group in states.items()
        if group is not None
    }
    return {"whole": sum(p.numel() for p in whole), "shards": sum(p.numel() for p in local), **counts}


def shared(count: int, run: Run, corpus: Corpus, folder: Path, stop: int = 0, saved: int = 0, **how: Any) -> list[Any]:
    """The run to step `stop` in so many processes; 0 stands for one without a world. An answer for each process."""
    stop = stop or run.steps
    if count == 0:
        return answers([fork(lambda: take_steps(run, corpus, None, folder, stop, saved))])

    def work(launch: Launch) -> Any:
        with World(launch, 60.0, **how) as world:
            return take_steps(run, corpus, world, folder, stop, saved)

    return in_processes(count, work)


def elastic(folder: Path, steps: int, names: list[str]) -> dict[str, Any]:
    """Every recipe by 0 (no world), 1, 2 and 4 processes, and stopped and gone on with by other numbers."""
    corpus = open_corpus(str(folder))
    found: dict[str, Any] = {}
    for name in names:
        run = dropped(small(name, steps))
        take_steps(run, corpus, None, folder / "first", 1, 0)  # loads what is loaded late, once for all children
        found[name] = {str(count): shared(count, run, corpus, folder / f"{name}-{count}") for count in (0, 1, 2, 4)}
        where, at = folder / f"{name}-moved", 0
        for count, stop in ((4, steps // 4), (1, steps // 2), (2, steps - 1)):
            shared(count, run, corpus, where, stop, at)
            at = stop
        found[name]["moved"] = shared(0, run, corpus, where, 0, at)
    return found


def sharded(folder: Path, steps: int) -> dict[str, Any]:
    """Two processes that shard the weights beside one process alone, for optimizers by rows and by whole matrices.

    SOAP divides by roots that are near zero, so it makes much of the last bits: it gets gradients that are equal to the
    last bit (two leaves, no clipping), and few steps.
    """
    corpus = open_corpus(str(folder))
    found: dict[str, Any] = {}
    for name in ("baseline", "muon", "top"):
        run = dropped(small(name, steps))
        if name == "top":
            run = replace(dropped(small(name, 2, in_leaves=2)), gradient_clipping=None)
        take_steps(run, corpus, None, folder / "first", 1, 0)
        found[name] = {
            "alone": shared(0, run, corpus, folder / f"{name}-alone")[0],
            "sharded": shared(2, run, corpus, folder / f"{name}-sharded", sharded=True)[0],
        }
    gone_on = replace(dropped(small("top", 3)), gradient_clipping=None)
    shared(4, gone_on, corpus, folder / "gone-on", 1, sharded=True)
    found["gone on"] = {
        "whole": shared(4, gone_on, corpus, folder / "gone-on-whole", sharded=True),
        "stopped": shared(4, gone_on, corpus, folder / "gone-on", 0, 1, sharded=True),
    }
    again = shared(2, dropped(small("baseline", steps)), corpus, folder / "again", sharded=True, recompute=True)[0]
    found["recomputed"] = {"alone": found["baseline"]["sharded"], "sharded": again}
    return found


def grid(folder: Path, steps: int) -> dict[str, Any]:
    """Saved under one way to share the run, gone on with under another: "none", "ddp" and "fsdp", each with each."""
    corpus = open_corpus(str(folder))
    run = dropped(small("muon", steps))
    take_steps(run, corpus, None, folder / "first", 1, 0)
    ways: dict[str, tuple[int, dict[str, bool]]] = {"none": (0, {}), "ddp": (2, {}), "fsdp": (2, {"sharded": True})}
    found: dict[str, Any] = {}
    for first, (count, how) in ways.items():
        found[first] = {"whole": shared(count, run, corpus, folder / f"{first}-whole", **how)[0]}
        shared(count, run, corpus, folder / first, steps // 2, **how)
        for second, (again, so) in ways.items():
            found[first][second] = shared(again, run, corpus, folder / first, 0, steps // 2, **so)[0]
    return found


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "elastic": lambda folder: elastic(folder, 4, ["top"]),
    "sharded": lambda folder: sharded(folder, 12),
    "grid": lambda folder: grid(folder, 6),
    "hundred": lambda folder: elastic(folder, 100, ["baseline", "top"]),
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] in ("sharded", "grid"):
        import hectogpt.training.sharded  # noqa: F401  loaded once, for all children
    signal.alarm(600)
    print(json.dumps(SCENARIOS[sys.argv[1]](Path(sys.argv[2]))))
