"""Which known mistake explains what a submission returned. Only what reproduces its results is named."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

from hectogpt.grade import compare, mistakes_attention, mistakes_layers, mistakes_model, mistakes_use
from hectogpt.grade.answers import Answer
from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import TOLERANCE
from hectogpt.grade.mistake import Mistake, combine
from hectogpt.grade.settings import Setting, given, order, weights

MISTAKES: dict[str, list[Mistake]] = {
    "gelu": mistakes_layers.GELU,
    "mlp": mistakes_layers.MLP,
    "attention": mistakes_attention.ATTENTION,
    "block": mistakes_layers.BLOCK,
    "forward": mistakes_model.FORWARD,
    "generate": mistakes_use.GENERATE,
    "loss": mistakes_use.LOSS,
}
TOLD = 3  # explanations of the same results that are told in words
Outcome = Tensor | str
Given = list[tuple[Setting, int, Answer]]  # setting, number of the call, what came back
_remembered: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}


@dataclass(frozen=True)
class Diagnosis:
    """names: the mistake, or both of a pair. equivalent: other names that explain the same results. where, what: the
    second and the third hint. alternatives: what else explains the same results, the first few as sentences."""

    names: tuple[str, ...]
    where: str
    what: str
    equivalent: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """For tables and counts."""
        return " + ".join(self.names)


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


@lru_cache(maxsize=64)
def model_of(setting: Setting) -> dict[str, Tensor]:
    """The setting's weights, made once."""
    return weights(setting)


@lru_cache(maxsize=200_000)
def outcome(part: str, numbers: tuple[int, ...], setting: Setting, call: int) -> Outcome:
    """What a part with these mistakes (numbers in MISTAKES[part]; none: the right one) returns for one input."""
    kind: type[Computation] = Computation
    if numbers:
        combined = combine(tuple(MISTAKES[part][n] for n in numbers))
        assert combined is not None
        kind = combined
    if part in ("generate", "loss"):
        bases = (Remembering,) if kind is Computation else (kind, Remembering)
        kind = type("Remembering", bases, {"setting": setting.name})
    new_tokens = setting.new_tokens[call] if setting.new_tokens else 0
    try:
        with torch.no_grad():
            return kind(model_of(setting), setting.size).run(part, given(setting, call), new_tokens)
    except (IndexError, RuntimeError, ValueError, TypeError) as error:
        return type(error).__name__


def explain(part: str, answers: Given, dtype: str) -> Diagnosis | None:
    """The mistake, or else the pair of mistakes, that reproduces all the answers; None if there is none."""
    singles = [n for n in range(len(MISTAKES[part])) if reproduces(part, (n,), answers, dtype)]
    if singles:
        return diagnosis(part, [(n,) for n in singles])
    pairs: list[tuple[int, ...]] = [pair for pair in pairs_of(part) if reproduces(part, pair, answers, dtype)]
    if pairs:
        return diagnosis(part, pairs)
    factor = constant_factor(part, answers, dtype)
    if factor is not None:
        what = f"Every number is {factor:.6g} times the right one."
        return Diagnosis(("a constant factor",), "the result", what)
    tensors = [one for one in answers if one[2].tensor is not None]
    if 2 <= len(tensors) < len(answers):  # some calls raised for another reason: what the others returned still counts
        return explain(part, tensors, dtype)
    return None


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


@lru_cache(maxsize=16)
def pairs_of(part: str) -> list[tuple[int, int]]:
    """All pairs that change different steps."""
    listed = MISTAKES[part]
    return [
        (a, b)
        for a, b in combinations(range(len(listed)), 2)
        if not listed[a].changes.keys() & listed[b].changes.keys()
    ]


def reproduces(part: str, numbers: tuple[int, ...], answers: Given, dtype: str) -> bool:
    """Whether the mistakes give every answer, at least one of them a tensor."""
    tensors = 0
    for setting, number, answer in cheapest_first(answers):
        made = outcome(part, numbers, setting, order(setting)[number])
        if not same(answer, made, TOLERANCE[dtype]):
            return False
        tensors += isinstance(made, Tensor)
    return tensors > 0


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


def diagnosis(part: str, found: list[tuple[int, ...]]) -> Diagnosis:
    """The first of the explanations, with the names of the others; the first few are told in words as well."""
    listed = MISTAKES[part]
    names = [tuple(listed[n].name for n in numbers) for numbers in found]
    wheres = ["; ".join(dict.fromkeys(listed[n].where for n in numbers)) for numbers in found[:TOLD]]
    what, *others = [" ".join(listed[n].what for n in numbers) for numbers in found[:TOLD]]
    equivalent = tuple(" + ".join(other) for other in names[1:])
    return Diagnosis(names[0], ", or ".join(dict.fromkeys(wheres)), what, equivalent, tuple(others))
