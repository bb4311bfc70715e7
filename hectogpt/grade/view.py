"""What came back of one part, beside what should have come back."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from torch import Tensor

from hectogpt.grade import compare, diagnose, laws
from hectogpt.grade.answers import Answer
from hectogpt.grade.computation import Computation
from hectogpt.grade.runner import Transcript
from hectogpt.grade.settings import Setting, given, order, weights


@dataclass
class View:
    """The answers of one variant of a part: setting -> answers, and the dtype that each setting is judged in."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.answers)


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
    return sum(answer.kind == "error" for answer in answers)


def tolerance_of(part: str, view: View) -> float:
    return max((laws.TOLERANCE[d] for d in view.dtypes.values()), default=laws.TOLERANCE["float64"])


@lru_cache(maxsize=256)
def expected(setting: Setting) -> tuple[Tensor | str, ...]:
    """The right values of a setting, in the order of its answers."""
    made: list[Tensor | str] = []
    for call in order(setting):
        if not setting.gradient:
            made.append(diagnose.outcome(setting.part, (), setting, call))
            continue
        state = {name: value.clone().requires_grad_() for name, value in weights(setting).items()}
        loss = Computation(state, setting.size).run(setting.part, given(setting, call))
        loss.backward()
        made += [loss.detach(), *(state[name].grad for name in ("lm_head.weight", "embeddings.weight"))]  # type: ignore[list-item]
    return tuple(made)


def values_of(setting: Setting, answers: list[Answer]) -> list[Answer]:
    """The results without the gradients."""
    return answers[::3] if setting.gradient and len(answers) > 1 else answers


def symptom_of(answer: Answer) -> str:
    """What came instead of a tensor, in words."""
    if answer.kind == "other":
        return f"returned {answer.text}" if not answer.text.startswith("no ") else answer.text
    return describe(answer)


def describe(error: Answer) -> str:
    at = f", at {compare.short(error.line, 200)}" if error.line else ""
    return f"{error.error}: {compare.short(error.text)}{at}" if error.text else f"{error.error}{at}"
