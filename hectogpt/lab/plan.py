"""Which runs a comparison takes: recipes, recipes without a rung, grids of overridden fields, and
runs from Python.

Old names of recipes and fields are accepted; the arms have today's.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from hectogpt.display import value_text
from hectogpt.errors import UserError, set_to
from hectogpt.lab import ideas, ladder, recipes
from hectogpt.lab.record import arm_label, changed
from hectogpt.serialization import IDEA_MODULE, current_path, dump
from hectogpt.training.run import Run, load_run

COMMA = re.compile(r",(?![^\[]*\])")  # not inside [0.9,0.95]


@dataclass(frozen=True)
class Arm:
    """One thing to compare: a run (its seed is set per trial) and what was overridden in its
    recipe.

    overrides: dotted field -> value. label: both in words; no two arms of a comparison share one.
    """

    label: str
    run: Run
    overrides: dict[str, Any]


def add_arm(arms: dict[str, Arm], run: Run, recipe: Run, label: str) -> None:
    """Add the arm of a run by its label. recipe: what it was made from. Raises UserError for a run
    that is there, and for one that sees the future."""
    ideas.check_causal(run)
    if label in arms:
        if arms[label].run.ideas == run.ideas and not changed(arms[label].run, run):
            raise UserError(
                f"{label} is named twice",
                why="seed, threads and corpus are the comparison's, so runs that differ in these "
                "alone are equal",
                fix="leave one out, or change a field",
            )
        label += f" ({len(arms) + 1})"  # files of one name in two folders
    arms[label] = Arm(label, run, changed(recipe, run))


def plan(
    names: Sequence[str],
    without: Sequence[str] = (),
    sweep: Sequence[str] = (),
    steps: int | None = None,
) -> list[Arm]:
    """The arms: each named recipe, then the top recipe without each named rung; each with every
    swept value.

    without: names of rungs, or "all". sweep: texts such as "optim.lr=0.001,0.003"; several of them
    make a grid. Raises UserError for an unknown recipe, field or value, and for what is named
    twice."""
    if without and not names:
        names = (ladder.TOP,)
    rungs = (
        [change.__name__ for change in ladder.LADDER]
        if list(without) == ["all"]
        else list(without)
    )
    names = [*names, *(recipes.WITHOUT + rung for rung in rungs)]
    if not names:
        raise UserError(
            "no recipe named",
            why="the first is what the others are compared to",
            fix="hectogpt compare baseline top",
        )
    fields = [parse_sweep(text) for text in sweep] + (
        [[("steps", steps)]] if steps is not None else []
    )
    arms: dict[str, Arm] = {}
    first = ideas.find_run(names[0])
    for number, name in enumerate(names):
        base = ideas.find_run(name, first) if number else first
        for point in product(*fields):
            run = override(base, dict(point))
            add_arm(arms, run, base, arm_label(run.recipe, changed(base, run)))
    return list(arms.values())


def parse_sweep(text: str) -> list[tuple[str, Any]]:
    """A field with each of its values: "optim.lr=1e-3,3e-3" -> [("optim.lr", 0.001), ("optim.lr",
    0.003)].

    A field may be written as the option that sets it: "model.d-model" is "model.d_model".
    """
    field, equals, values = text.partition("=")
    if not equals or not values:
        raise UserError(
            f"sweep {text}",
            why="it has the form FIELD=VALUE,VALUE",
            fix=set_to("sweep", "optim.lr=0.001,0.003"),
        )
    return [(field.replace("-", "_"), _parse(value)) for value in COMMA.split(values)]


def _parse(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):  # true, or True
        with suppress(ValueError, SyntaxError):
            return read(text)
    return text


def override(run: Run, changes: dict[str, Any]) -> Run:
    """A run with some dotted fields replaced. Raises UserError naming a field that does not exist
    or does not fit.
    """
    data = dump(run)
    for field, value in changes.items():
        *path, last = current_path(run, field).split(".")
        inner = data
        for name in path:
            inner = inner.get(name)
            if not isinstance(inner, dict):
                raise UserError(
                    f"{run.recipe} has no field {field!r}",
                    why=f"{name} has no fields in this recipe",
                )
        inner[last] = value
    return load_run(data)


# --- runs of Python
# ---


def arms_of(runs: Sequence[Run | str], steps: int | None = None, threads: int = 0) -> list[Arm]:
    """The arms of a comparison of runs and names. A label is the recipe's name, and, where an
    earlier run has the same, how it differs from that. Raises UserError for equal runs and for
    classes without a file."""
    if isinstance(runs, (str, Run)) or not runs:
        raise UserError(
            "no runs to compare", why="compare takes a list", fix='compare(["baseline", "top"])'
        )
    first = ideas.find_run(runs[0]) if isinstance(runs[0], str) else runs[0]
    custom = None if ideas.is_idea(first.recipe) else first
    arms = dict[str, Arm]()
    named = dict[str, Run]()
    for number, item in enumerate(runs):
        run = (
            first
            if number == 0
            else ideas.find_run(item, first)
            if isinstance(item, str)
            else item
        )
        check_classes(run)
        run = replace(run, steps=steps or run.steps, threads=threads or run.threads)
        own = first if run.ideas and isinstance(item, str) and runs[0] is custom else run
        apart = changed(named.setdefault(run.recipe, run), run)
        label = " ".join(
            [run.recipe, *(f"{path}={value_text(new)}" for path, new in apart.items())]
        )
        add_arm(arms, run, recipes.recipe_of(own) or own, label)
    return list(arms.values())


def check_classes(run: Run) -> None:
    """Raise UserError for a part of the run whose class another process could not import."""
    for part in ideas.parts_of(run):
        module = type(part).__module__
        if module.partition(".")[0] != "hectogpt" and not module.startswith(IDEA_MODULE):
            name = type(part).__name__
            where = "a notebook or script" if module == "__main__" else f"the module {module}"
            raise UserError(
                f"{name} is defined in {where}",
                why="each trial is a process of its own, which cannot import it from there",
                fix=f"put {name} and a function that takes a Run and returns one that uses it "
                "into a file, "
                'and compare "FILE.py:FUNCTION"',
            )
