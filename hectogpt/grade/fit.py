"""Numbers of the formulas that a submission may have mistyped: fitted to its results, instead of listed.

A family is the computation with free numbers in one step. They are fitted to a few answers by least squares; only what
then reproduces all answers is named, with the number that it is.
"""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from hectogpt.grade.calls import Call, outcome_of
from hectogpt.grade.computation import Change, Computation, Method
from hectogpt.grade.result import Diagnosis

TIGHT = {"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14, "max_nfev": 100}


@dataclass(frozen=True)
class Number:
    """name: short, for tables. what: a sentence with {value} in it. right: the right value, None if there is none.
    starts: where the search begins."""

    name: str
    what: str
    right: float | None
    starts: tuple[float, ...]


@dataclass(frozen=True)
class Family:
    """where: the step. numbers: those that are free in it. changes: from their values, method -> what takes its place."""

    where: str
    numbers: tuple[Number, ...]
    changes: Callable[[list[float]], Mapping[str, Method]]


def gelu(v: list[float]) -> Change:
    factor, cubic, half, one = v
    return lambda self, x: half * x * (one + torch.tanh(factor * (x + cubic * x**3)))


ROOT = math.sqrt(2 / math.pi)
GELU = (
    Number("factor", "The factor before the bracket is {value}, not sqrt(2/pi) = 0.797885.", ROOT, (ROOT, 2.0, -ROOT)),
    Number("coefficient", "The coefficient of the cube is {value}, not 0.044715.", 0.044715, (0.044715, 0.5)),
    Number("half", "The factor in front is {value}, not one half.", 0.5, (0.5,)),
    Number("1 +", "What is added to tanh is {value}, not 1.", 1.0, (1.0,)),
)
FILLED = "which large scores outweigh: minus infinity hides the future"
FAMILIES: dict[str, tuple[Family, ...]] = {
    "gelu": (Family("GELU.forward", GELU, lambda v: {"gelu": gelu(v)}),),
    "mlp": (Family("the activation between fc1 and fc2", GELU, lambda v: {"bend": gelu(v)}),),
    "attention": (
        Family("the scale of the scores",
               (Number("scores times", "The scores are multiplied by {value}, whatever the width of a head.", None, (0.1, 1.0)),),
               lambda v: {"scale": lambda s, t: t * v[0]}),
        Family("the scale of the scores",
               (Number("scale times", "The scores, divided by the root of the head's width, are {value} times what they should be.", 1.0, (0.5, 2.0)),),
               lambda v: {"scale": lambda s, t: t * v[0] / s.size.d_attention**0.5}),
        Family("the causal mask", (Number("mask of", f"The future is filled with {{value}}, {FILLED}.", None, (-1.0, -8.0, -15.0)),),
               lambda v: {"hide": lambda s, t: t.masked_fill(s.future(t), v[0])}),
        Family("the causal mask",
               (Number("added to the future:", f"{{value}} is added to the scores of the future, {FILLED}.", 0.0, (-1.0, -8.0, -15.0)),),
               lambda v: {"hide": lambda s, t: t + v[0] * s.future(t)}),
        Family("the order of mask and scale",
               (Number("before the scale, mask of", f"The future is filled with {{value}} before the scores are scaled, {FILLED}.", None, (-4.0, -20.0)),),
               lambda v: {"pattern": lambda s, t: s.normalise(s.scale(t.masked_fill(s.future(t), v[0])))}),
        Family("the order of mask and scale",
               (Number("before the scale, added to the future:",
                       f"{{value}} is added to the scores of the future before they are scaled, {FILLED}.", 0.0, (-4.0, -20.0)),),
               lambda v: {"pattern": lambda s, t: s.normalise(s.scale(t + v[0] * s.future(t)))}),
    ),
    "block": (Family("the norms", (Number("eps", "The eps of the norms is {value}, not GPT-2's 1e-5.", 1e-5, (1e-6, 1e-4)),),
                     lambda v: {"eps": lambda s: v[0]}),),
    "loss": (Family("the cross entropy", (Number("label smoothing", "Label smoothing of {value} is on.", 0.0, (0.05,)),),
                    lambda v: {"surprise": lambda s, y, t: (1 - v[0]) * Computation.surprise(s, y, t) - v[0] * y.log_softmax(-1).mean(-1)}),),
}  # fmt: skip


def explain(part: str, calls: list[Call]) -> Diagnosis | None:
    """The first family that reproduces all answers with some numbers, and these numbers."""
    if not all((t := call.answer.tensor) is not None and t.numel() and t.isfinite().all() for call in calls):
        return None
    return next(filter(None, (fitted(family, calls) for family in FAMILIES.get(part, ()))), None)


def fitted(family: Family, calls: list[Call]) -> Diagnosis | None:
    """The numbers with which a family reproduces all the calls."""

    def outcome(values: Iterable[float], call: Call) -> Tensor | str:
        kind = type("Fitted", (Computation,), dict(family.changes([float(value) for value in values])))
        return outcome_of(kind, call.setting, call.number)

    # Of each model the shortest call: what depends on its sizes must fit both.
    few = {c.setting.name: c for c in sorted(calls, key=lambda c: c.setting.inputs[c.number][1])}

    def misses(values: Iterable[float]) -> np.ndarray:
        """By how much each number of these calls is missed."""
        parts = []
        for call in few.values():
            made, yours = outcome(values, call), call.answer.tensor
            if isinstance(made, str) or yours is None or made.shape != yours.shape or not made.isfinite().all():
                raise ArithmeticError
            parts.append((made.double() - yours.double()).flatten())
        return torch.cat(parts).numpy()

    first = [number.starts[0] for number in family.numbers]
    more = [(n, start) for n, number in enumerate(family.numbers) for start in number.starts[1:]]
    for start in (first, *([*first[:n], other, *first[n + 1 :]] for n, other in more)):
        try:
            values = least_squares(misses, start, method="lm", diff_step=1e-6, **TIGHT).x
        except ArithmeticError:
            continue
        if not all(call.agrees(outcome(values, call)) for call in calls):
            continue
        rows = [(number, round(float(value), 9) + 0.0) for number, value in zip(family.numbers, values, strict=True)]
        others = [(n, v) for n, v in rows if n.right is None or abs(v - n.right) > 1e-3 * abs(n.right) + 1e-12]
        if others:
            names = tuple(f"{number.name} {value:.5g}" for number, value in others)
            what = " ".join(number.what.format(value=f"{value:.5g}") for number, value in others)
            return Diagnosis(names, family.where, what)
    return None
