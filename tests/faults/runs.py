"""Small training runs, driven as `hectogpt train` drives its own, and how they are judged. A step takes milliseconds.

Three kinds, because they keep different state: "plain" (the baseline, AdamW), "idea" (a user's file with dropout, an
optimizer and an input part of its own), "top" (SOAP before Muon, tables, the shared row).

A run is broken in some way, or in several one after another, and then goes on to its end, with the bits of a run that
nobody disturbed: `Undisturbed.faults`.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import forks
import numpy as np
import torch

from hectogpt.cli.check import verify_run
from hectogpt.data import Corpus, Tokenizer
from hectogpt.display import Progress
from hectogpt.errors import UserError
from hectogpt.lab import ideas, recipes
from hectogpt.lab.full_run import Plan, open_run, run_and_score, train_in_folder
from hectogpt.model.inputs import NgramHash
from hectogpt.model.weights import hash_weights
from hectogpt.run_records import CHECKPOINTS, METRICS, RUN, SUMMARY, Habits, read_record
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.run import Data, LinearDecay, Run
from hectogpt.training.session import Session

CLOCKS = ("train/dt", "train/tok_per_sec", "mem_mb")
SECONDS = 3  # the column of a checkpoint's history that a clock fills
MERGES = "t h\nth e\ni n\na n\n"

IDEA = '''
from dataclasses import dataclass

import torch
from torch import nn

from hectogpt import InputPart, Optim, OptimizerGroup, replace


@dataclass(frozen=True)
class Noise(InputPart):
    def build(self, d_model, vocab_size, norm):
        return NoiseLayer(0.1)


class NoiseLayer(nn.Dropout):
    def forward(self, x, ids, cache=None):
        return super().forward(x)


class Momentum(torch.optim.Optimizer):
    """Keeps state of every kind that can be saved: tensors of two dtypes, a count, a list, nested values."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr, "best": float("inf")})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["best"] = min(group["best"], group["lr"])
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("low", (torch.zeros_like(p, dtype=torch.bfloat16), {"seen": [True, None, "up"]}))
                state["low"][0].add_(p.grad.bfloat16())
                state.setdefault("mean", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                state["steps"] = state.get("steps", 0) + 1
                state["norms"] = [*state.get("norms", [])[-3:], float(p.grad.norm())]
                size = sum(state["norms"]) / len(state["norms"]) + 1e-6
                mean = state["mean"] + 0.001 * state["low"][0].float()
                p.sub_(mean / (1 - 0.9 ** state["steps"]) / size, alpha=group["lr"])


@dataclass(frozen=True)
class OwnMomentum(Optim):
    lr: float = 0.01

    def build(self, model):
        return OptimizerGroup([Momentum(model.parameters(), self.lr)])


def idea(run):
    model = replace(run.model, inputs=(*run.model.inputs, Noise()))
    return replace(run, model=model, optim=OwnMomentum())
'''


@contextmanager
def place(steps: int = 30, warm: Sequence[str] = ()) -> Iterator[tuple[Path, dict[str, Run]]]:
    """A folder in memory if there is one, since waiting for a disk would be most of the time, and the kinds of runs by
    name. The package's cache lies in it from now on. warm: kinds that are trained once, so that children find loaded
    what is loaded on first use."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="hectogpt-faults-", dir=memory if os.access(memory, os.W_OK) else None))
    os.environ["HECTOGPT_CACHE"] = str(folder / "cache")
    try:
        cases = make_cases(folder, steps)
        for name in warm:
            train(replace(cases[name], steps=2), folder / "warm" / name)
        gc.collect()
        gc.freeze()  # a collection in a child would copy the pages of all these objects
        yield folder, cases
    finally:
        shutil.rmtree(folder)


@cache
def small_corpus() -> Corpus:
    """Sentences of a few words, in a vocabulary of 261 ids."""
    tokenizer = Tokenizer(MERGES.encode(), "small")
    generator = np.random.default_rng(0)
    words = ["the", "thin", "ant", "in", "an", "inn", "that", "hid", "a", "hat"]
    tokens = {}
    for split, sentences in (("train", 800), ("dev", 40), ("test", 40)):
        lines = [" ".join(generator.choice(words, generator.integers(3, 9))) + "." for _ in range(sentences)]
        ids = [np.append(tokenizer.encode(line), tokenizer.end_of_text) for line in lines]
        tokens[split] = np.concatenate(ids).astype(np.uint16)
    return Corpus(
        name="small",
        tokens=tokens,
        sha256={split: hashlib.sha256(ids.tobytes()).hexdigest() for split, ids in tokens.items()},
        n_documents={"train": 800, "dev": 40, "test": 40},
        tokenizer=tokenizer,
        folder=Path("small"),
    )


def make_cases(folder: Path, steps: int = 30) -> dict[str, Run]:
    """The three kinds of runs by name. The user's file is written to `folder`."""
    file = folder / "proof_idea.py"
    file.write_text(IDEA, encoding="utf-8")
    plain = replace(recipes.recipe("baseline"), schedule=LinearDecay(warmup=3))
    runs = {"plain": plain, "idea": ideas.find_run(f"{file}:idea@baseline"), "top": recipes.recipe("top")}
    return {name: _shrunk(run, small_corpus(), steps) for name, run in runs.items()}


def _shrunk(run: Run, corpus: Corpus, steps: int) -> Run:
    inputs = tuple(replace(part, rows=512) if isinstance(part, NgramHash) else part for part in run.model.inputs)
    sizes = dict[str, Any](d_model=16, n_heads=2, n_layers=1, context_length=64, vocab_size=corpus.n_vocab)
    start = run.model.document_start and corpus.tokenizer.end_of_text
    machine = dict[str, Any](threads=1, device="cpu", dtype="float32", head_dtype="float32")
    return replace(
        run,
        model=replace(run.model, inputs=inputs, document_start=start, **sizes),
        data=Data(batch_size=4, seq_len=64, leaves=2),
        corpus=corpus.name,
        steps=steps,
        **machine,
    )


def train(run: Run, folder: Path, save_every: int | None = 1) -> None:
    """Begin the run in `folder`, or resume it if it is not complete; to the end, scores and picture included."""
    if (folder / RUN).exists() and read_record(folder).is_complete:
        return
    run_and_score(plan_of(run, folder, save_every), small_corpus(), Progress(quiet=False, lines=1))


def plan_of(run: Run, folder: Path | None, save_every: int | None = 1, anew: bool = False) -> Plan:
    """The run in a folder, which is begun, or resumed if it is there and not to be begun anew."""
    there = folder is not None and (folder / RUN).exists() and not anew
    return Plan(run, Habits(folder, save_every), "run", resume=folder if there else None)


def train_unscored(
    run: Run, folder: Path | None, save_every: int | None = 1, anew: bool = False
) -> tuple[float, float]:
    """Train without scoring, which takes as long as sixty steps; return the times at which training began and ended."""
    progress = Progress(quiet=False, lines=1)
    with open_run(plan_of(run, folder, save_every, anew), small_corpus(), progress) as opened:
        since = time.monotonic()
        train_in_folder(opened, progress)
        return since, time.monotonic()


# --- a run that nobody disturbed, and others --------------------------------------------------------------------------

# Breaks the run in a folder, which the second argument trains in a child; what is wrong with how that ended, in words.
Breakage = Callable[[Path, Callable[[], None]], list[str]]
Train = Callable[[Run, Path], object]


class Undisturbed:
    """A run as it is if nobody disturbs it: what it leaves, what each of its checkpoints holds, how long it takes."""

    def __init__(self, planned: Run, where: Path, train: Train = train) -> None:
        """Raises RuntimeError if the run does not come to its end."""
        self.planned, self.where, self.train = planned, where, train
        folder, begun = self.new_folder(), time.monotonic()
        forks.value_of(lambda: train(planned, folder))
        self.seconds, self.signature = time.monotonic() - begun, signature(folder)
        shutil.rmtree(folder.parent)
        session = Session.open(planned, small_corpus())
        self.contents = dict[int, str]()
        for step in session.steps():
            session.hashes[step.number] = hash_weights(session.model)
            self.contents[step.number] = content_of(session.checkpoint())

    def new_folder(self) -> Path:
        """A place for another run: the folder `run` in an empty one."""
        self.where.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self.where)) / "run"

    def faults(self, *breakages: Breakage, folder: Path | None = None, ignore: Sequence[str] = ()) -> list[str]:
        """Break a run in these ways, then let it go on to its end; what is wrong, in words.

        folder: the run's, if not a new one. ignore: parts of its signature.
        """
        side = self.new_folder().with_name("saved")
        folder = folder or side.with_name("run")

        def train() -> None:
            acknowledge_saves(side)
            self.train(self.planned, folder)

        faults = []
        for breakage in breakages:
            faults += breakage(folder, train) + self.lost(folder, side) + damage_in(folder, "its hashes are lost")
        faults += self.faults_at_end(forks.run(lambda: self.train(self.planned, folder)), folder, ignore)
        shutil.rmtree(side.parent)
        return faults

    def lost(self, folder: Path, side: Path) -> list[str]:
        """What is wrong with the checkpoints in a folder: steps that were reported as saved are lost, or one with its
        final name is half or holds something else."""
        checkpoints, faults = Checkpoints(folder / CHECKPOINTS), list[str]()
        for step in checkpoints.steps():
            if problem := checkpoints.problem(step):
                faults.append(f"half a checkpoint: {problem}")
            elif content_of(checkpoints.load(step)) != self.contents[step]:
                faults.append(f"the checkpoint of step {step} holds something else")
        told, newest = max(map(int, side.read_text().split())) if side.exists() else 0, newest_step(folder)
        lost = f"lost: step {told} was reported as saved, the newest whole one is {newest}"
        return faults + ([lost] if newest < told else [])

    def faults_at_end(self, ended: forks.Ended, folder: Path, ignore: Sequence[str] = ()) -> list[str]:
        """What is wrong with a run that was left to end, in words."""
        if ended.code != 0:
            return [f"going on failed with {ended.code}: {ended.said[-2000:]}"]
        try:
            found = signature(folder)
        except (UserError, OSError, ValueError) as error:
            return [f"what it left cannot be read: {error}"]
        faults = [f"{name} differs" for name in self.signature if found[name] != self.signature[name]]
        faults += damage_in(folder)
        left = [path.name for path in folder.rglob(".*") if path.name != ".lock"]
        faults += [f"left behind: {', '.join(left)}"] if left else []
        return [fault for fault in faults if fault.removesuffix(" differs") not in ignore]


def damage_in(folder: Path, allowed: str = "none") -> list[str]:
    """What `hectogpt check` says of a run's folder, of which only `allowed` may be said."""
    found = verify_run(folder) if (folder / RUN).exists() else {}
    return [f"check: {path}: {why}" for path, why in found.items() if why and not why.startswith(allowed)]


def acknowledge_saves(side: Path) -> None:
    """From now on, in this process, a step whose checkpoint is reported as saved is written to `side`: what a user may
    rely on."""
    save = Checkpoints.save

    def saved(self: Checkpoints, checkpoint: Checkpoint) -> None:
        save(self, checkpoint)
        with open(side, "ab", buffering=0) as file:
            file.write(b"%d\n" % checkpoint.step)

    Checkpoints.save = saved


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint that is whole, 0 if there is none."""
    found = Checkpoints(folder / CHECKPOINTS)
    return max((step for step in found.steps() if not found.problem(step)), default=0)


def content_of(checkpoint: Checkpoint) -> str:
    """SHA-256 of all that a checkpoint holds, what clocks have measured aside."""
    found = hashlib.sha256(json.dumps([checkpoint.step, checkpoint.values], sort_keys=True).encode())
    history = checkpoint.tensors["history"].clone()
    history[:, SECONDS] = 0
    for name, tensor in sorted((checkpoint.tensors | {"history": history}).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def signature(folder: Path) -> dict[str, Any]:
    """What must be equal in two runs of the same: weights, metrics, scores, steps that have checkpoints."""
    weights, summary = folder / "model.safetensors", folder / SUMMARY
    told = json.loads(summary.read_text()) if summary.exists() else {}
    return {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else "",
        "steps": Checkpoints(folder / CHECKPOINTS).steps(),
        "metrics": rows_of(folder),
        "scores": [told.get(name) for name in ("dev_loss", "dev_bpb", "train_loss_last10", "samples", "state")],
    }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what clocks have measured. Raises ValueError for a damaged one."""
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]
