"""Which known mistake explains what a submission returned. Only what reproduces its results is named."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import (
    compare,
    fit,
    mistakes_attention,
    mistakes_gradient,
    mistakes_layers,
    mistakes_model,
    mistakes_use,
)
from hectogpt.grade.answers import Answer
from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import GRADIENT, TOLERANCE
from hectogpt.grade.mistake import Diagnosis, Mistake, combine
from hectogpt.grade.settings import INPUT, Setting, cotangent, given, gradient_sizes, order, weights

MISTAKES: dict[str, list[Mistake]] = {
    "gelu": mistakes_layers.GELU,
    "mlp": mistakes_layers.MLP,
    "attention": mistakes_attention.ATTENTION,
    "block": mistakes_layers.BLOCK,
    "forward": mistakes_model.FORWARD,
    "generate": mistakes_use.GENERATE,
    "loss": mistakes_use.LOSS,
}
GRADIENTS = mistakes_gradient.GRADIENTS
IN_WORDS = 3  # explanations of the same results that are given in words
PAIRS = 3000  # that are tried at most: a second or two
Outcome = Tensor | str
Given = list[tuple[Setting, int, Answer]]  # setting, number of the call, what came back
_remembered: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}


class Remembering(Computation):
    """Generation and loss change nothing in the forward pass: it is computed once for each input."""

    setting = ""

    def forward(self, ids: Tensor) -> Tensor:
        key = (self.setting, tuple(ids.shape), ids.contiguous().numpy().tobytes())
        if key not in _remembered:
            if len(_remembered) > 20_000:
                _remembered.clear()
            _remembered[key] = super().forward(ids)
        return _remembered[key]


@lru_cache(maxsize=200_000)
def outcome(part: str, numbers: tuple[int, ...], setting: Setting, call: int) -> Outcome:
    """What a part with these mistakes (numbers in MISTAKES[part]; none: the right one) returns for one input."""
    kind = combine(tuple(MISTAKES[part][n] for n in numbers))
    assert kind is not None
    return outcome_of(kind, part, setting, call)


def outcome_of(kind: type[Computation], part: str, setting: Setting, call: int) -> Outcome:
    """What a part of a computation returns for one input, or the name of the error that it raises."""
    if part in ("generate", "loss"):
        kind = type("Remembering", (kind, Remembering), {"setting": setting.name})
    new_tokens = setting.new_tokens[call] if setting.new_tokens else 0
    try:
        with torch.no_grad():
            return kind(weights(setting), setting.size).run(part, given(setting, call), new_tokens)
    except (IndexError, RuntimeError, ValueError, TypeError) as error:
        return type(error).__name__


@lru_cache(maxsize=20_000)
def gradient(part: str, numbers: tuple[int, ...] | None, setting: Setting, call: int) -> Outcome:
    """The flat gradient of a part with these mistakes in it (numbers in GRADIENTS[part]; None: the right one); "none"
    if its result has none."""
    kind = combine(tuple(GRADIENTS[part][n] for n in numbers or ()))
    assert kind is not None
    sizes = gradient_sizes(setting, call)
    state = {name: value.clone().requires_grad_() for name, value in weights(setting).items()}
    x = given(setting, call).clone()
    x.requires_grad_(x.is_floating_point())
    result = kind(state, setting.size).run(part, x)
    if not result.requires_grad:
        return "none"
    result.backward(cotangent(setting, result.shape))
    grads = {name: x.grad if name == INPUT else state[BY_NAME[part].prefix + name].grad for name in sizes}
    flat = [torch.zeros(sizes[n], dtype=torch.float64) if g is None else g.flatten() for n, g in grads.items()]
    return torch.cat(flat)


def explain(part: str, answers: Given, dtype: str) -> Diagnosis | None:
    """The mistake, the number that is another one, or else the pair of mistakes, that reproduces all the answers; None
    if there is none."""
    singles: list[tuple[int, ...]] = [
        (n,) for n in range(len(MISTAKES[part])) if reproduces(part, (n,), answers, dtype)
    ]
    if singles:
        return diagnosis(MISTAKES[part], singles)
    fitted = fit.explain(part, answers, outcome_of, lambda kind: all_same(part, kind, answers, dtype))
    if fitted:
        return fitted
    pairs = [pair for pair in pairs_of(part, answers, dtype) if reproduces(part, pair, answers, dtype)]
    if pairs:
        return diagnosis(MISTAKES[part], pairs)
    factor = constant_factor(part, answers, dtype)
    if factor is not None:
        what = f"Every number is {factor:.6g} times the right one."
        return Diagnosis(("a constant factor",), "the result", what)
    tensors = [one for one in answers if one[2].tensor is not None]
    if 2 <= len(tensors) < len(answers):  # some calls raised for another reason: what the others returned still counts
        return explain(part, tensors, dtype)
    return None


def explain_gradient(part: str, answers: Given, dtype: str) -> Diagnosis | None:
    """The mistake, or pair of mistakes, that reproduces all the gradients; the values are right."""
    listed = GRADIENTS[part]
    for size in (1, 2):
        found: list[tuple[int, ...]] = [
            numbers
            for numbers in combinations(range(len(listed)), size)
            if combine(tuple(listed[n] for n in numbers))
            and all(same_gradient(part, numbers, s, i, a, dtype) for s, i, a in answers)
        ]
        if found:
            return diagnosis(listed, found)
    return None


def same_gradient(
    part: str, numbers: tuple[int, ...], setting: Setting, number: int, answer: Answer, dtype: str
) -> bool:
    """Whether an answer's gradient is that of the mistakes."""
    made = gradient(part, numbers, setting, order(setting)[number])
    if isinstance(made, str) or answer.gradient is None:
        return isinstance(made, str) and answer.gradient is None
    errors = compare.gradient_errors(setting, order(setting)[number], answer, made)
    return max(errors.values(), default=0.0) <= GRADIENT * TOLERANCE[dtype]


def constant_factor(part: str, answers: Given, dtype: str) -> float | None:
    """The one number by which all results differ from the right ones; None if there is none."""
    factors = []
    for setting, number, answer in answers:
        right = outcome(part, (), setting, order(setting)[number])
        if answer.tensor is None or isinstance(right, str) or not right.is_floating_point():
            return None
        if answer.tensor.shape != right.shape or not answer.tensor.isfinite().all():
            return None
        yours = answer.tensor.double()
        factors.append(float((yours * right).sum() / (right * right).sum()))
        if factors[0] == 0 or compare.error(yours / factors[0], right) > TOLERANCE[dtype]:
            return None
    return factors[0] if factors else None


def pairs_of(part: str, answers: Given, dtype: str) -> list[tuple[int, ...]]:
    """Pairs that may fit: they change different steps, and neither alone raises, has another shape, or is wrong where
    the answer is neither."""
    ordered = cheapest_first(answers)

    def may_be(number: int) -> bool:
        for setting, call, answer in ordered:
            right, made = (outcome(part, n, setting, order(setting)[call]) for n in ((), (number,)))
            if answer.tensor is None or isinstance(right, str):
                continue
            if isinstance(made, str) or made.shape not in (right.shape, answer.tensor.shape):
                return False
            if same(answer, right, TOLERANCE[dtype]) and not same(answer, made, TOLERANCE[dtype]):
                return False
        return True

    listed = MISTAKES[part]
    candidates = [number for number in range(len(listed)) if may_be(number)]
    pairs: list[tuple[int, ...]] = list(combinations(candidates, 2))
    return [pair for pair in pairs if not listed[pair[0]].changes.keys() & listed[pair[1]].changes.keys()][:PAIRS]


def reproduces(part: str, numbers: tuple[int, ...], answers: Given, dtype: str) -> bool:
    """Whether the mistakes give every answer, at least one of them a tensor with a number in it: NaN everywhere has
    many causes."""
    told = False
    for setting, number, answer in cheapest_first(answers):
        made = outcome(part, numbers, setting, order(setting)[number])
        if not same(answer, made, TOLERANCE[dtype]):
            return False
        told = told or (isinstance(made, Tensor) and (not made.numel() or bool(made.isfinite().any())))
    return told


def all_same(part: str, kind: type[Computation], answers: Given, dtype: str) -> bool:
    """Whether a computation gives every answer."""
    made = ((a, outcome_of(kind, part, setting, order(setting)[number])) for setting, number, a in answers)
    return all(same(answer, one, TOLERANCE[dtype]) for answer, one in made)


def cheapest_first(answers: Given) -> Given:
    """Small inputs that tell much first: a wrong hypothesis is given up after one."""
    return sorted(answers, key=lambda a: (a[0].inputs[order(a[0])[a[1]]][1] < 2, a[0].size.n_layers, a[1]))


def same(answer: Answer, made: Outcome, tolerance: float) -> bool:
    """Whether an answer is what a hypothesis returns: close, or an error in both."""
    if isinstance(made, str):
        return answer.kind == "error"
    if answer.tensor is None:
        return False
    if made.is_floating_point() != answer.tensor.is_floating_point():
        return False
    return compare.error(answer.tensor, made) <= tolerance


def diagnosis(listed: list[Mistake], found: list[tuple[int, ...]]) -> Diagnosis:
    """The first of the explanations, with the names of the others; the first few in words as well."""
    names = [tuple(listed[n].name for n in numbers) for numbers in found]
    wheres = ["; ".join(dict.fromkeys(listed[n].where for n in numbers)) for numbers in found[:IN_WORDS]]
    what, *others = [" ".join(listed[n].what for n in numbers) for numbers in found[:IN_WORDS]]
    equivalent = tuple(" + ".join(other) for other in names[1:])
    return Diagnosis(names[0], ", or ".join(dict.fromkeys(wheres)), what, equivalent, tuple(others))
