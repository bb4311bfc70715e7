"""A small corpus with some order in it, the smallest run over GPT-2's ids, and comparisons whose records are made up:
their losses and curves are given, and nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from hectogpt.lab.mixing import Scoring
from hectogpt.lab.plan import Arm
from hectogpt.lab.record import Record, append_record
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


def run_trial(
    run: Run,
    corpus: Corpus,
    splits: Sequence[str] = ("dev",),
    on_step: OnStep = lambda step, loss: None,
    scoring: Scoring = "alone",
) -> dict[str, Any]:
    """What a trial in a process of its own comes to."""
    return trial.ask(trial.request_of(run, corpus, splits, scoring), on_step)


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


def small_command(corpus: Corpus, out: Path, *more: str) -> list[str]:
    given = ["--corpus", corpus.name, "--threads", "1", "--out", str(out), "--seeds", "1"]
    return ["baseline", *given, *more, "--sweep", *SMALL, "optim.lr=1e-5,1e-2"]


# --- comparisons whose records are made up ----------------------------------------------------------------------------


def numbered_arms(n: int) -> list[Arm]:
    """Arms "lr 1", "lr 2", ... of the smallest run."""
    return [Arm(f"lr {lr}", small_run(float(lr)), {"optim.lr": float(lr)}) for lr in range(1, n + 1)]


def make_up(
    corpus: Corpus, out: Path, arms: Sequence[Arm], losses: Mapping[str, Sequence[float]], **more: Any
) -> Comparison:
    """A comparison with a record for each loss: arm's label -> dev loss of each seed. more: fields of all records.

    Curves fall from 10.8 to the loss in 100 steps.
    """
    for arm in arms:
        for seed, loss in enumerate(losses.get(arm.label, [])):
            append_record(out, record_of(corpus, arm, seed, loss, **more))
    seeds = max(len(values) for values in losses.values())
    comparison = Comparison(arms, range(seeds), corpus, TRACKS["closed"], out)
    comparison.missing()
    return comparison


def record_of(corpus: Corpus, arm: Arm, seed: int, loss: float, **more: Any) -> Record:
    """A trial's record. An arm's trials take 10 s and 400 MiB, and 10 % more for each letter of its label."""
    draw, steps = np.random.default_rng([seed, len(arm.label)]), np.arange(1, 101)
    curve = loss + (10.8 - loss) * np.exp(-steps / 18) + draw.normal(0, 0.03, 100)
    size = 1 + len(arm.label) / 10
    fields: dict[str, Any] = {"dev_loss": loss, "seconds": 10 * size, "peak_mb": 400 * size, "params": 1_000_000}
    fields |= {"wall_seconds": 11 * size, "ngram_unigram": 6.4, "ngram_kn3": 4.9, "arm": arm.label}
    fields |= {"losses": [round(float(value), 4) for value in curve]}
    run = dump(replace(arm.run, seed=seed, threads=arm.run.threads or min(2, physical_cores())))
    return Record("tiny", "closed", arm.run.recipe, seed, run, corpus.sha256, **(fields | more))
