"""The usual held-out loss of a recipe: mean and spread of its recorded runs, for "is my loss normal?"."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Band:
    """Mean and SD of n recorded dev losses, nats per token."""

    mean: float
    sd: float
    n: int


def band_of(recipe: str, corpus: str, steps: int | None) -> Band | None:
    """The band of a recipe's full runs on a corpus; None if fewer than two are recorded. lab/baselines/bands.json is
    written by tools/report from results/ladder.jsonl."""
    bands = json.loads((files("hectogpt.lab") / "baselines" / "bands.json").read_text(encoding="utf-8"))
    found = bands.get(f"{recipe} {corpus} {steps}")
    return None if found is None else Band(*found)
