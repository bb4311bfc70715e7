"""What a loss is compared with: the recorded runs of the same recipe, and the baseline's curve on the same text.

`hectogpt train baseline` saves its curve in the user's cache, by training text and number of steps; one for the
embedded corpus comes with the package. A curve that cannot be written or read is left out, and never ends a run.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.files import cache_dir, write_atomic
from hectogpt.json_files import read_json_object
from hectogpt.training.evaluate import RunResult


@dataclass(frozen=True)
class Band:
    """Mean and SD of n recorded dev losses, nats per token."""

    mean: float
    sd: float
    n: int


def band_of(recipe: str, corpus: str, steps: int | None) -> Band | None:
    """The band of a recipe's full runs on a corpus; None if fewer than two are recorded. lab/baselines/bands.json is
    written by tools/report from results/ladder.jsonl."""
    bands = json.loads((Path(__file__).parent / "baselines" / "bands.json").read_text(encoding="utf-8"))
    found = bands.get(f"{recipe} {corpus} {steps}")
    return None if found is None else Band(*found)


def is_it_usual(recipe: str, corpus: str, steps: int | None, loss: float) -> str:
    """How a whole run's held-out loss lies to those on record, in words; "" if there are none. Within four SD, or 0.01,
    is usual."""
    band = band_of(recipe, corpus, steps)
    if band is None:
        return ""
    others, apart = f"{band.n} runs on record: {band.mean:.3f} ± {band.sd:.3f}", loss - band.mean
    if abs(apart) <= max(4 * band.sd, 0.01):
        return f"as usual ({others})"
    return f"{abs(apart):.3f} {'above' if apart > 0 else 'below'} the usual ({others})"


@dataclass(frozen=True)
class Curve:
    """A finished baseline run: training loss and gradient norm at every step, and its loss on dev."""

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    dev_loss: float


def save(result: RunResult) -> None:
    """Keep the curve of a run that is finished and scored on dev, its numbers rounded to seven digits."""
    with suppress(OSError, UserError, ValueError):  # ValueError: a loss that is not finite
        path = cache_dir() / "baselines" / _name(result.corpus_sha256["train"], result.run.steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        curves = {"losses": result.losses, "grad_norms": result.grad_norms}
        row: dict[str, object] = {name: [float(f"{value:.7g}") for value in curve] for name, curve in curves.items()}
        row |= {"corpus": result.corpus, "dev_loss": result.scores["dev"].loss}
        write_atomic(path, json.dumps(row, allow_nan=False) + "\n")


def find(corpus: Corpus, steps: int) -> Curve | None:
    """The baseline's curve on this training text over so many steps, from the cache or the package; None without one,
    or with one that is damaged."""
    name = _name(corpus.sha256["train"], steps)
    with suppress(UserError):  # no folder for the cache
        if curve := _read(cache_dir() / "baselines" / name, steps):
            return curve
    return _read(Path(__file__).parent / "baselines" / name, steps)


def _read(path: Path, steps: int) -> Curve | None:
    """The curve of a file, if it is one: a finite number for every step."""
    with suppress(UserError, KeyError, TypeError, ValueError):
        row = read_json_object(path)
        losses, norms = (tuple(map(float, row[name])) for name in ("losses", "grad_norms"))
        curve = Curve(losses, norms, float(row["dev_loss"]))
        if len(losses) == len(norms) == steps and all(map(math.isfinite, (*losses, *norms, curve.dev_loss))):
            return curve
    return None


def _name(train_sha256: str, steps: int) -> str:
    return f"{train_sha256[:16]}-{steps}.json"
