"""The baseline's own curve, to be drawn behind every other run's without training it again.

`hectogpt train baseline` keeps its curve in the user's cache, by corpus and number of steps; one recorded for the
embedded corpus ships with the package. A corpus that has none shows no baseline rather than a foreign one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

from hectogpt.data import Corpus, cache_folder
from hectogpt.model.folder import write_text
from hectogpt.train.loop import Score, Step
from hectogpt.train.run import Run
from hectogpt.values import load


@dataclass(frozen=True)
class Curve:
    """A finished baseline run: per-step training loss and gradient norm, and its held-out score."""

    corpus: str
    train_sha256: str
    steps: int
    seed: int
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    dev_loss: float
    dev_bpb: float


def curve_of(run: Run, corpus: Corpus, steps: list[Step], score: Score) -> Curve:
    """The curve of a finished run, numbers rounded to seven digits."""
    return Curve(
        corpus=corpus.name,
        train_sha256=corpus.sha256["train"],
        steps=run.steps,
        seed=run.seed,
        losses=tuple(float(f"{s.loss:.7g}") for s in steps),
        grad_norms=tuple(float(f"{s.grad_norm:.7g}") for s in steps),
        dev_loss=score.loss,
        dev_bpb=score.bits_per_byte,
    )


def _folder() -> Path:
    return cache_folder() / "baselines"


def _name(train_sha256: str, steps: int) -> str:
    return f"{train_sha256[:16]}-{steps}.json"


def keep(curve: Curve) -> Path:
    """Store a curve in the cache and return its path."""
    _folder().mkdir(parents=True, exist_ok=True)
    path = _folder() / _name(curve.train_sha256, curve.steps)
    write_text(path, json.dumps(asdict(curve), allow_nan=False) + "\n")
    return path


def find(corpus: Corpus, steps: int) -> Curve | None:
    """The baseline's curve on this training text over so many steps, from the cache or the package."""
    name = _name(corpus.sha256["train"], steps)
    for place in (_folder() / name, resources.files("hectogpt.lab") / "baselines" / name):
        if place.is_file():
            return load(Curve, json.loads(place.read_text(encoding="utf-8")))
    return None
