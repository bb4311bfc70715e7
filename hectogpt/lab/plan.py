"""The arms of a comparison: recipes, recipes without a rung, grids of fields, runs from Python."""

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
from hectogpt.errors import SetTo, UserError
from hectogpt.lab import ideas, ladder, recipes
from hectogpt.lab.record import arm_label, changed
from hectogpt.serialization import IDEA_MODULE, dump
from hectogpt.training.run import Run, load_run

COMMA = re.compile(r",(?![^\[]*\])")  # except inside brackets: [0.9,0.95] is one value


@dataclass(frozen=True)
class Arm:
    """A run to compare, and the fields that differ from its recipe.

    Attributes:
        label: recipe and overrides in one string; unique within a comparison.
        run: the run; the seed is set for each trial.
        overrides: dotted field -> value.
    """

    label: str
    run: Run
    overrides: dict[str, Any]


def add_arm(arms: dict[str, Arm], run: Run, recipe: Run, label: str) -> None:
    """Add a run to `arms`, under its label.

    Args:
        arms: label -> arm, changed in place.
        run: the run to add.
        recipe: the run that it was made from.
        label: the label; a number is appended if a different run has it already.

    Raises UserError if `arms` already has this run, or if its model sees later tokens.
    """
    ideas.check_causal(run)
    if label in arms:
        if arms[label].run.ideas == run.ideas and not changed(arms[label].run, run):
            raise UserError(
                f"{label} is named twice",
                why="the comparison sets seed, threads and corpus, so runs that differ only in "
                "these are equal",
                fix="leave one out, or change a field",
            )
        label += f" ({len(arms) + 1})"  # idea files of the same name in two folders
    arms[label] = Arm(label, run, changed(recipe, run))


def plan(
    names: Sequence[str],
    without: Sequence[str] = (),
    sweep: Sequence[str] = (),
    steps: int | None = None,
) -> list[Arm]:
    """The arms of a comparison, each once for every combination of swept values.

    Args:
        names: recipes and ideas; the others are compared with the first.
        without: rungs to leave out of the top recipe, one at a time; "all" means every rung.
        sweep: strings such as "optim.lr=0.001,0.003"; several make a grid.
        steps: optimizer steps of every arm; None keeps each recipe's own.

    Raises UserError for an unknown recipe, field or value, and for an arm named twice.
    """
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
            why="the others are compared with the first",
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
    """Parse "optim.lr=1e-3,3e-3" into [("optim.lr", 0.001), ("optim.lr", 0.003)].

    The field may be written as the option that sets it: "model.d-model" is "model.d_model".
    """
    field, equals, values = text.partition("=")
    if not equals or not values:
        raise UserError(
            f"sweep {text}",
            why="the form is FIELD=VALUE,VALUE",
            fix=SetTo("sweep", "optim.lr=0.001,0.003"),
        )
    return [(field.replace("-", "_"), _parse(value)) for value in COMMA.split(values)]


def _parse(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):  # JSON's true, or Python's True
        with suppress(ValueError, SyntaxError):
            return read(text)
    return text


def override(run: Run, changes: dict[str, Any]) -> Run:
    """The run with some dotted fields replaced.

    Raises UserError that names the field if it does not exist or its value does not fit.
    """
    data = dump(run)
    for field, value in changes.items():
        *path, last = field.split(".")
        inner = data
        sections = [name for name in data if isinstance(data[name], dict) and field in data[name]]
        if sections and field not in data:
            fix = f"did you mean {sections[0]}.{field}?"
            raise UserError(f"{run.recipe} has no field {field!r}", fix=fix)
        for name in path:
            inner = inner.get(name)
            if not isinstance(inner, dict):
                raise UserError(
                    f"{run.recipe} has no field {field!r}",
                    why=f"{name} has no fields in this recipe",
                )
        inner[last] = value
    return load_run(data)


# --- runs from Python


def arms_of(runs: Sequence[Run | str], steps: int | None = None, threads: int = 0) -> list[Arm]:
    """The arms of a comparison, from a Python list of runs and recipe names.

    A label is the recipe's name, followed by the fields that differ from the first run of that
    recipe. Raises UserError for equal runs, and for classes that other processes cannot import.
    """
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
                why="each trial runs in a separate process, which cannot import it from there",
                fix=f"put {name} and a function that takes a Run and returns one that uses it "
                "into a file, "
                'and compare "FILE.py:FUNCTION"',
            )
