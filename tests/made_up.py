"""Comparisons whose records are made up: their losses and curves are given, and nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from experiments import small_run

from hectogpt.data import Corpus
from hectogpt.hardware import physical_cores
from hectogpt.lab.compare import Comparison
from hectogpt.lab.plan import Arm
from hectogpt.lab.record import Record, append_record
from hectogpt.lab.tracks import TRACKS
from hectogpt.serialization import dump


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
