"""A small corpus with some order in it, and the smallest run over GPT-2's ids, for tests of experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt.data import Corpus, open_corpus
from hectogpt.lab import recipes, trial
from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.engines import local_engine, run_trials
from hectogpt.lab.plan import Arm
from hectogpt.lab.record import Record
from hectogpt.lab.tracks import TRACKS, Scoring
from hectogpt.lab.trial import OnStep
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
    base = recipes.baseline()
    return replace(
        base,
        model=replace(base.model, d_model=4, n_heads=1, n_layers=1, context_length=16),
        data=replace(base.data, batch_size=2, seq_len=16),
        optim=AdamW(lr=lr),
        head_dtype="float32",
        steps=3,
        device="cpu",
        threads=1,
    )


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
    (record,) = [news.record for news in run_trials(comparison, [one], local_engine(comparison)) if news.record]
    return record


def small_arms(*lrs: float) -> list[Arm]:
    return [Arm(f"lr {lr}", small_run(lr), {"optim.lr": lr}) for lr in lrs]


def small_comparison(corpus: Corpus, out: Path, *lrs: float, seeds: int = 2, test: bool = False) -> Comparison:
    return Comparison(small_arms(*lrs), range(seeds), corpus, TRACKS["closed"], out, test)


# Options of `hectogpt compare` that make the baseline small: a plan of two arms.
SMALL = ["model.d_model=4", "model.n_heads=1", "model.n_layers=1"]
SMALL += ["data.batch_size=2", "data.seq_len=16", "head_dtype=float32"]


def small_command(corpus: Corpus, out: Path, *more: str) -> list[str]:
    given = ["--corpus", corpus.name, "--threads", "1", "--out", str(out), "--seeds", "1"]
    return ["baseline", *given, *more, "--sweep", *SMALL, "optim.lr=1e-5,1e-2"]
