"""Recipes: a baseline, and functions from an older Run to a new one, each a single idea.

A recipe's name is its function's, its description the docstring, what it changes the difference of the two runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hectogpt.errors import UserError
from hectogpt.model import SIZES
from hectogpt.train.optim import AdamW, Linear
from hectogpt.train.run import Run
from hectogpt.values import did_you_mean

Recipe = Callable[[Run], Run]


def baseline() -> Run:
    """The assignment's own: d 33, 3 heads, 3 layers, context 512; AdamW at a constant 1e-5, clip 1, batch 16."""
    return Run(recipe="baseline", model=SIZES["tiny"], optim=AdamW(lr=1e-5), dtype="float32", gradient_clipping=1.0)


def first(run: Run) -> Run:
    """AdamW at a rate that moves the weights, with warm-up and decay to zero; d 128, 4 heads."""
    return replace(
        run,
        model=replace(run.model, d_model=128, n_heads=4),
        optim=AdamW(lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0),
        schedule=Linear(warmup=5),
        dtype="auto",
        head_dtype="auto",
    )


RECIPES: tuple[Recipe, ...] = (first,)
DEFAULT = "first"


def recipe(name: str) -> Run:
    """The Run of a named recipe. Raises UserError with the nearest name for one that does not exist."""
    if name == "baseline":
        return baseline()
    for change in RECIPES:
        if change.__name__ == name:
            return replace(change(baseline()), recipe=name)
    raise UserError(f"unknown recipe {name!r}", why=f"recipes: {', '.join(names())}", fix=did_you_mean(name, names()))


def names() -> list[str]:
    """Every recipe's name, the baseline first."""
    return ["baseline", *(change.__name__ for change in RECIPES)]


def describe(name: str) -> str:
    """One line on a recipe."""
    functions = {change.__name__: change for change in RECIPES} | {"baseline": baseline}
    return (functions[name].__doc__ or "").strip()
