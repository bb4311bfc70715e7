"""Which runs a comparison takes: recipes, recipes without a rung, and grids of overridden fields.

Old names of recipes and fields are accepted; the arms have today's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

from hectogpt.errors import UserError
from hectogpt.lab import ideas, recipes
from hectogpt.lab.record import arm_label
from hectogpt.serialization import current_path, did_you_mean, dump
from hectogpt.training.run import Run, load_run

COMMA = re.compile(r",(?![^\[]*\])")  # not inside [0.9,0.95]


@dataclass(frozen=True)
class Arm:
    """One thing to compare: a run (its seed is set per trial) and what was overridden in its recipe.

    overrides: dotted field -> value. label: both in words; no two arms of a comparison share one.
    """

    label: str
    run: Run
    overrides: dict[str, Any]


def plan(
    names: Sequence[str], without: Sequence[str] = (), sweep: Sequence[str] = (), steps: int | None = None
) -> list[Arm]:
    """The arms: each named recipe, then the top recipe without each named rung; each with every swept value.

    without: names of rungs, or "all". sweep: texts such as "optim.lr=0.001,0.003"; several of them make a grid.
    Raises UserError for an unknown recipe, field or value.
    """
    if without and not names:
        names = (recipes.TOP,)
    rungs = [change.__name__ for change in recipes.LADDER] if list(without) == ["all"] else list(without)
    names = [*names, *(recipes.WITHOUT + rung for rung in rungs)]
    if not names:
        raise UserError("no recipe named", fix="hectogpt compare baseline top")
    grid = list(product(*[parse_sweep(text) for text in sweep]))
    arms: dict[str, Arm] = {}
    for name in names:
        base = ideas.find_run(name, ideas.bases_for(names))
        for point in grid:
            overrides = {current_path(base, field): value for field, value in point}
            if steps is not None and steps != base.steps:
                overrides["steps"] = steps
            run, label = override(base, overrides), arm_label(base.recipe, overrides)
            if label in arms and arms[label].run != run:  # files of one name in two folders
                label += f" ({base.ideas[-1][:8]})"
            arms[label] = Arm(label, run, overrides)
    return list(arms.values())


def parse_sweep(text: str) -> list[tuple[str, Any]]:
    """A field with each of its values: "optim.lr=1e-3,3e-3" -> [("optim.lr", 0.001), ("optim.lr", 0.003)].

    A field may be written as the option that sets it: "model.d-model" is "model.d_model".
    """
    field, equals, values = text.partition("=")
    if not equals or not values:
        raise UserError(
            f"sweep {text}", why="it has the form FIELD=VALUE,VALUE", fix="set sweep to optim.lr=0.001,0.003"
        )
    return [(field.replace("-", "_"), _parse(value)) for value in COMMA.split(values)]


def _parse(text: str) -> Any:
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    for read in (json.loads, float):  # float for .5, which JSON does not have
        with suppress(ValueError):
            return read(text)
    return text


def override(run: Run, changes: dict[str, Any]) -> Run:
    """A run with some dotted fields replaced. Raises UserError naming a field that does not exist or does not fit."""
    data = dump(run)
    for field, value in changes.items():
        *path, last = current_path(run, field).split(".")
        inner = data
        for name in path:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            known = [name for name in inner if name != "type"] if isinstance(inner, dict) else []
            where = ".".join(path) or "the run"
            raise UserError(
                f"{run.recipe} has no field {field!r}",
                why=f"{where} has {', '.join(known)}" if known else f"{where} has no fields in this recipe",
                fix=did_you_mean(last, known) if known else "",
            )
        inner[last] = value
    return load_run(data)


def old_names(names: Iterable[str], sweep: Iterable[str], arms: Sequence[Arm]) -> dict[str, str]:
    """Old name -> today's, of the recipes and fields that a comparison was asked for by an old name."""
    found = {name: recipes.current_recipe(name) for name in names}
    for text in sweep:
        field = text.partition("=")[0].replace("-", "_")
        found[field] = current_path(arms[0].run, field)
    return {old: new for old, new in found.items() if old != new}
