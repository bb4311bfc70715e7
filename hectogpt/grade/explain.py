"""Why a part is wrong: the mistake it may be. Only what reproduces the results is named.

mistakes.py has the known mistakes. Numbers of the formulas that may be mistyped are fitted: a
family is the computation with free numbers in one step. Least squares finds them from a few
answers; they are named only if they then reproduce all answers. Errors, and results that are not
tensors, are diagnosed from their message."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import least_squares

from hectogpt.grade.answer import Answer, Other, Raised, Values
from hectogpt.grade.calls import (
    NOTED,
    Call,
    Computed,
    compute,
    computed,
    difference,
    listed,
    side_effects,
)
from hectogpt.grade.computation import Computation
from hectogpt.grade.mistakes import (
    GRADIENTS,
    MISTAKES,
    ROOT,
    Change,
    Method,
    Mistake,
    Mistakes,
    final,
    sentences,
    symptoms,
    words_of,
)
from hectogpt.grade.result import Diagnosis

EXACT = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-14)  # where least squares end
PAIRS = 3000  # that are tried at most: a second or two


def diagnose(part: str, calls: list[Call]) -> Diagnosis | None:
    """Name the mistake in a part that has failed, by those calls that count: by all of them, or by
    those in one mode."""
    train = [call for call in calls if call.setting.train_mode]
    others = [call for call in calls if not call.setting.train_mode]
    if train and others and is_wrong(train) and not is_wrong(others):
        found = say(Evidence(part, train)) or UNNAMED_IN_TRAIN_MODE
        names = tuple(f"{name} in train mode" for name in found.names)
        return Diagnosis(names, "what depends on self.training", "In train mode: " + found.what)
    return say(Evidence(part, calls)) or (say(Evidence(part, others)) if train else None)


def is_wrong(calls: list[Call]) -> bool:
    """True if a value is wrong, or a gradient."""
    return any(
        not call.is_right or (call.setting.gradient and not call.has_gradients_of())
        for call in calls
    )


UNNAMED_IN_TRAIN_MODE = Diagnosis(
    ("another computation",),
    "",
    "The result differs from that in eval mode, and nothing in it is random.",
)


# --- the rules


class Evidence:
    """The calls of a part that has failed, and facts about them.

    Attributes:
        built: the calls in which the part could be built.
        wrong: those of them with a wrong value.
        results: the tensors of `built`; None where none came back.
    """

    def __init__(self, part: str, calls: list[Call]) -> None:
        self.part = part
        self.calls = calls
        self.built = [
            call
            for call in calls
            if not (isinstance(call.answer, Raised) and call.answer.building)
        ]
        self.wrong = [call for call in self.built if not call.is_right]
        self.results = [call.result for call in self.built]


def say(evidence: Evidence) -> Diagnosis | None:
    """Return what the first rule says that has something to say."""
    return next(filter(None, (rule(evidence) for rule in RULES)), None)


def say_state(evidence: Evidence) -> Diagnosis | None:
    """Diagnose an input that gives another result the second time."""
    firsts = {call.setting.name: call.result for call in evidence.calls if call.place == 0}
    again = [call for call in evidence.calls if call.place == len(call.setting.inputs)]
    pairs = [(call.result, firsts[call.setting.name]) for call in again]
    if all(now is None or was is None or difference(now, was) <= 1e-4 for now, was in pairs):
        return None
    drawn = evidence.part == "generate"
    name = "sampling for greedy" if drawn else "another answer the second time"
    return named(evidence.part, [(name,)])


def say_nan(evidence: Evidence) -> Diagnosis | None:
    if evidence.wrong and all(one is not None and one.isnan().all() for one in evidence.results):
        return named(evidence.part, [("NaN everywhere",)])
    return None


def say_values(evidence: Evidence) -> Diagnosis | None:
    if evidence.wrong and any(one is not None for one in evidence.results):
        return diagnose_values(evidence.part, evidence.built)
    return None


def say_gradient(evidence: Evidence) -> Diagnosis | None:
    """Diagnose calls whose values are right and whose gradients are wrong."""
    if evidence.wrong:
        return None
    part = evidence.part
    calls = [call for call in evidence.built if call.setting.gradient]
    answers = [call.answer for call in calls if isinstance(call.answer, Values)]
    errors = [answer.backward for answer in answers if answer.backward]
    if errors and (found := diagnose_error(part, errors[0])):
        return found
    if fitting := [
        (one.name,)
        for one in GRADIENTS.get(part, ())
        if calls and all(call.has_gradients_of((one,)) for call in calls)
    ]:
        return named(part, fitting)
    wrong = list(dict.fromkeys(name for call in calls for name in call.wrong_gradients()))
    without = [name for name in wrong if any(call.without([name]) for call in calls)]
    if not without or not all(answer.trains for answer in answers):
        return None
    few = without == wrong and len(wrong) <= 4
    return Diagnosis(
        tuple(f"{n} by .data" for n in wrong) if few else ("no gradient of some weights",),
        listed(without),
        "On the way to it something is detached, taken by .data, or computed under no_grad.",
    )


def say_side_effect(evidence: Evidence) -> Diagnosis | None:
    if evidence.wrong:
        return None
    effects = side_effects([call.answer for call in evidence.built])
    return next((effect for name, effect in effects.items() if name not in NOTED), None)


def say_cropped(evidence: Evidence) -> Diagnosis | None:
    """Diagnose a wrong text past the context: it lacks its beginning."""
    if any(not call.setting.counts and any(call.setting.new_tokens) for call in evidence.wrong):
        return named("generate", [("returned text cropped",)])
    return None


def say_error(evidence: Evidence) -> Diagnosis | None:
    """Diagnose the first answer that is not a tensor."""
    answers = [call.answer for call in [*evidence.wrong, *evidence.calls]]
    broken = (answer for answer in answers if isinstance(answer, Raised | Other))
    return next((diagnose_error(evidence.part, answer) for answer in broken), None)


RULES = (say_state, say_nan, say_values, say_gradient, say_side_effect, say_cropped, say_error)


# --- values


def diagnose_values(part: str, calls: list[Call]) -> Diagnosis | None:
    """Return the mistake, the mistyped number, or else the pair of mistakes that reproduces all
    answers; None if there is none."""
    # Small inputs that tell much first: a wrong hypothesis is given up after one.
    calls = sorted(
        calls,
        key=lambda c: (c.setting.size.vocab_size, c.setting.inputs[c.number][1] < 2, c.place),
    )
    if found := [one.name for one in MISTAKES[part] if reproduces((one,), calls)]:
        return named(part, [(name,) for name in found])
    if numbers := fit(part, calls):
        return numbers
    tensors = [call for call in calls if call.result is not None]
    pairs = (pair for pair in pairs_of(part, tensors) if reproduces(pair, calls))
    if both := [(one.name, two.name) for one, two in pairs]:
        return named(part, both)
    if 2 <= len(tensors) < len(calls):  # some calls raised for another reason: the others tell
        return diagnose_values(part, tensors)
    return None


def reproduces(mistakes: Mistakes, calls: list[Call]) -> bool:
    """True if these mistakes together reproduce every answer."""
    return all(call.agrees(computed(mistakes, call.setting, call.number)) for call in calls)


def pairs_of(part: str, calls: list[Call]) -> list[tuple[Mistake, Mistake]]:
    """Return pairs of mistakes that may fit.

    They change different steps, and neither alone raises, gives a shape that is neither right nor
    the submission's, or contradicts an answer that is right."""

    def may_be(mistake: Mistake) -> bool:
        for call in calls:
            made = computed((mistake,), call.setting, call.number)
            yours = call.result
            if isinstance(made, str) or yours is None:
                return False
            if made.shape not in (call.right.shape, yours.shape):
                return False
            if call.is_right and not call.agrees(made):
                return False
        return True

    pairs = combinations(filter(may_be, MISTAKES[part]), 2)
    return [(one, two) for one, two in pairs if not one.changes.keys() & two.changes.keys()][
        :PAIRS
    ]


def named(part: str, found: Sequence[tuple[str, ...]]) -> Diagnosis:
    """Return the diagnosis of the first of these explanations, with the names of the others. Each
    is the name of a mistake in mistakes.toml, or the two of a pair."""
    words = words_of("end") | words_of(part)
    first, *others = found
    wheres = ["; ".join(dict.fromkeys(words[name].where for name in names)) for names in found[:3]]
    return Diagnosis(
        first,
        ", or ".join(dict.fromkeys(wheres)),
        " ".join(words[name].what for name in first),
        tuple(map(" + ".join, others)),
        symptoms()[part].get(first[0], "") if len(first) == 1 else "",
    )


# --- numbers that may be mistyped
# ---


@dataclass(frozen=True)
class Number:
    """A number in a formula that may be mistyped.

    name: as in mistakes.toml, for tables.
    right: the right value, None if there is none.
    starts: where the search begins.
    """

    name: str
    right: float | None
    starts: tuple[float, ...]


@dataclass(frozen=True)
class Family:
    """The computation with free numbers in one step.

    part: where it is tried, "" for all.
    changes: from the values of its numbers, method -> what takes its place.
    """

    part: str
    changes: Callable[[list[float]], Mapping[str, Method]]
    numbers: tuple[Number, ...]


def gelu(v: list[float]) -> Change:
    factor, cubic, half, one = v
    return lambda self, x: half * x * (one + torch.tanh(factor * (x + cubic * x**3)))


CURVE = (
    Number("factor", ROOT, (ROOT, 2.0, -ROOT)),
    Number("coefficient", 0.044715, (0.044715, 0.5)),
    Number("half", 0.5, (0.5,)),
    Number("1 +", 1.0, (1.0,)),
)
FAMILIES = (
    Family("gelu", lambda v: {"gelu": gelu(v)}, CURVE),
    Family("mlp", lambda v: {"bend": gelu(v)}, CURVE),
    Family(
        "attention",
        lambda v: {"scale": lambda s, t: t * v[0]},
        (Number("scores times", None, (0.1, 1.0)),),
    ),
    Family(
        "attention",
        lambda v: {"scale": lambda s, t: t * v[0] / s.size.d_attention**0.5},
        (Number("scale times", 1.0, (0.5, 2.0, -1.0)),),
    ),
    Family(
        "attention",
        lambda v: {"hide": lambda s, t: t.masked_fill(s.future(t), v[0])},
        (Number("mask of", None, (-1.0, -8.0, -15.0)),),
    ),
    Family(
        "attention",
        lambda v: {"hide": lambda s, t: t + v[0] * s.future(t)},
        (Number("added to the future:", 0.0, (-1.0, -8.0, -15.0)),),
    ),
    Family(
        "attention",
        lambda v: {"pattern": lambda s, t: s.normalise(s.scale(t.masked_fill(s.future(t), v[0])))},
        (Number("before the scale, mask of", None, (-4.0, -20.0)),),
    ),
    Family(
        "attention",
        lambda v: {"pattern": lambda s, t: s.normalise(s.scale(t + v[0] * s.future(t)))},
        (Number("before the scale, added to the future:", 0.0, (-4.0, -20.0)),),
    ),
    Family(
        "block",
        lambda v: {"eps": lambda s: v[0]},
        (Number("eps", 1e-5, (1e-6, 1e-4)),),
    ),
    Family(
        "forward",
        lambda v: {"final_norm": final(eps=lambda s: v[0])},
        (Number("final eps", 1e-5, (1e-6, 1e-4)),),
    ),
    Family(
        "mlp",
        lambda v: {"bend": lambda s, h: s.gelu(h).clamp(max=v[0])},
        (Number("activations cut off at", None, (6.0,)),),
    ),
    Family(
        "loss",
        lambda v: {
            "surprise": lambda s, y, t: (
                (1 - v[0]) * Computation.surprise(s, y, t) - v[0] * y.log_softmax(-1).mean(-1)
            )
        },
        (Number("label smoothing", 0.0, (0.05,)),),
    ),
    Family(
        "",
        lambda v: {"after": lambda s, y: v[0] * y},
        (Number("result times", 1.0, (1.0,)),),
    ),
)


def fit(part: str, calls: list[Call]) -> Diagnosis | None:
    """Return the numbers of the first family that reproduces all answers."""
    results = [call.result for call in calls]
    if not all(one is not None and one.numel() and one.isfinite().all() for one in results):
        return None
    families = (family for family in FAMILIES if family.part in (part, ""))
    return next(filter(None, (fitted(part, family, calls) for family in families)), None)


def fitted(part: str, family: Family, calls: list[Call]) -> Diagnosis | None:
    """Return the numbers with which a family reproduces all calls, or None."""

    def made(values: Iterable[float], call: Call) -> Computed:
        kind = type(
            "Fitted", (Computation,), dict(family.changes([float(value) for value in values]))
        )
        return compute(kind, call.setting, call.number)

    # Of each model the shortest call: what depends on its sizes must fit both.
    few = {c.setting.name: c for c in sorted(calls, key=lambda c: c.setting.inputs[c.number][1])}

    def misses(values: Iterable[float]) -> np.ndarray:
        """Return the errors of all numbers. Raises ArithmeticError if they cannot be compared."""
        parts = []
        for call in few.values():
            mine = made(values, call)
            yours = call.result
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
            found = {}
            for number, value in zip(family.numbers, map(float, values), strict=True):
                right = number.right
                if right is None or abs(value - right) > 1e-3 * abs(right) + 1e-9:
                    found[number.name] = f"{round(value, 9) + 0.0:.5g}"
            if found:
                words = words_of("end") | words_of(part)
                names = tuple(f"{name} {value}" for name, value in found.items())
                what = " ".join(words[name].what.format(value=v) for name, v in found.items())
                return Diagnosis(names, words[min(found)].where, what)
    return None


# --- messages


def diagnose_words(part: str, words: str) -> Diagnosis | None:
    """Return what the first rule in mistakes.toml says that matches these words."""
    for rule in sentences()["fault"]:
        is_for_part = part in rule.get("parts", (part,))
        if is_for_part and re.search(rule["pattern"], words, re.DOTALL):
            return Diagnosis((rule["name"],), rule["where"], rule["what"])
    return None


def diagnose_error(part: str, answer: Answer, importing: bool = False) -> Diagnosis | None:
    """Return what the first rule says that matches what came instead of a tensor.

    importing: it arose while the files were imported, so no helper has been called yet.
    """
    if isinstance(answer, Other):
        return diagnose_words(part, f"result: {answer.text}")
    if not isinstance(answer, Raised):
        return None
    line = answer.line.partition(": ")[2]
    found = diagnose_words(part, f"{answer.error}: {answer.text} | {line}")
    return None if importing and found and found.names == ("a helper returns nothing",) else found
