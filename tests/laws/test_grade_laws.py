"""Laws and known mistakes as data: each rests on a sentence, each shows, none is named for another. And train.py."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from grade_solutions import BASE, TRAIN, edited, judged, module
from helpers import ROOT
from wrong_assignments import RIGHT, WRONG, Change

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import calls, laws, train_case
from hectogpt.grade.calls import Call
from hectogpt.grade.computation import symptoms
from hectogpt.grade.laws import SETTINGS
from hectogpt.grade.mistakes import GRADIENTS, MISTAKES
from hectogpt.grade.run_part import Answer
from tools.symptoms import measure

IN_ORDER = [list(range(4 * n, 4 * n + 4)) for n in range(train_case.STEPS)]
STUDENTS_PAGE = ROOT / "docs" / "assignment-student.md"
PAST_THE_CONTEXT = {"returned text cropped"}  # shows in a law of its own


def test_every_part_with_points_is_graded_and_every_law_says_what_it_rests_on() -> None:
    assert {name for name, part in BY_NAME.items() if part.points} <= set(laws.GRADED)
    assert len({(one.part, one.law) for one in SETTINGS.values()}) == len(SETTINGS)
    assert all(laws.settings_of(part)[0].counts for part in laws.GRADED)
    assert all(one.says.endswith(".") for one in SETTINGS.values())


def test_two_processes_get_the_same_weights_and_nothing_is_trivial() -> None:
    for setting in (SETTINGS["attention"], SETTINGS["forward, three layers"]):
        before = laws.weights(setting)
        laws.weights.cache_clear()
        torch.rand(3)  # another state of the global generator
        for name, value in laws.weights(setting).items():
            assert torch.equal(value, before[name])
            assert value.std() > 0.1
        axes = [setting.size.d_model, setting.size.n_heads, setting.size.d_attention, setting.size.context_length]
        assert len({*axes, *setting.inputs[0]}) == len(axes) + 2  # no two axes can be taken for each other


def calls_of(part: str) -> list[Call]:
    """The right answers in every setting of a part whose values count."""
    asked = [setting for setting in laws.settings_of(part) if setting.counts]
    made = [Call(s, n, Answer("error"), "float64") for s in asked for n in range(len(s.inputs))]
    return [Call(c.setting, c.place, Answer("tensor", {"": c.right}), c.dtype) for c in made]


@pytest.mark.parametrize("part", MISTAKES)
def test_every_known_mistake_shows_a_hundred_times_above_the_tolerance(part: str) -> None:
    """In float64. Right results are no mistake; some pairs cancel out, so that only failing parts are explained."""
    right, listed = calls_of(part), MISTAKES[part]
    assert len({mistake.name for mistake in listed}) == len(listed)
    for mistake in listed:
        worst = max(c.error_against(calls.outcome((mistake,), c.setting, c.number)) for c in right)
        assert worst >= 100 * laws.TOLERANCE["float64"] or mistake.name in PAST_THE_CONTEXT, mistake.name
        assert mistake.what.endswith((".", ".)", "?)."))


@pytest.mark.parametrize("part", GRADIENTS)
def test_every_known_mistake_of_a_gradient_leaves_the_values_right_and_shows(part: str) -> None:
    setting = SETTINGS[part]
    right, value = calls.gradient((), setting, 0), Call(setting, 0, Answer("error"), "float64").right
    assert right is not None
    for mistake in GRADIENTS[part]:
        made = calls.gradient((mistake,), setting, 0)
        assert made is None or not all(torch.allclose(made[name], right[name]) for name in right), mistake.name
        same = Call(setting, 0, Answer("tensor", {"": value}), "float64")
        assert same.agrees(calls.outcome((mistake,), setting, 0)), mistake.name


def test_every_mistake_says_what_its_author_sees() -> None:
    for part, listed in MISTAKES.items():
        known = {mistake.name for mistake in (*listed, *GRADIENTS.get(part, ()))}
        assert set(symptoms()[part]) == known, "python -m tools.symptoms writes them"
        assert all(symptom.endswith(".") for symptom in symptoms()[part].values())
    loops = {loop.name for loop in train_case.MISTAKES} | {name for _, name, _ in train_case.BATCHES}
    assert set(symptoms()["train"]) == loops


@pytest.mark.thorough
def test_a_symptom_is_measured_again() -> None:
    for part, name in (("attention", "no causal mask"), ("generate", "context does not grow"), ("loss", "no shift")):
        (mistake,) = (one for one in MISTAKES[part] if one.name == name)
        assert measure(part, mistake) == symptoms()[part][name]


def test_the_students_page_says_how_to_get_an_input() -> None:
    (lines,) = re.findall(
        r"```python\n(from hectogpt.grade.*?)```", STUDENTS_PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    made: dict[str, Any] = {}
    module("model_solution", BASE)
    exec(lines, made)
    torch.testing.assert_close(made["y"], calls.outcome((), SETTINGS["attention"], 0))


# --- train.py --------------------------------------------------------------------------------------------------------

# Of tests/wrong_assignments.py: the mistake, or words of the symptom; words of a note. Others pass without one.
NAMED = {
    "no zero_grad": "no zero_grad",
    "zero_grad after backward": "no gradient at the step",
    "no step": "no optimizer step",
    "not clipped": "no clipping",
    "clipped by value": "clipping by value",
    "norm after clipping": "norm after clipping",
    "norms summed": "norms summed",
    "one batch for ever": "one batch for ever",
    "one row a batch": "batches of another size",
    "batches overlap": "batches overlap",
    "lists swapped": "loss of step 1: yours",
    "nothing returned": "returned no losses",
}
NOTED = {
    "tensors kept": "memory grows",
    "learning rate left out": "another optimizer or schedule",
    "another weight decay": "another optimizer or schedule",
    "loss after the step": "another optimizer or schedule",
    "plotted, and an error": "after the losses were recorded",
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # losses that are kept with their graph
@pytest.mark.parametrize("change", [one for one in WRONG + RIGHT if one.part == "train"], ids=lambda one: one.name)
def test_a_mistake_in_the_loop_is_named_and_what_was_changed_is_a_note(change: Change) -> None:
    result = judged(BASE, "train", train=edited(TRAIN, (change.old, change.new)))["train"]
    assert result.outcome == ("failed" if change.name in NAMED else "passed")
    assert NAMED.get(change.name, "") in (f"{result.diagnosis}" if result.diagnosis else result.why())
    assert [change.name] * (change.name in NOTED) == [change.name for _ in result.notes]
    assert all(NOTED[change.name] in note.law + note.symptom for note in result.notes)


def test_every_mistake_of_the_loop_shows_with_clipping_or_without() -> None:
    right = {
        setting: train_case.curve(setting, IN_ORDER) for setting in (SETTINGS["train"], SETTINGS["train, clipped"])
    }
    runs = [train_case.Run(setting, *curve, IN_ORDER) for setting, curve in right.items()]
    assert all(float(run.losses[-1]) < float(run.losses[0]) - 0.1 for run in runs)
    assert [loop.name for loop in train_case.MISTAKES if not any(run.difference(loop) for run in runs)] == []
