"""Numbers of the formulas that a submission may have mistyped: fitted to its results, instead of listed.

A family is the computation with free numbers in one step. Gauss-Newton steps fit them to a few answers; only what then
reproduces all of them is named, with the number that it is.
"""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hectogpt.grade.calls import Call, outcome_of
from hectogpt.grade.computation import Change, Computation, Method
from hectogpt.grade.result import Diagnosis


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


@dataclass
class Fit:
    """A family, held against calls."""

    family: Family
    calls: list[Call]

    def outcome(self, values: list[float], call: Call) -> Tensor | str:
        kind = type("Fitted", (Computation,), dict(self.family.changes(values)))
        return outcome_of(kind, call.setting, call.number)

    def misses(self, values: list[float]) -> Tensor | None:
        """By how much each number of some calls is missed: one of each model, since what depends on its sizes must fit
        both."""
        ordered = sorted(self.calls, key=lambda call: call.setting.inputs[call.number][1])
        parts = []
        for call in {call.setting.name: call for call in ordered}.values():
            made, yours = self.outcome(values, call), call.answer.tensor
            if isinstance(made, str) or yours is None or made.shape != yours.shape or not made.isfinite().all():
                return None
            parts.append((made.double() - yours.double()).flatten())
        return torch.cat(parts)

    def explain(self) -> Diagnosis | None:
        """The numbers with which the family reproduces all the calls."""
        for start in starts_of(self.family):
            values = solve(self.misses, start)
            if values is None or not all(call.agrees(self.outcome(values, call)) for call in self.calls):
                continue
            rows = [(number, round(value, 9) + 0.0) for number, value in zip(self.family.numbers, values, strict=True)]
            others = [(n, v) for n, v in rows if n.right is None or abs(v - n.right) > 1e-3 * abs(n.right) + 1e-12]
            if others:
                names = tuple(f"{number.name} {value:.5g}" for number, value in others)
                what = " ".join(number.what.format(value=f"{value:.5g}") for number, value in others)
                return Diagnosis(names, self.family.where, what)
        return None


def explain(part: str, calls: list[Call]) -> Diagnosis | None:
    """The first family that reproduces all answers with some numbers, and these numbers."""
    if not all((t := call.answer.tensor) is not None and t.numel() and t.isfinite().all() for call in calls):
        return None
    return next(filter(None, (Fit(family, calls).explain() for family in FAMILIES.get(part, ()))), None)


def starts_of(family: Family) -> list[list[float]]:
    """The first start of every number, and each of the others by itself."""
    first = [number.starts[0] for number in family.numbers]
    more = [(n, start) for n, number in enumerate(family.numbers) for start in number.starts[1:]]
    return [first, *([*first[:n], start, *first[n + 1 :]] for n, start in more)]


def solve(misses: Callable[[list[float]], Tensor | None], start: list[float]) -> list[float] | None:
    """Numbers at which the sum of squares is least near the start: Gauss-Newton, with steps halved until they help."""
    values, best = list(start), misses(start)
    for _ in range(25):
        columns = []
        for n, value in enumerate(values):
            step = 1e-6 * max(abs(value), 1e-6)
            moved = misses([*values[:n], value + step, *values[n + 1 :]])
            if moved is None or best is None:
                return None
            columns.append((moved - best) / step)
        assert best is not None
        move = torch.linalg.lstsq(torch.stack(columns, 1), -best[:, None], driver="gelsd").solution[:, 0].tolist()
        for halved in range(8):
            tried = [value + by / 2**halved for value, by in zip(values, move, strict=True)]
            found = misses(tried)
            if found is not None and float(found.square().sum()) < float(best.square().sum()):
                break
        else:
            return values
        converged = all(abs(a - b) <= 1e-9 * max(abs(b), 1e-9) for a, b in zip(values, tried, strict=True))
        values, best = tried, found
        if converged:
            break
    return values
