"""Why a part is wrong: the mistake it may be. Only what reproduces the results is named.

Rules are tried in order. The tables of known mistakes stand in mistakes.py, those of gradients and messages in faults.py. Numbers of
the formulas that may be mistyped are not listed but fitted: a family is the computation with free numbers in one step.
They are fitted to a few answers by least squares; only what then reproduces all answers is named, with its numbers.
"""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from hectogpt.grade.calls import Call, Case, Made, difference, listed, outcome, outcome_of
from hectogpt.grade.computation import Change, Computation, Method, Mistake, combines, symptoms
from hectogpt.grade.faults import GRADIENTS, by_words
from hectogpt.grade.mistakes import MISTAKES
from hectogpt.grade.result import Diagnosis
from hectogpt.grade.transcript import Answer

IN_WORDS = 3  # explanations of the same results that are given in words
PAIRS = 3000  # that are tried at most: a second or two
Mistakes = tuple[Mistake, ...]


def diagnose(case: Case) -> Diagnosis | None:
    """The mistake in a part that has failed, by the first rule that knows one."""
    return next(filter(None, (rule(case) for rule in RULES)), None)


def unstable(case: Case) -> Diagnosis | None:
    """The first input, given again at the end, has another result."""
    for calls in case.calls.values():
        first, again = calls[0].answer.tensor, calls[-1].answer.tensor
        if len(calls) < 2 or first is None or again is None or calls[0] not in case.counted:
            continue
        other_nan = first.shape == again.shape and not torch.equal(first.isnan(), again.isnan())
        if not (other_nan or difference(again, first) > 1e-4):
            continue
        if case.part == "generate":
            what = "Tokens are drawn at random, or a state is kept between calls; greedy decoding takes the likeliest."
            return Diagnosis(("sampling for greedy",), "the choice of the next token", what)
        what = "The same input gives another output the second time: something is random or kept between calls."
        return Diagnosis(("another answer the second time",), "what is kept between calls", what)
    return None


def no_number(case: Case) -> Diagnosis | None:
    """NaN everywhere has many causes: none of them is named alone."""
    tensors = [call.answer.tensor for call in case.built]
    if not case.wrong or not all(tensor is not None and tensor.isnan().all() for tensor in tensors):
        return None
    why = ": minus infinity fills whole rows of the scores, or is multiplied by zero" * (case.part == "attention")
    return Diagnosis(("NaN everywhere",), "the causal mask" if why else "the result", f"Every number is NaN{why}.")


def wrong_gradient(case: Case) -> Diagnosis | None:
    """The values are right, their gradients are not."""
    asked = [call for call in case.built if call.setting.gradient]
    if case.wrong or not asked:
        return None
    told = next((str(call.answer.facts["gradient"]) for call in asked if call.answer.facts.get("gradient")), "")
    if found := by_words(case.part, told):
        return found
    for count in (1, 2):
        usable = filter(combines, combinations(GRADIENTS[case.part], count))
        if fitting := [m for m in usable if not any(call.wrong_gradients(m) for call in asked)]:
            return diagnosis(case.part, fitting)
    wrong = {name: call for call in asked for name in call.wrong_gradients()}
    without = [name for name, call in wrong.items() if name in call.answer.facts.get("without", ())]
    if without and not told:
        what = "On the way to it something is detached, taken by .data, or computed under no_grad."
        return Diagnosis(("no gradient of some weights",), listed(without), what)
    if not wrong and not told:
        return None
    return Diagnosis(("wrong gradient",), "the gradient", "The values are right, their gradient is not.")


def reproduced(case: Case) -> Diagnosis | None:
    """A mistake that gives the same numbers. Past the context alone a text may have lost its beginning."""
    if case.wrong and any(call.answer.tensor is not None for call in case.built):
        return explain_values(case.part, case.built)
    if case.part == "generate" and case.built and not case.wrong:
        return diagnosis("generate", [(one,) for one in MISTAKES["generate"] if one.name == "returned text cropped"])
    return None


def by_error(case: Case) -> Diagnosis | None:
    """What the message of an error says, or what came instead of a tensor."""
    answers = [call.answer for call in [*case.wrong, *case.counted]]
    broken = next((answer for answer in answers if answer.kind in ("error", "other")), None)
    return fault_diagnosis(case.part, broken) if broken else None


RULES: tuple[Callable[[Case], Diagnosis | None], ...] = (unstable, no_number, wrong_gradient, reproduced, by_error)


def fault_diagnosis(part: str, broken: Answer) -> Diagnosis | None:
    """By the rules for errors, from the message and the line of code."""
    if broken.kind == "other":
        return by_words(part, f"result: {broken.text}")
    return by_words(part, f"{broken.error}: {broken.text} | {broken.line.partition(': ')[2]}")


# --- what reproduces the values ---------------------------------------------------------------------------------------


def explain_values(part: str, calls: list[Call]) -> Diagnosis | None:
    """The mistake, the number that is another one, or else the pair of mistakes, that reproduces all the answers; None
    if there is none."""
    if found := [(one,) for one in MISTAKES[part] if reproduces((one,), calls)]:
        return diagnosis(part, found)
    if fitted := fit(part, calls):
        return fitted
    if pairs := [pair for pair in pairs_of(part, calls) if reproduces(pair, calls)]:
        return diagnosis(part, pairs)
    tensors = [call for call in calls if call.answer.tensor is not None]
    if 2 <= len(tensors) < len(calls):  # some calls raised for another reason: the others tell
        return explain_values(part, tensors)
    return None


def reproduces(mistakes: Mistakes, calls: list[Call]) -> bool:
    """Whether the mistakes give every answer, at least one of them a tensor with a number in it: NaN everywhere has
    many causes."""
    told = False
    for call in cheapest_first(calls):
        made = outcome(mistakes, call.setting, call.number)
        if not call.agrees(made):
            return False
        told = told or (isinstance(made, Tensor) and (not made.numel() or bool(made.isfinite().any())))
    return told


def cheapest_first(calls: list[Call]) -> list[Call]:
    """Small inputs that tell much first: a wrong hypothesis is given up after one."""
    return sorted(calls, key=lambda c: (c.setting.inputs[c.number][1] < 2, c.setting.size.n_layers, c.place))


def pairs_of(part: str, calls: list[Call]) -> Sequence[Mistakes]:
    """Pairs that may fit: they change different steps, and neither alone raises, has another shape, or is wrong where
    the answer is neither."""
    ordered = [call for call in cheapest_first(calls) if call.answer.tensor is not None]

    def may_be(mistake: Mistake) -> bool:
        for call in ordered:
            made, yours = outcome((mistake,), call.setting, call.number), call.answer.tensor
            if isinstance(made, str) or yours is None or made.shape not in (call.right.shape, yours.shape):
                return False
            if call.is_right and not call.agrees(made):
                return False
        return True

    return list(filter(combines, combinations(filter(may_be, MISTAKES[part]), 2)))[:PAIRS]


def diagnosis(part: str, found: Sequence[Mistakes]) -> Diagnosis:
    """The first of the explanations, with the names of the others; the first few in words as well."""
    names = [tuple(one.name for one in mistakes) for mistakes in found]
    wheres = ["; ".join(dict.fromkeys(one.where for one in mistakes)) for mistakes in found[:IN_WORDS]]
    what, *others = [" ".join(one.what for one in mistakes) for mistakes in found[:IN_WORDS]]
    equivalent = tuple(" + ".join(other) for other in names[1:])
    effect = symptoms()[part].get(names[0][0], "") if len(names[0]) == 1 else ""
    return Diagnosis(names[0], ", or ".join(dict.fromkeys(wheres)), what, equivalent, tuple(others), effect)


# --- numbers that may be mistyped -------------------------------------------------------------------------------------


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
    """where: the step. changes: from the values of its numbers, method -> what takes its place."""

    where: str
    changes: Callable[[list[float]], Mapping[str, Method]]
    numbers: tuple[Number, ...]


def gelu(v: list[float]) -> Change:
    factor, cubic, half, one = v
    return lambda self, x: half * x * (one + torch.tanh(factor * (x + cubic * x**3)))


ROOT = math.sqrt(2 / math.pi)
CURVE = (
    Number("factor", "The factor before the bracket is {value}, not sqrt(2/pi) = 0.797885.", ROOT, (ROOT, 2.0, -ROOT)),
    Number("coefficient", "The coefficient of the cube is {value}, not 0.044715.", 0.044715, (0.044715, 0.5)),
    Number("half", "The factor in front is {value}, not one half.", 0.5, (0.5,)),
    Number("1 +", "What is added to tanh is {value}, not 1.", 1.0, (1.0,)),
)
SCALE, MASK, ORDER = "the scale of the scores", "the causal mask", "the order of mask and scale"
FILLED = "which large scores outweigh: minus infinity hides the future"
FAMILIES: list[tuple[str, Family]] = [
    ("gelu", Family("GELU.forward", lambda v: {"gelu": gelu(v)}, CURVE)),
    ("mlp", Family("the activation between fc1 and fc2", lambda v: {"bend": gelu(v)}, CURVE)),
    ("attention", Family(SCALE, lambda v: {"scale": lambda s, t: t * v[0]}, (
        Number("scores times", "The scores are multiplied by {value}, whatever the width of a head.", None, (0.1, 1.0)),))),
    ("attention", Family(SCALE, lambda v: {"scale": lambda s, t: t * v[0] / s.size.d_attention**0.5}, (
        Number("scale times", "The scores, divided by the root of the head's width, are {value} times what they should be.", 1.0, (0.5, 2.0)),))),
    ("attention", Family(MASK, lambda v: {"hide": lambda s, t: t.masked_fill(s.future(t), v[0])}, (
        Number("mask of", f"The future is filled with {{value}}, {FILLED}.", None, (-1.0, -8.0, -15.0)),))),
    ("attention", Family(MASK, lambda v: {"hide": lambda s, t: t + v[0] * s.future(t)}, (
        Number("added to the future:", f"{{value}} is added to the scores of the future, {FILLED}.", 0.0, (-1.0, -8.0, -15.0)),))),
    ("attention", Family(ORDER, lambda v: {"pattern": lambda s, t: s.normalise(s.scale(t.masked_fill(s.future(t), v[0])))}, (
        Number("before the scale, mask of", f"The future is filled with {{value}} before the scores are scaled, {FILLED}.", None, (-4.0, -20.0)),))),
    ("attention", Family(ORDER, lambda v: {"pattern": lambda s, t: s.normalise(s.scale(t + v[0] * s.future(t)))}, (
        Number("before the scale, added to the future:", f"{{value}} is added to the scores of the future before they are scaled, {FILLED}.", 0.0, (-4.0, -20.0)),))),
    ("block", Family("the norms", lambda v: {"eps": lambda s: v[0]}, (
        Number("eps", "The eps of the norms is {value}, not GPT-2's 1e-5.", 1e-5, (1e-6, 1e-4)),))),
    ("loss", Family("the cross entropy", lambda v: {"surprise": lambda s, y, t: (1 - v[0]) * Computation.surprise(s, y, t) - v[0] * y.log_softmax(-1).mean(-1)}, (
        Number("label smoothing", "Label smoothing of {value} is on.", 0.0, (0.05,)),))),
    ("", Family("the result", lambda v: {"after": lambda s, y: v[0] * y}, (
        Number("result times", "Every number is {value} times the right one.", 1.0, (1.0,)),))),
]  # fmt: skip


def fit(part: str, calls: list[Call]) -> Diagnosis | None:
    """The first family that reproduces all answers with some numbers, and these numbers."""
    if not all((t := call.answer.tensor) is not None and t.numel() and t.isfinite().all() for call in calls):
        return None
    return next(filter(None, (fitted(family, calls) for of, family in FAMILIES if of in (part, ""))), None)


def fitted(family: Family, calls: list[Call]) -> Diagnosis | None:
    """The numbers with which a family reproduces all the calls."""

    def made(values: Iterable[float], call: Call) -> Made:
        kind = type("Fitted", (Computation,), dict(family.changes([float(value) for value in values])))
        return outcome_of(kind, call.setting, call.number)

    # Of each model the shortest call: what depends on its sizes must fit both.
    few = {c.setting.name: c for c in sorted(calls, key=lambda c: c.setting.inputs[c.number][1])}

    def misses(values: Iterable[float]) -> np.ndarray:
        """By how much each number of these calls is missed."""
        parts = []
        for call in few.values():
            mine, yours = made(values, call), call.answer.tensor
            if isinstance(mine, str) or yours is None or mine.shape != yours.shape or not mine.isfinite().all():
                raise ArithmeticError
            parts.append((mine.double() - yours.double()).flatten())
        return torch.cat(parts).numpy()

    first = [number.starts[0] for number in family.numbers]
    more = [(n, start) for n, number in enumerate(family.numbers) for start in number.starts[1:]]
    for start in (first, *([*first[:n], other, *first[n + 1 :]] for n, other in more)):
        try:
            values = least_squares(
                misses, start, method="lm", diff_step=1e-6, xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=100
            ).x
        except ArithmeticError:
            continue
        if not all(call.agrees(made(values, call)) for call in calls):
            continue
        rows = [(number, round(float(value), 9) + 0.0) for number, value in zip(family.numbers, values, strict=True)]
        others = [(n, v) for n, v in rows if n.right is None or abs(v - n.right) > 1e-3 * abs(n.right) + 1e-12]
        if others:
            names = tuple(f"{number.name} {value:.5g}" for number, value in others)
            what = " ".join(number.what.format(value=f"{value:.5g}") for number, value in others)
            return Diagnosis(names, family.where, what)
    return None
