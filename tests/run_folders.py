"""Folders as runs leave them, written by hand: for tests of what reads them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hectogpt.lab import recipes
from hectogpt.serialization import dump

NGRAMS = {"uniform": 10.825, "unigram": 6.9, "kn2": 5.4, "kn3": 5.1}
SAMPLES = {"greedy": "The state of our\nunion", "sampled": "The state of our people"}


def summary_of(recipe: str = "baseline", **changes: Any) -> dict[str, Any]:
    """summary.json of a finished run."""
    summary = {"recipe": recipe, "modified": False, "corpus": "sotu", "seed": 3, "steps": 100, "train_tokens": 819200}
    summary |= {"params": 3000000, "train_loss_last": 6.5, "train_loss_last10": 6.4, "seconds": 61.25, "peak_mb": 900.5}
    summary |= {"machine": {"device": "AMD EPYC", "dtype": "float32", "head_dtype": "float32", "threads": 2}}
    summary |= {"dev_loss": 6.25, "dev_bpb": 1.75, "ngrams": NGRAMS, "samples": SAMPLES, "state": "done"}
    return summary | changes


def write_run(folder: Path, summary: dict[str, Any] | None, recipe: str = "baseline", at: int = 1_700_000_000) -> Path:
    """A run's folder without weights, last written `at`; `summary` None: it has not finished."""
    folder.mkdir(parents=True)
    run = dump(recipes.recipe(recipe)) | {"seed": 3}
    (folder / "run.json").write_text(json.dumps({"run": run, "modified": False}))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    for path in folder.iterdir():
        os.utime(path, (at, at))
    return folder
