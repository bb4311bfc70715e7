"""Invented records of a small ladder, and a report with everything that can occur, for the tests of the report."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hectogpt.lab import recipes
from hectogpt.lab.record import Record
from hectogpt.serialization import dump
from hectogpt.training.optim import AdamW
from hectogpt.training.run import Run
from hectogpt.training.schedules import LinearDecay
from tools.report import TEMPLATE, write_report
from tools.report.leaderboard import Leaderboard, build_leaderboards

WIDTH = "width_128_shared_row"
NAMES = ["baseline", "learning_rate", "schedule", WIDTH]
OTHERS = [name for name in recipes.names() if name not in NAMES]  # the committed text names some of them
DESCRIPTIONS = {name: f"What {name} does.\n\nWhy {name} works." for name in [*NAMES, *OTHERS]}
ROOT = Path(__file__).resolve().parent.parent
ANSWERS = ROOT / "answers"
LADDER = ROOT / "results" / "ladder.jsonl"
LEVELS = {"baseline": 10.8, "learning_rate": 6.0, "schedule": 5.7, WIDTH: 5.695}

Row = dict[str, Any]


@functools.cache
def runs() -> dict[str, Run]:
    """A small ladder: each rung changes one section of the run before."""
    found = [replace(recipes.baseline(), steps=20)]
    found.append(replace(found[-1], optim=AdamW(lr=1e-3)))
    found.append(replace(found[-1], schedule=LinearDecay(warmup=2)))
    found.append(replace(found[-1], model=replace(found[-1].model, d_model=36)))
    return {name: replace(run, recipe=name) for name, run in zip(NAMES, found, strict=True)}


def make_row(name: str, seed: int, *, tested: bool = True, corpus: str = "tinystories", **changes: Any) -> Row:
    """What `compare` writes, with invented but reproducible losses."""
    draw = np.random.default_rng([seed, sum(map(ord, name))])
    dev = LEVELS.get(name, 5.5) + 0.01 * draw.standard_normal()
    curve = dev + (10.83 - dev) * np.exp(-np.arange(20) / 4) + 0.05 * draw.standard_normal(20)
    row = {
        "corpus": corpus,
        "corpus_sha256": {"train": "a", "dev": "b", "test": "c"},
        "track": "closed",
        "recipe": name,
        "arm": name,
        "modified": False,
        "overrides": {},
        "seed": seed,
        "status": "ok",
        "error": None,
        "params": 3_374_415,
        "train_loss_last": float(curve[-1]),
        "train_loss_last10": float(curve[-10:].mean()),
        "dev_loss": dev,
        "dev_bpb": dev / 4 / math.log(2),
        "test_loss": dev + 0.1 if tested else None,
        "test_bpb": (dev + 0.1) / 4 / math.log(2) if tested else None,
        "ngram_split": "test" if tested else "dev",
        "ngram_uniform": 10.825,
        "ngram_unigram": 5.88 + seed / 1000,
        "ngram_kn2": 3.76,
        "ngram_kn3": 3.33,
        "ngram_kn5": 3.25,
        "ngram_mkn5": 3.21,
        "ngram_best": 2.95,
        "rules_broken": [],
        "seconds": 100.0 + seed,
        "peak_mb": 900.0,
        "run": dump(replace(runs().get(name, runs()[WIDTH]), recipe=name, seed=seed)),
        "losses": [float(f"{x:.5g}") for x in curve],
        "grad_norms": [float(f"{x:.5g}") for x in np.exp(draw.standard_normal(20) / 9)],
    }
    return row | changes


def crash(row: Row) -> Row:
    """The row of the same trial if its process had crashed."""
    scores = ("train_loss_last", "train_loss_last10", "dev_loss", "dev_bpb", "test_loss", "test_bpb", "params")
    return row | dict.fromkeys(scores) | {"status": "failed", "error": "SIGKILL", "losses": [], "grad_norms": []}


def make_rows(seeds: int = 3) -> list[Row]:
    return [make_row(name, seed) for seed in range(seeds) for name in NAMES]


def boards_of(rows: Sequence[Row]) -> list[Leaderboard]:
    return build_leaderboards([Record(**row) for row in rows], NAMES)


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_all(rows: Path, folder: Path) -> list[Path]:
    """The report of a file of records, with a written answer from the committed template."""
    (folder / "answers").mkdir(exist_ok=True)
    shutil.copy(ANSWERS / TEMPLATE, folder / "answers")
    return write_report(rows, folder / "results", folder / "answers", NAMES, DESCRIPTIONS)


_made: list[Path] = []


def whole_report(factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of everything that can occur: l.jsonl, results/, answers/. Made once a session."""
    if not _made:
        _made.append(_make_whole_report(factory.mktemp("report")))
    return _made[0]


def _make_whole_report(folder: Path) -> Path:
    rows = make_rows()
    for seed in range(2):
        less = dump(recipes.without("learning_rate", WIDTH))
        rows.append(make_row("without-learning_rate", seed, dev_loss=6.1, test_loss=6.2, run=less))
        rows.append(make_row("without-schedule", seed))
        rows.append(make_row("published", seed))
        rows.append(make_row(WIDTH, seed, overrides={"steps": 30}, modified=True, tested=False))
        rows.append(make_row(WIDTH, seed, overrides={"optim.lr": 0.01}, modified=True, tested=False))
    guess = math.log(50_257)
    sick = {"status": "diverged", "error": "step 3: loss nan", "dev_loss": guess, "test_loss": guess}
    rows.append(make_row("schedule", 3, **sick, losses=[10.8, 10.7], grad_norms=[1.0, 2.0]))
    rows.append(make_row(WIDTH, 3, rules_broken=["700 s, at most 600"]))
    rows.append(crash(make_row(WIDTH, 4)))
    write_all(write_rows(folder / "l.jsonl", rows), folder)
    return folder
