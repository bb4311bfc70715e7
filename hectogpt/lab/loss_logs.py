"""Loss curves from any program's logs: printed lines, CSV, JSON lines or TensorBoard's files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.display import one_line
from hectogpt.errors import DataError
from hectogpt.files import read_bytes
from hectogpt.lab.losses import LARGEST, csv_rows, file_and_column, json_rows

Curve = list[tuple[int, float]]  # (step, loss); infinity stands for a loss that is not finite
# Names of the step's column, in order of preference.
STEPS = ("step", "iter", "iteration", "global_step", "_step")
LOSS = re.compile("loss|bpb", re.IGNORECASE)  # occurs in the names of columns that hold losses
# These match the lines that nanoGPT, nanochat, llm.c, modded-nanogpt and litgpt print. litgpt
# prints two losses after one word.
STEP_SHOWN = re.compile(r"\b(?:step|iter(?:ation)?)[ :=]*(\d+)", re.IGNORECASE)
LOSS_SHOWN = re.compile(
    r"\b((?:train|val|validation|test|dev)?[ _/]?(?:loss|bpb))[ :=]+(\d[\d.e+-]*|nan|inf)\b",
    re.IGNORECASE,
)
TWO_SHOWN = re.compile(r"\bloss train: ([\d.]+), val: ([\d.]+|n/a)")


def read_curves(name: str) -> dict[str, Curve]:
    """The loss curves in a log, by name.

    Args:
        name: FILE, or FILE:COLUMN to read only that curve.

    A folder, or a file with `tfevents` in its name, is read as TensorBoard's. A .csv, .tsv or
    .jsonl file has a column of steps and at least one with `loss` or `bpb` in its name. In any
    other file, every line with a step and a loss is a point. Raises UserError (DATA) if the log
    cannot be read or has no such curve.
    """
    path, column = file_and_column(name, "")
    try:
        if path.is_dir() or "tfevents" in path.name:
            found = _tensorboard(path)
        else:
            text = read_bytes(path, LARGEST).decode("utf-8-sig")
            ending = path.suffix.lower()
            if ending in (".csv", ".tsv"):
                found = _from_rows(csv_rows(text), column)
            elif ending in (".jsonl", ".json"):
                found = _from_rows(json_rows(text), column)
            else:
                found = _printed(text)
    except (OSError, ValueError, OverflowError) as error:
        raise errors.unreadable(path, error, fix="a log of a training run") from None
    curves = {key: points for key, points in found.items() if points and column in ("", key)}
    if not curves:
        has = one_line(", ".join(list(found)[:20])) or "no losses by step"
        raise DataError(
            f"{path} has no loss curve" + (f" {column!r}" if column else ""),
            why=f"it has {has}",
            fix="lines such as `step 100: val loss 3.21`, or a CSV whose first line is step,loss",
        )
    return curves


def _printed(text: str) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for line in text.splitlines():
        line = TWO_SHOWN.sub(r"train loss: \1, val loss: \2", line)
        if step := STEP_SHOWN.search(line):
            for name, value in LOSS_SHOWN.findall(line):
                _add(curves, name.strip().lower(), int(step[1]), value)
    return curves


def _from_rows(rows: Iterable[Mapping[str, Any]], column: str) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for row in rows:
        step = next((row[key] for key in STEPS if row.get(key) not in (None, "")), None)
        for key, value in row.items():
            if step is not None and (key == column or LOSS.search(key)):
                _add(curves, key, int(float(step)), value)
            elif key not in STEPS:
                curves.setdefault(key, [])  # listed in the error if there is no curve
    return curves


def _tensorboard(path: Path) -> dict[str, Curve]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise errors.not_installed(str(path), "tensorboard", "tensorboard") from None
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    curves: dict[str, Curve] = {tag: [] for tag in events.Tags()["scalars"]}
    for tag in filter(LOSS.search, curves):
        for event in events.Scalars(tag):
            _add(curves, tag, event.step, event.value)
    return curves


def _add(curves: dict[str, Curve], name: str, step: int, value: object) -> None:
    """Add a point. A field without a number is skipped: programs do not score at every step."""
    points = curves.setdefault(name, [])
    try:
        loss = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return
    points.append((step, loss if math.isfinite(loss) else math.inf))
