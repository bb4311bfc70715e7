"""Right solutions pass every part, in whatever style, and get no note that they do not deserve."""

from __future__ import annotations

import pytest
from grade_right import NO_CROP, RIGHT
from grade_solutions import judged, module

from hectogpt.grade import compare, laws, view
from hectogpt.grade.answers import answers

PARTS = [part for part in laws.GRADED if part not in ("train", "plot", "converter")]
HERE = {name: source for name, source in RIGHT.items() if "not installed" not in name}  # that one needs a child


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] if n % 4 else []) for n, name in enumerate(HERE)]
)
def test_a_right_solution_passes(name: str) -> None:
    results = judged(HERE[name], *PARTS)
    assert {part: result.outcome for part, result in results.items()} == dict.fromkeys(PARTS, "passed")
    assert [note.symptom for result in results.values() for note in result.notes] == []


def test_a_solution_that_does_not_crop_passes_with_a_note() -> None:
    result = judged(NO_CROP, "generate")["generate"]
    assert result.outcome == "passed"
    assert [note.law for note in result.notes] == ["past the context", "a prompt longer than the context"]


@pytest.mark.thorough
def test_right_ones_stay_a_hundred_times_below_the_tolerance() -> None:
    worst: dict[str, float] = dict.fromkeys(laws.TOLERANCE, 0.0)
    for source in HERE.values():
        modules = {"model_solution": module("model_solution", source)}
        for law in laws.LAWS:
            if law.check != "values" or not law.counts:
                continue
            for dtype in worst:
                for answer, right in zip(
                    answers(law.setting, modules, True, dtype), view.expected(law.setting), strict=True
                ):
                    assert answer.tensor is not None
                    assert not isinstance(right, str)
                    worst[dtype] = max(worst[dtype], compare.error(answer.tensor.reshape(right.shape), right))
    assert worst["float64"] * 100 <= laws.TOLERANCE["float64"]
    assert worst["float32"] * 50 <= laws.TOLERANCE["float32"]
