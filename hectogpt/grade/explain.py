"""Why a part is wrong: the mistake it may be. Only what reproduces the results is named.

The tables of known mistakes stand in mistakes.py. Numbers of the formulas that may be mistyped are
not listed but fitted: a family is the computation with free numbers in one step. They are fitted
to a few answers by least squares; only what then reproduces all answers is named, with its
numbers. What ends in an error, or in a result that is no tensor, is told by its message."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import least_squares

from hectogpt.grade.calls import Call, Made, difference, listed, outcome, outcome_of
from hectogpt.grade.computation import Change, Computation, Method, Mistake, sentences, symptoms
from hectogpt.grade.mistakes import GRADIENTS, MISTAKES, final
from hectogpt.grade.result import Diagnosis
from hectogpt.grade.run_part import Answer

EXACT = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-14)  # where least squares end
PAIRS = 3000  # that are tried at most: a second or two
Mistakes = tuple[Mistake, ...]


def diagnose(part: str, calls: list[Call]) -> Diagnosis | None:
    """The mistake in a part that has failed, by those calls that count: in both modes, or else in
    one of them.
    """
    train = [call for call in calls if call.setting.train_mode]
    others = [call for call in calls if not call.setting.train_mode]
    if train and others and is_wrong(train) and not is_wrong(others):
        found = explain(part, train)
        names = found.names if found else ("another computation",)
        what = (
            found.what
            if found
            else "The result is another one than in eval mode, and nothing in it is random."
        )
        return Diagnosis(
            tuple(f"{name} in train mode" for name in names),
            "what depends on self.training",
            "In train mode: " + what,
        )
    return explain(part, calls) or (explain(part, others) if train else None)


def is_wrong(calls: list[Call]) -> bool:
    return any(
        not call.is_right or (call.setting.gradient and call.wrong_gradients()) for call in calls
    )


def explain(part: str, calls: list[Call]) -> Diagnosis | None:
    """A state that is kept, NaN, what gives the same gradients or the same numbers, or what the
    message of an error says."""
    firsts = {call.setting.name: call.answer.tensor for call in calls if call.place == 0}
    lasts = {
        call.setting.name: call.answer.tensor
        for call in calls
        if call.place == len(call.setting.inputs)
    }
    if any(
        now is not None and (was := firsts[name]) is not None and difference(now, was) > 1e-4
        for name, now in lasts.items()
    ):
        if part == "generate":
            what = (
                "Tokens are drawn at random, or a state is kept between calls; greedy decoding "
                "takes the likeliest."
            )
            return Diagnosis(("sampling for greedy",), "the choice of the next token", what)
        what = (
            "The same input gives another output the second time: something is random or kept "
            "between calls."
        )
        return Diagnosis(("another answer the second time",), "what is kept between calls", what)
    built = [call for call in calls if not call.answer.building]
    wrong = [call for call in built if not call.is_right]
    tensors = [call.answer.tensor for call in built]
    found = None
    if wrong and all(tensor is not None and tensor.isnan().all() for tensor in tensors):
        why = ": minus infinity fills whole rows of the scores, or is multiplied by zero" * (
            part == "attention"
        )
        return Diagnosis(
            ("NaN everywhere",),
            "the causal mask" if why else "the result",
            f"Every number is NaN{why}.",
        )
    if wrong and any(tensor is not None for tensor in tensors):
        found = explain_values(part, built)
    elif built and not wrong:
        left = [
            SIDE_EFFECTS[n]
            for call in built
            for n in call.answer.changed
            if n in SIDE_EFFECTS and n != "the mode"
        ]
        found = (
            wrong_gradient(part, [call for call in built if call.setting.gradient])
            if part in GRADIENTS
            else None
        )
        if not found and left:
            found = Diagnosis((left[0].name,), left[0].where, left[0].what)
    lost = any(not call.setting.counts and any(call.setting.new_tokens) for call in wrong)
    if not found and lost:  # the beginning of a text, past the context
        found = diagnosis(
            "generate",
            [(one,) for one in MISTAKES["generate"] if one.name == "returned text cropped"],
        )
    broken = next(
        (call.answer for call in [*wrong, *calls] if call.answer.kind in ("error", "other")), None
    )
    return found or (by_answer(part, broken) if broken else None)


def wrong_gradient(part: str, calls: list[Call]) -> Diagnosis | None:
    """The values of these calls are right, their gradients are not."""
    told = next(filter(None, (call.answer.backward for call in calls)), "")
    if found := by_words(part, told):
        return found
    if fitting := [
        (one,)
        for one in GRADIENTS[part]
        if not any(call.wrong_gradients((one,)) for call in calls)
    ]:
        return diagnosis(part, fitting)
    wrong = list(dict.fromkeys(name for call in calls for name in call.wrong_gradients()))
    without = [name for name in wrong if any(call.without([name]) for call in calls)]
    if told or not without:
        return None
    few = without == wrong and len(wrong) <= 4
    names = (
        tuple(f"{name} by .data" for name in wrong) if few else ("no gradient of some weights",)
    )
    what = "On the way to it something is detached, taken by .data, or computed under no_grad."
    return Diagnosis(names, listed(without), what)


def explain_values(part: str, calls: list[Call]) -> Diagnosis | None:
    """The mistake, the number that is another one, or else the pair of mistakes, that reproduces
    all the answers; None if there is none."""
    # Small inputs that tell much first: a wrong hypothesis is given up after one.
    calls = sorted(
        calls,
        key=lambda c: (c.setting.size.vocab_size, c.setting.inputs[c.number][1] < 2, c.place),
    )
    if found := [(one,) for one in MISTAKES[part] if reproduces((one,), calls)]:
        return diagnosis(part, found)
    if numbers := fit(part, calls):
        return numbers
    tensors = [call for call in calls if call.answer.tensor is not None]
    if pairs := [pair for pair in pairs_of(part, tensors) if reproduces(pair, calls)]:
        return diagnosis(part, pairs)
    if 2 <= len(tensors) < len(calls):  # some calls raised for another reason: the others tell
        return explain_values(part, tensors)
    return None


def reproduces(mistakes: Mistakes, calls: list[Call]) -> bool:
    """True if these mistakes together reproduce every answer."""
    return all(call.agrees(outcome(mistakes, call.setting, call.number)) for call in calls)


def pairs_of(part: str, calls: list[Call]) -> Sequence[Mistakes]:
    """Return pairs of mistakes that may explain the answers.

    The two change different steps. Neither alone raises, gives a shape that is neither right nor
    the submission's, or contradicts an answer that is right.
    """

    def may_be(mistake: Mistake) -> bool:
        for call in calls:
            made = outcome((mistake,), call.setting, call.number)
            yours = call.answer.tensor
            if (
                isinstance(made, str)
                or yours is None
                or made.shape not in (call.right.shape, yours.shape)
            ):
                return False
            if call.is_right and not call.agrees(made):
                return False
        return True

    pairs = combinations(filter(may_be, MISTAKES[part]), 2)
    return [(one, two) for one, two in pairs if not one.changes.keys() & two.changes.keys()][
        :PAIRS
    ]


def diagnosis(part: str, found: Sequence[Mistakes]) -> Diagnosis:
    """The first of the explanations, with the names of the others."""
    first, *others = (tuple(one.name for one in mistakes) for mistakes in found)
    wheres = ["; ".join(dict.fromkeys(one.where for one in mistakes)) for mistakes in found[:3]]
    what = " ".join(one.what for one in found[0])
    effect = symptoms()[part].get(first[0], "") if len(first) == 1 else ""
    return Diagnosis(
        first, ", or ".join(dict.fromkeys(wheres)), what, tuple(map(" + ".join, others)), effect
    )


# --- numbers that may be mistyped
# ---


@dataclass(frozen=True)
class Number:
    """name: short, for tables. right: the right value, None if there is none. starts: where the
    search begins.
    """

    name: str
    right: float | None
    starts: tuple[float, ...]

    @property
    def what(self) -> str:
        """A sentence with {value} in it."""
        return str(sentences()["number"][self.name])


@dataclass(frozen=True)
class Family:
    """part: where it is tried, "" for all. where: the step. changes: from the values of its
    numbers, method -> what takes its place."""

    part: str
    where: str
    changes: Callable[[list[float]], Mapping[str, Method]]
    numbers: tuple[Number, ...]


def gelu(v: list[float]) -> Change:
    factor, cubic, half, one = v
    return lambda self, x: half * x * (one + torch.tanh(factor * (x + cubic * x**3)))


ROOT = math.sqrt(2 / math.pi)
CURVE = (
    Number("factor", ROOT, (ROOT, 2.0, -ROOT)),
    Number("coefficient", 0.044715, (0.044715, 0.5)),
    Number("half", 0.5, (0.5,)),
    Number("1 +", 1.0, (1.0,)),
)
SCALE = "the scale of the scores"
MASK = "the causal mask"
ORDER = "the order of mask and scale"
FAMILIES = (
    Family("gelu", "GELU.forward", lambda v: {"gelu": gelu(v)}, CURVE),
    Family("mlp", "the activation between fc1 and fc2", lambda v: {"bend": gelu(v)}, CURVE),
    Family(
        "attention",
        SCALE,
        lambda v: {"scale": lambda s, t: t * v[0]},
        (Number("scores times", None, (0.1, 1.0)),),
    ),
    Family(
        "attention",
        SCALE,
        lambda v: {"scale": lambda s, t: t * v[0] / s.size.d_attention**0.5},
        (Number("scale times", 1.0, (0.5, 2.0, -1.0)),),
    ),
    Family(
        "attention",
        MASK,
        lambda v: {"hide": lambda s, t: t.masked_fill(s.future(t), v[0])},
        (Number("mask of", None, (-1.0, -8.0, -15.0)),),
    ),
    Family(
        "attention",
        MASK,
        lambda v: {"hide": lambda s, t: t + v[0] * s.future(t)},
        (Number("added to the future:", 0.0, (-1.0, -8.0, -15.0)),),
    ),
    Family(
        "attention",
        ORDER,
        lambda v: {"pattern": lambda s, t: s.normalise(s.scale(t.masked_fill(s.future(t), v[0])))},
        (Number("before the scale, mask of", None, (-4.0, -20.0)),),
    ),
    Family(
        "attention",
        ORDER,
        lambda v: {"pattern": lambda s, t: s.normalise(s.scale(t + v[0] * s.future(t)))},
        (Number("before the scale, added to the future:", 0.0, (-4.0, -20.0)),),
    ),
    Family(
        "block",
        "the norms",
        lambda v: {"eps": lambda s: v[0]},
        (Number("eps", 1e-5, (1e-6, 1e-4)),),
    ),
    Family(
        "forward",
        "the final norm",
        lambda v: {"final_norm": final("eps", lambda s: v[0])},
        (Number("final eps", 1e-5, (1e-6, 1e-4)),),
    ),
    Family(
        "mlp",
        "the activation between fc1 and fc2",
        lambda v: {"bend": lambda s, h: s.gelu(h).clamp(max=v[0])},
        (Number("activations cut off at", None, (6.0,)),),
    ),
    Family(
        "loss",
        "the cross entropy",
        lambda v: {
            "surprise": lambda s, y, t: (
                (1 - v[0]) * Computation.surprise(s, y, t) - v[0] * y.log_softmax(-1).mean(-1)
            )
        },
        (Number("label smoothing", 0.0, (0.05,)),),
    ),
    Family(
        "",
        "the result",
        lambda v: {"after": lambda s, y: v[0] * y},
        (Number("result times", 1.0, (1.0,)),),
    ),
)


def fit(part: str, calls: list[Call]) -> Diagnosis | None:
    """The first family that reproduces all answers with some numbers, and these numbers."""
    if not all(
        (t := call.answer.tensor) is not None and t.numel() and t.isfinite().all()
        for call in calls
    ):
        return None
    return next(
        filter(None, (fitted(family, calls) for family in FAMILIES if family.part in (part, ""))),
        None,
    )


def fitted(family: Family, calls: list[Call]) -> Diagnosis | None:
    """The numbers with which a family reproduces all the calls."""

    def made(values: Iterable[float], call: Call) -> Made:
        kind = type(
            "Fitted", (Computation,), dict(family.changes([float(value) for value in values]))
        )
        return outcome_of(kind, call.setting, call.number)

    # Of each model the shortest call: what depends on its sizes must fit both.
    few = {c.setting.name: c for c in sorted(calls, key=lambda c: c.setting.inputs[c.number][1])}

    def misses(values: Iterable[float]) -> np.ndarray:
        """By how much each number of these calls is missed."""
        parts = []
        for call in few.values():
            mine = made(values, call)
            yours = call.answer.tensor
            if (
                isinstance(mine, str)
                or yours is None
                or mine.shape != yours.shape
                or not mine.isfinite().all()
            ):
                raise ArithmeticError
            parts.append((mine.double() - yours.double()).flatten())
        return torch.cat(parts).numpy()

    first = [number.starts[0] for number in family.numbers]
    more = [(n, start) for n, number in enumerate(family.numbers) for start in number.starts[1:]]
    for start in (first, *([*first[:n], other, *first[n + 1 :]] for n, other in more)):
        with suppress(ArithmeticError):
            values = least_squares(
                misses, start, method="lm", diff_step=1e-6, max_nfev=100, **EXACT
            ).x
            if not all(call.agrees(made(values, call)) for call in calls):
                continue
            rows = [
                (n, round(float(value), 9) + 0.0)
                for n, value in zip(family.numbers, values, strict=True)
            ]
            if others := [
                (n, v)
                for n, v in rows
                if n.right is None or abs(v - n.right) > 1e-3 * abs(n.right) + 1e-12
            ]:
                names = tuple(f"{number.name} {value:.5g}" for number, value in others)
                what = " ".join(
                    number.what.format(value=f"{value:.5g}") for number, value in others
                )
                return Diagnosis(names, family.where, what)
    return None


# --- messages
# ---


@dataclass(frozen=True)
class Fault:
    """pattern: searched in "ErrorName: message | line of code", or in what came instead of a
    tensor. parts: where the rule holds, () for all."""

    name: str
    pattern: str
    where: str
    what: str
    parts: tuple[str, ...] = ()


FAULTS = [Fault(**{**one, "parts": tuple(one.get("parts", ()))}) for one in sentences()["fault"]]


# What a call may leave behind it, by the names that an answer has for it.
SIDE_EFFECTS = {name: Fault(**one, pattern="") for name, one in sentences()["left"].items()}


def by_words(part: str, words: str) -> Diagnosis | None:
    """The first rule that holds, for "ErrorName: message | line of code" or what came instead of a
    tensor.
    """
    for fault in FAULTS:
        if (not fault.parts or part in fault.parts) and re.search(fault.pattern, words, re.DOTALL):
            return Diagnosis((fault.name,), fault.where, fault.what)
    return None


def by_answer(part: str, broken: Answer, importing: bool = False) -> Diagnosis | None:
    """The first rule that holds for what came instead of a tensor. While files are imported no
    helper has been called.
    """
    error = f"{broken.error}: {broken.text} | {broken.line.partition(': ')[2]}"
    found = by_words(part, f"result: {broken.text}" if broken.kind == "other" else error)
    return None if importing and found and found.names == ("a helper returns nothing",) else found
