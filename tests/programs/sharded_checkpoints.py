"""Checkpoints that the processes of a sharded run save in parts, for test_sharded_checkpoint.py: python
sharded_checkpoints.py SCENARIO FOLDER prints JSON. The processes are forked as those of shared_runs.py."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from shared_faults import SIZES, command
from shared_runs import answers, dropped, fork, in_processes, small
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from hectogpt.data import Corpus, open_corpus
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.launch import Launch
from hectogpt.training.parallel import World
from hectogpt.training.run import Run
from hectogpt.training.session import Session
from hectogpt.training.sharded_checkpoint import save_parts
from hectogpt.training.state import State


def take_steps(
    run: Run, corpus: Corpus, world: World | None, folder: Path, stop: int, saved: int = 0, limit: float | None = None
) -> dict[str, Any]:
    """Train from the checkpoint of step `saved` to step `stop`, and save one there: in parts if the state has more than
    `limit` bytes. None: of one file."""
    checkpoints, first = Checkpoints(folder), world is None or world.is_first
    forms = world is not None and world.sharded
    session = Session.open(run, corpus, checkpoints.load(saved, forms) if saved and first else None, world)
    if session.sharded is not None and world is not None and limit is not None:
        world.shard_above = limit
        session.sharded.see_folder(folder.parent if first else None)
    kept = [t for o in session.optimizer.optimizers for state in o.state.values() for t in state.values()]
    read = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept if torch.is_tensor(t)}
    session.wants_whole = lambda step: step == stop
    for step in session.steps():
        if step.number == stop:
            break
    if session.in_parts:
        save_parts(session, checkpoints if first else None)
    elif first:
        checkpoints.save(session.checkpoint())
    return {
        "losses": [step.loss.hex() for step in session.done],
        "norms": [step.grad_norm.hex() for step in session.done],
        "read": sum(read.values()),
        "files": sorted(path.name for path in checkpoints.path(stop).iterdir()) if first else [],
        "state": content_of(checkpoints.load(stop)) if first else None,
    }


def content_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """All that a checkpoint holds but for where and when it was made: name -> hash."""
    tensors = checkpoint.state.tensors | {"history": checkpoint.history[:, [0, 1, 2, 4, 5]]}
    found = {}
    for name, tensor in tensors.items():
        content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        found[name] = f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(content).hexdigest()}"
    return found | {"values": json.dumps(checkpoint.state.values)}


def read_by_torch(folder: Path) -> dict[str, str]:
    """The tensors of a checkpoint as torch's own reader has them: name -> hash."""
    described = json.loads((folder / "manifest.json").read_text())["tensors"]
    tensors = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in described.items()}
    load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return content_of(Checkpoint(0, State(tensors, {}), tensors.pop("history"), {}))


def shared(count: int, run: Run, corpus: Corpus, folder: Path, stop: int, saved: int = 0, **how: Any) -> list[Any]:
    """The run to step `stop` in so many processes; 0 stands for one without a world."""
    limit = how.pop("limit", None)
    if count == 0:
        return answers([fork(lambda: take_steps(run, corpus, None, folder, stop, saved))])

    def work(launch: Launch) -> Any:
        with World(launch, 60.0, **how) as world:
            return take_steps(run, corpus, world, folder, stop, saved, limit)

    return in_processes(count, work)


def parts(folder: Path) -> dict[str, Any]:
    """Two processes; one file, and parts of it, of the same moment; gone on with by two."""
    corpus, run = open_corpus(str(folder)), dropped(small("muon", 3))
    take_steps(run, corpus, None, folder / "first", 1)
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    one = shared(2, run, corpus, folder / "a" / "checkpoints", 2, sharded=True)
    several = shared(2, run, corpus, folder / "b" / "checkpoints", 2, sharded=True, limit=0)
    torch_reads = answers([fork(lambda: read_by_torch(folder / "b" / "checkpoints" / "step-00000002"))])[0]
    gone_on = shared(2, run, corpus, folder / "b" / "checkpoints", 3, 2, sharded=True, limit=0)
    whole = shared(2, run, corpus, folder / "a" / "checkpoints", 3, sharded=True)
    return {"one": one, "several": several, "gone on": gone_on, "whole": whole, "torch": torch_reads}


def grid(folder: Path) -> dict[str, Any]:
    """Saved in parts by two processes, gone on with under every way to share the run, beside one file of the moment;
    then from four processes to two, to one."""
    corpus, run = open_corpus(str(folder)), dropped(small("muon", 4))
    take_steps(run, corpus, None, folder / "first", 1)
    found: dict[str, Any] = {}
    for kind, limit in (("parts", 0.0), ("file", None)):
        where = folder / kind
        where.mkdir()
        shared(2, run, corpus, where / "checkpoints", 2, sharded=True, limit=limit)
        ways: dict[str, tuple[int, dict[str, Any]]] = {"none": (0, {}), "ddp": (2, {}), "fsdp": (2, {"sharded": True})}
        found[kind] = {}
        for name, (count, how) in ways.items():
            shutil.copytree(where, folder / f"{kind}-{name}")
            found[kind][name] = shared(count, run, corpus, folder / f"{kind}-{name}" / "checkpoints", 4, 2, **how)[0]
        for count, stop in ((4, 1), (2, 2), (1, 3)):
            at = folder / f"{kind}-moved" / "checkpoints"
            at.parent.mkdir(exist_ok=True)
            told = shared(count, run, corpus, at, stop, stop - 1, sharded=True, limit=limit)
            found[kind][f"{count} processes"] = told[0]
    return found


def kinds(folder: Path) -> dict[str, Any]:
    """One file, and parts, of the same moment: AdamW, and SOAP before Muon with lookup tables."""
    corpus = open_corpus(str(folder))
    runs = {name: dropped(small(name, 3)) for name in ("baseline", "top")}
    runs["tied"] = tied(small("baseline", 3))
    found: dict[str, Any] = {}
    for name, run in runs.items():
        take_steps(run, corpus, None, folder / "first", 1)
        for kind, limit in (("parts", 0.0), ("file", None)):
            where = folder / f"{name}-{kind}"
            where.mkdir()
            found[f"{name} {kind}"] = shared(4, run, corpus, where / "checkpoints", 2, sharded=True, limit=limit)[0]
    return found


def tied(run: Run) -> Run:
    """With the embeddings as the head's matrix."""
    return replace(run, model=replace(run.model, lm_head=replace(run.model.lm_head, tied=True)))


def faults(folder: Path) -> dict[str, Any]:
    """The whole command in two processes, one of which meets a fault while checkpoints are saved in parts."""
    corpus, run = open_corpus(str(folder)), small("baseline", 2)
    take_steps(run, corpus, None, folder / "first", 1)
    os.chdir(folder)
    Path("disk").mkdir()
    shutil.copy(Path(__file__).with_name("saving_fault.py"), folder)
    argv = ["train", "saving_fault.py:same@baseline", *SIZES, "--corpus", str(folder), "--save-every", "1", "--quiet"]
    argv += ["--parallel", "fsdp", "--shard-checkpoints-above", "0"]
    above = ["--shard-checkpoints-above", "1"]
    found: dict[str, Any] = {"whole": command(folder, "whole", 2, [*argv, "--out", "whole"])}
    for name, fault in (
        ("killed", "killed 1 3"),
        ("late", "late 0 3"),
        ("hung", "hung 1 3"),
        ("full", "full 1 2"),
        ("stopped", "stopped 1 2"),
        ("ended", "ended 1 2"),
    ):
        own = [argument for argument in argv if argument != "--quiet" or name != "full"]
        timeout = ["--dist-timeout", "3" if name == "hung" else "60"]
        found[name] = command(folder, name, 2, [*own, "--out", name, *timeout], FAULT=fault)
    seen = [*argv, "--out", "disk/seen"]
    command(folder, "seen", 2, seen, FAULT="stopped 1 2")
    found["unseen again"] = command(folder, "unseen", 2, [*argv, *above, "--resume", "disk/seen"], FAULT="blind 1 0")
    for name in ("killed", "late", "stopped"):
        again = [*argv, "--resume", name]
        found[f"{name} again"] = command(folder, name, 2, again)
    found["blind"] = command(folder, "blind", 2, [*argv, "--out", "disk/run"], FAULT="blind 1 0")
    found["below"] = command(folder, "below", 2, [*argv, *above, "--out", "disk/below"], FAULT="blind 1 0")
    found["weights"] = {
        name: hashlib.sha256(Path(name, "model.safetensors").read_bytes()).hexdigest()
        for name in ("whole", "killed", "late", "full", "stopped", "disk/below", "disk/seen")
    }
    return found


SCENARIOS: dict[str, Callable[[Path], Any]] = {"parts": parts, "grid": grid, "kinds": kinds, "faults": faults}

if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.alarm(600)
    print(json.dumps(SCENARIOS[sys.argv[1]](Path(sys.argv[2]))))
