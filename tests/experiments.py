"""A small corpus with some order in it, the smallest run over GPT-2's ids, and records that are made up: their losses
are given, and nothing is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from helpers import shrunk

from hectogpt.data import Corpus, open_corpus
from hectogpt.display import Progress
from hectogpt.hardware import physical_cores
from hectogpt.lab import trial
from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.engines import local_engine
from hectogpt.lab.engines import perform as perform_all
from hectogpt.lab.ladder import baseline
from hectogpt.lab.plan import Arm
from hectogpt.lab.record import Record
from hectogpt.lab.tracks import TRACKS
from hectogpt.lab.trial import OnStep
from hectogpt.serialization import dump
from hectogpt.training.optim import AdamW
from hectogpt.training.run import Run


def make_corpus(folder: Path) -> Corpus:
    """Token files in which the next id mostly follows from the last."""
    draw = np.random.default_rng(0)
    for split, n in (("train", 20_000), ("dev", 700), ("test", 700)):
        ids = [0]
        for noise in draw.random(n - 1):
            ids.append((7 * ids[-1] + 3) % 50 if noise < 0.8 else int(noise * 1e6) % 50)
        np.array(ids, dtype="<u2").tofile(folder / f"{split}.bin")
    return open_corpus(str(folder))


def small_run(lr: float = 1e-2) -> Run:
    """The smallest transformer over GPT-2's ids; three steps."""
    run = shrunk(baseline(), layers=1)
    return replace(run, model=replace(run.model, d_model=4, n_heads=1), optim=AdamW(lr=lr))


def run_trial(run: Run, corpus: Corpus, on_step: OnStep = lambda step, loss: None) -> dict[str, Any]:
    """What a trial in a process of its own comes to."""
    return trial.ask(trial.request_of(run, corpus, ["dev"]), on_step)


def perform(comparison: Comparison, one: Trial) -> Record:
    """Run one trial of a comparison, which nobody has run."""
    perform_all(comparison, [one], local_engine(comparison), Progress(quiet=True))
    return comparison.records.get(one.name) or comparison.failed[-1]


def small_comparison(corpus: Corpus, out: Path, *lrs: float, seeds: int = 2, test: bool = False) -> Comparison:
    arms = [Arm(f"lr {lr}", small_run(lr), {"optim.lr": lr}) for lr in lrs]
    return Comparison(arms, range(seeds), corpus, TRACKS["closed"], out, test)


# Options of `hectogpt compare` that make the baseline small: a plan of two arms.
SMALL = ["model.d_model=4", "model.n_heads=1", "model.n_layers=1"]
SMALL += ["data.batch_size=2", "data.seq_len=16", "head_dtype=float32"]


def small_command(corpus: Corpus, out: Path, *more: str, seeds: int = 1) -> list[str]:
    given = ["--corpus", corpus.name, "--threads", "1", "--out", str(out), "--seeds", str(seeds)]
    return ["baseline", *given, *more, "--sweep", *SMALL, "optim.lr=1e-5,1e-2"]


# --- records that are made up -----------------------------------------------------------------------------------------


def numbered_arms(n: int) -> list[Arm]:
    """Arms "lr 1", "lr 2", ... of the smallest run."""
    return [Arm(f"lr {lr}", small_run(float(lr)), {"optim.lr": float(lr)}) for lr in range(1, n + 1)]


def record_of(corpus: Corpus, arm: Arm, seed: int, loss: float, **more: Any) -> Record:
    """A trial's record. An arm's trials take 10 s and 400 MiB, and 10 % more for each letter of its label."""
    size = 1 + len(arm.label) / 10
    fields: dict[str, Any] = {"dev_loss": loss, "seconds": 10 * size, "peak_mb": 400 * size, "params": 1_000_000}
    fields |= {
        "wall_seconds": 11 * size,
        "ngram_split": "dev",
        "ngram_unigram": 6.4,
        "ngram_kn3": 4.9,
        "arm": arm.label,
    }
    run = dump(replace(arm.run, seed=seed, threads=arm.run.threads or min(2, physical_cores())))
    return Record("tiny", "closed", arm.run.recipe, seed, run, corpus.sha256, **(fields | more))
