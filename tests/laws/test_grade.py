"""Solutions: right ones pass every part in whatever style, wrong ones are caught and their mistakes named. Laws and known
mistakes as data: each rests on a sentence, each shows, none is named for another. And train.py."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from grade_solutions import BASE, TEXTBOOK, TRAIN, edited, judged, module, transcript
from grade_tables import (
    LOOPS,
    NO_CROP,
    NOTED_CHANGES,
    NOTES,
    RIGHT,
    RIGHT_CHANGES,
    TOKEN,
    TWO,
    WRONG,
    WRONG_CHANGES,
    Change,
    Wrong,
)
from helpers import ROOT, one_in

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import calls, laws
from hectogpt.grade.answer import Raised, Values
from hectogpt.grade.calls import Call
from hectogpt.grade.child import answers
from hectogpt.grade.judge_part import judge_part
from hectogpt.grade.laws import SETTINGS
from hectogpt.grade.mistakes import GRADIENTS, MISTAKES, symptoms, words_of
from hectogpt.grade.result import PartResult
from tools.research.symptoms import measure

NOTHING, LOOP = Raised(error="Error"), set(words_of("loop"))
MODEL = ("gelu", "mlp", "attention", "block", "forward", "generate", "loss")
HERE = {name: source for name, source in RIGHT.items() if "not installed" not in name}  # that one needs a child


def named(result: PartResult) -> tuple[str, ...]:
    """The diagnosis and its equivalents."""
    return (result.diagnosis.id, *result.diagnosis.equivalent) if result.diagnosis else ()


@pytest.mark.parametrize("name", one_in(10, HERE))
def test_a_right_solution_passes_without_a_note_far_below_the_tolerance(name: str) -> None:
    found = transcript(HERE[name], MODEL)
    results = [judge_part(part, found) for part in MODEL]
    assert {result.outcome for result in results} == {"passed"}
    assert [note.symptom for result in results for note in result.notes] == []
    solution = module("model_solution", HERE[name])
    for setting in (one for one in laws.SETTINGS.values() if one.counts and one.part in MODEL):
        single = ("float32", answers(setting, solution, True, "float32"))
        for (dtype, made), times in ((found.answers[setting.name, "patched"], 100), (single, 50)):
            calls = [Call(setting, place, one, dtype) for place, one in enumerate(made)]
            assert max(call.error_against(call.right) for call in calls) * times <= laws.TOLERANCE[dtype]


@pytest.mark.parametrize(("part", "source"), NOTES, ids=range(len(NOTES)))
def test_what_the_assignment_does_not_ask_for_is_a_note(part: str, source: str) -> None:
    result = judged(source, part)[part]
    assert result.outcome == "passed"
    assert result.notes
    if source == NO_CROP:
        assert [note.law for note in result.notes] == ["past the context", "a prompt longer than the context"]


def test_all_parts_are_there_and_no_two_are_equal() -> None:
    assert len({case.source for case in WRONG}) == len(WRONG)
    assert {case.part for case in WRONG} == set(MODEL)


@pytest.mark.parametrize("case", one_in(6, WRONG, lambda one: f"{one.part}: {one.names[0]}"))
def test_a_wrong_solution_is_caught_and_named(case: Wrong) -> None:
    result = judged(case.source, case.part)[case.part]
    assert (result.outcome, result.points) == ("failed", 0)
    assert set(named(result)) & set(case.names), named(result)
    assert result.broken[0].symptom


@pytest.mark.thorough
@pytest.mark.parametrize("every", [12, pytest.param(4, marks=pytest.mark.slow)])
def test_a_mistake_in_one_part_leaves_the_others_right(every: int) -> None:
    """Each part is judged with our own parts below it."""
    shapes = [case for case in WRONG if case.names[0] in ("d_ff is not 4 d_model", "bias missing in a layer")]
    for case in [*WRONG[::every], *shapes]:
        if case.names[0] == "layers outside a ModuleList":
            continue  # the model has no layers; no part of MODEL
        results = judged(case.source, *MODEL)
        assert [part for part, result in results.items() if result.outcome != "passed"] == [case.part], case.names


def test_a_mistake_in_the_constructor_costs_once_and_an_error_at_import_is_no_helpers() -> None:
    for new, outcome in (
        (TWO + "\n        self.embeddings.weight = self.lm_head.weight", "failed"),
        (TWO[:-13] + ")", "changed"),
    ):
        results = judged(edited(BASE, (TWO, new)), *MODEL[3:], "train", train=TRAIN)  # what a whole model is part of
        wrong = {part: result for part, result in results.items() if result.outcome != "passed"}
        assert {part: result.outcome for part, result in wrong.items()} == {"forward": outcome}
        assert wrong["forward"].diagnosis
    results = judged(f"nothing = None\nnothing.at_all\n{BASE}", *MODEL)
    assert {(result.outcome, result.diagnosis) for result in results.values()} == {("blocked", None)}


def test_what_no_mistake_explains_is_told_by_its_first_place_and_soon() -> None:
    """Nothing is named that does not reproduce the numbers."""
    strange = ("z = weights @ v", "z = weights @ v + 0.01 * torch.arange(B)[:, None, None, None]")
    found = transcript(edited(BASE, strange), ("attention",))
    began = time.process_time()
    result = judge_part("attention", found)
    assert time.process_time() - began < 4  # half of that is usual
    assert (result.outcome, result.diagnosis) == ("failed", None)
    assert re.search(r"row 1, .*yours .*expected", result.broken[0].symptom)


def test_a_stub_is_not_started_and_blocks_what_rests_on_it() -> None:
    """The starter's return torch.empty(1), which broadcasts; a class may be missing."""
    stub, after = "return torch.empty(1)\n", "\nclass CausalAttention"
    results = judged(edited(BASE, (f"return out\n{after}", stub + after), ("return loss\n", stub)), *MODEL)
    found = {part: result.outcome for part, result in results.items() if result.outcome != "passed"}
    assert found == dict.fromkeys(("mlp", "loss"), "not started")
    results = judged(edited(BASE, ("class DecoderBlock(", "class Block(")), *MODEL)
    found = {part: result.outcome for part, result in results.items() if result.outcome != "passed"}
    assert found == {"block": "not started", **dict.fromkeys(("forward", "generate", "loss"), "blocked")}


def test_what_did_not_come_back_passes_nobody() -> None:
    """A child that dies with the submission's own lower parts leaves no answers there; none may count as right."""
    found = transcript(edited(BASE, (TOKEN, TOKEN.replace("argmax", "argmin"))), ("generate",))
    found.answers = {key: made for key, made in found.answers.items() if key[1] != "own"}
    assert judge_part("generate", found).outcome == "failed"
    del found.answers["generate", "patched"]
    assert judge_part("generate", found).outcome == "grader fault"


# --- the textbook's own files, as a kit gives them: its mask is added -------------------------------------------------

MASKED, CROP = "scores + self.causal_mask[:, :, :seq, :seq]", "logits = self(x[:, -self.config.context_length :])"
# part, old and new text, the name that is to be found
TEXTBOOK_MISTAKES: tuple[tuple[str, str, str, str], ...] = (
    ("attention", MASKED, "scores.masked_fill(self.causal_mask[:, :, :seq, :seq] == 0, -math.inf)", "mask inverted"),
    ("attention", MASKED, "scores * self.causal_mask[:, :, :seq, :seq]", "additive mask multiplied"),
    ("attention", MASKED, "scores + self.causal_mask", "mask not sliced"),
    ("attention", MASKED, "scores - self.causal_mask[:, :, :seq, :seq]", "mask of plus infinity"),
    ("attention", f"({MASKED}, dim=-1)", "(scores, dim=-1) + self.causal_mask[:, :, :seq, :seq]", "minus infinity after softmax"),
    ("attention", f"({MASKED}, dim=-1)", "(scores, dim=-1) * (self.causal_mask[:, :, :seq, :seq] == 0)", "mask after softmax"),
    ("generate", "logits[:, -1].argmax", "logits.argmax", "the new token lacks an axis"),
    ("generate", "argmax(dim=-1, keepdim=True)", "argmax(dim=-1)", "the new token lacks an axis"),
    ("forward", "arange(seq", "arange(x.shape[0]", "positions from the batch axis"),
)  # fmt: skip


@pytest.mark.parametrize("case", one_in(3, TEXTBOOK_MISTAKES, lambda case: case[2]))
def test_a_mistake_in_the_textbook_is_named(case: tuple[str, str, str, str]) -> None:
    part, old, new, name = case
    result = judged(edited(TEXTBOOK, (old, new)), part)[part]
    assert result.outcome == "failed"
    assert name in named(result)


# --- laws and known mistakes as data ----------------------------------------------------------------------------------


STUDENTS_PAGE = ROOT / "docs" / "assignment-student.md"
IN_NOTES = {"returned text cropped", "one token at least"}  # show in laws of their own


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
    made = [Call(s, n, NOTHING, "float64") for s in asked for n in range(len(s.inputs))]
    return [Call(c.setting, c.place, Values(tensors={"": c.right}), c.dtype) for c in made]


@pytest.mark.parametrize("part", MISTAKES)
def test_every_known_mistake_shows_a_hundred_times_above_the_tolerance(part: str) -> None:
    """In float64. Right results are no mistake; some pairs cancel out, so that only failing parts are explained."""
    right, listed = calls_of(part), MISTAKES[part]
    words = words_of("end") | words_of(part)
    assert len({mistake.name for mistake in listed}) == len(listed)
    for mistake in listed:
        worst = max(c.error_against(calls.result_with((mistake,), c.setting, c.number)) for c in right)
        assert worst >= 100 * laws.TOLERANCE["float64"] or mistake.name in IN_NOTES, mistake.name
        assert words[mistake.name].what.endswith((".", ".)", "?)."))


@pytest.mark.parametrize("part", GRADIENTS)
def test_every_known_mistake_of_a_gradient_leaves_the_values_right_and_shows(part: str) -> None:
    setting = SETTINGS[part]
    right, value = calls.gradients_with((), setting, 0), Call(setting, 0, NOTHING, "float64").right
    assert right is not None
    for mistake in GRADIENTS[part]:
        made = calls.gradients_with((mistake,), setting, 0)
        assert made is None or not all(torch.allclose(made[name], right[name]) for name in right), mistake.name
        same = Call(setting, 0, Values(tensors={"": value}), "float64")
        assert same.agrees(calls.result_with((mistake,), setting, 0)), mistake.name


def test_every_mistake_says_what_its_author_sees() -> None:
    for part, listed in MISTAKES.items():
        known = {mistake.name for mistake in (*listed, *GRADIENTS.get(part, ()))}
        assert set(symptoms()[part]) == known, "python -m tools.research.symptoms writes them"
        assert all(symptom.endswith(".") for symptom in symptoms()[part].values())
    assert set(symptoms()["loop"]) == LOOP


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
    torch.testing.assert_close(made["y"], calls.result_with((), SETTINGS["attention"], 0))


# --- train.py --------------------------------------------------------------------------------------------------------


def watched(changes: Sequence[Change]) -> list[Change]:
    return [one for one in changes if one.part in ("train", "plot")]


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # losses that are kept with their graph
@pytest.mark.parametrize("change", one_in(6, watched(WRONG_CHANGES), lambda one: one.name or "nothing returned"))
def test_a_mistake_in_the_loop_is_named_and_a_wrong_picture_fails(change: Change) -> None:
    result = judged(BASE, change.part, train=edited(TRAIN, (change.old, change.new)))[change.part]
    assert (result.outcome, result.notes) == ("failed", [])
    assert (result.diagnosis.id if result.diagnosis else "") == change.name * (change.part == "train"), result.why()


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("change", one_in(4, watched(NOTED_CHANGES + RIGHT_CHANGES)))
def test_what_was_changed_in_the_loop_is_a_note(change: Change) -> None:
    result = judged(BASE, change.part, train=edited(TRAIN, (change.old, change.new)))[change.part]
    assert result.outcome == "passed", result.why()
    assert [note.law for note in result.notes] == [change.name] * (change in NOTED_CHANGES)


def test_every_mistake_of_the_loop_has_a_wrong_loop() -> None:
    assert [name for name, _, _ in LOOPS] == list(dict.fromkeys(name for name, _, _ in LOOPS))
    assert {name for name, _, _ in LOOPS} == LOOP
