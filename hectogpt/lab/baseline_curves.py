"""The baseline's own loss curve, which is drawn behind that of every other run without training it again.

`hectogpt train baseline` saves its curve in the user's cache, by training text and number of steps; one for the
embedded corpus ships with the package. A text that has none gets no curve: another text's would mislead. The curve is
decoration: one that cannot be written or read is left out, and never ends a run.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.files import cache_dir, write_atomic
from hectogpt.json_files import read_json_object
from hectogpt.serialization import load
from hectogpt.training.session import RunResult


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


def save(curve: Curve) -> Path | None:
    """Write a curve into the cache and return its path; None if that cannot be done."""
    try:
        path = _folder() / _name(curve.train_sha256, curve.steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(asdict(curve), allow_nan=False) + "\n")
    except (OSError, UserError, ValueError):  # ValueError: a loss that is not finite
        return None
    return path


def find(corpus: Corpus, steps: int) -> Curve | None:
    """The baseline's curve on this training text over so many steps, from the cache or the package; None without one,
    or with one that is damaged."""
    name = _name(corpus.sha256["train"], steps)
    with suppress(UserError):  # no folder for the cache
        if curve := _read(_folder() / name, steps):
            return curve
    with as_file(files("hectogpt.lab") / "baselines" / name) as packaged:
        return _read(packaged, steps)


def _read(path: Path, steps: int) -> Curve | None:
    """The curve of a file, if it is one: a finite number for every step."""
    with suppress(UserError):
        curve: Curve = load(Curve, read_json_object(path))
        numbers = (*curve.losses, *curve.grad_norms, curve.dev_loss, curve.dev_bpb)
        if len(curve.losses) == len(curve.grad_norms) == steps and all(map(math.isfinite, numbers)):
            return curve
    return None


def _folder() -> Path:
    return cache_dir() / "baselines"


def _name(train_sha256: str, steps: int) -> str:
    return f"{train_sha256[:16]}-{steps}.json"
