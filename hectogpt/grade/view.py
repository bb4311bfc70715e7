"""What came back of one part, beside what should have come back."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from hectogpt.grade import compare, diagnose, laws
from hectogpt.grade.answers import Answer
from hectogpt.grade.runner import Transcript
from hectogpt.grade.settings import Setting, order


@dataclass
class View:
    """The answers of one variant of a part: setting -> answers, and the dtype that each setting is judged in."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """The coarser of the dtypes."""
        return "float32" if "float32" in self.dtypes.values() else "float64"


def view_of(part: str, variant: str, transcript: Transcript) -> View:
    """The answers of a variant; float32 where float64 raised and float32 did so less often."""
    view = View()
    for law in laws.laws_of(part):
        name = law.setting.name
        double, single = (transcript.answers.get((name, variant, dtype)) for dtype in ("float64", "float32"))
        if double is None:
            continue
        view.answers[name], view.dtypes[name] = double, "float64"
        if single is not None and errors_in(single) < errors_in(double):
            view.answers[name], view.dtypes[name] = single, "float32"
    return view


def errors_in(answers: list[Answer]) -> int:
    return sum((a.kind == "error") + (a.gradient is None and "gradient" in a.facts) for a in answers)


@lru_cache(maxsize=256)
def expected(setting: Setting) -> tuple[Tensor | str, ...]:
    """The right values of a setting, in the order of its answers."""
    return tuple(diagnose.outcome(setting.part, (), setting, call) for call in order(setting))


def is_right(setting: Setting, number: int, answer: Answer, dtype: str) -> bool:
    """Whether the answer to a call has the right values."""
    value = expected(setting)[number]
    if answer.tensor is None or isinstance(value, str):
        return answer.kind == "error" and isinstance(value, str)
    tensor = answer.tensor.reshape(()) if setting.part == "loss" and answer.tensor.shape == (1,) else answer.tensor
    if setting.part == "generate" and tensor.is_floating_point():
        return False
    return compare.error(tensor, value) <= laws.TOLERANCE[dtype]


def wrong_gradients(setting: Setting, number: int, answer: Answer, dtype: str) -> dict[str, float]:
    """Name -> error of each gradient that is not the right one."""
    right = diagnose.gradient(setting.part, None, setting, order(setting)[number])
    assert isinstance(right, torch.Tensor)
    errors = compare.gradient_errors(setting, order(setting)[number], answer, right)
    return {name: e for name, e in errors.items() if not e <= laws.GRADIENT * laws.TOLERANCE[dtype]}


def symptom_of(answer: Answer) -> str:
    """What came instead of a tensor, in words."""
    if answer.kind == "other":
        return f"returned {answer.text}" if not answer.text.startswith("no ") else answer.text
    return describe(answer)


def describe(error: Answer) -> str:
    at = f", at {compare.short(error.line, 200)}" if error.line else ""
    return f"{error.error}: {compare.short(error.text)}{at}" if error.text else f"{error.error}{at}"
