"""The baseline's own loss curve, which is drawn behind that of every other run without training it again.

`hectogpt train baseline` saves its curve in the user's cache, by training text and number of steps; one for the
embedded corpus ships with the package. A text that has none gets no curve: another text's would mislead.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

from hectogpt.data import Corpus
from hectogpt.files import cache_dir, write_atomic
from hectogpt.serialization import load
from hectogpt.train.session import RunResult


@dataclass(frozen=True)
class Curve:
    """A finished baseline run: training loss and gradient norm at every step, and its score on dev."""

    corpus: str
    train_sha256: str
    steps: int
    seed: int
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    dev_loss: float
    dev_bpb: float


def curve_of(result: RunResult) -> Curve:
    """The curve of a run that is finished and scored on dev, its numbers rounded to seven digits."""
    score = result.scores["dev"]
    return Curve(
        corpus=result.corpus,
        train_sha256=result.corpus_sha256["train"],
        steps=result.run.steps,
        seed=result.run.seed,
        losses=tuple(float(f"{loss:.7g}") for loss in result.losses),
        grad_norms=tuple(float(f"{norm:.7g}") for norm in result.grad_norms),
        dev_loss=score.loss,
        dev_bpb=score.bits_per_byte,
    )


def save(curve: Curve) -> Path:
    """Write a curve into the cache and return its path. Raises UserError (STORAGE)."""
    path = _folder() / _name(curve.train_sha256, curve.steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(asdict(curve), allow_nan=False) + "\n")
    return path


def find(corpus: Corpus, steps: int) -> Curve | None:
    """The baseline's curve on this training text over so many steps, from the cache or the package; None without."""
    name = _name(corpus.sha256["train"], steps)
    for place in (_folder() / name, resources.files("hectogpt.lab") / "baselines" / name):
        if place.is_file():
            curve: Curve = load(Curve, json.loads(place.read_text(encoding="utf-8")))
            return curve
    return None


def _folder() -> Path:
    return cache_dir() / "baselines"


def _name(train_sha256: str, steps: int) -> str:
    return f"{train_sha256[:16]}-{steps}.json"
