"""The tables of solutions: right ones pass every part in whatever style, wrong ones are caught and their mistakes named."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from grade_solutions import BASE, TEXTBOOK, edited, judged, module, transcript
from grade_tables import NO_CROP, NOTES, OUT, RIGHT, SCALE, TOKEN, WRONG, Wrong

from hectogpt.grade import laws, outcomes
from hectogpt.grade.calls import Call
from hectogpt.grade.child import Absent, Finder, import_submission
from hectogpt.grade.result import PartResult
from hectogpt.grade.run_part import answers

MODEL = ("gelu", "mlp", "attention", "block", "forward", "generate", "loss")
HERE = {name: source for name, source in RIGHT.items() if "not installed" not in name}  # that one needs a child


def named(result: PartResult) -> tuple[str, ...]:
    """The diagnosis and its equivalents."""
    return (result.diagnosis.id, *result.diagnosis.equivalent) if result.diagnosis else ()


# --- right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] if n % 4 else []) for n, name in enumerate(HERE)]
)
def test_a_right_solution_passes_without_a_note(name: str) -> None:
    results = judged(HERE[name], *MODEL)
    assert {result.outcome for result in results.values()} == {"passed"}
    assert [note.symptom for result in results.values() for note in result.notes] == []


@pytest.mark.thorough
def test_right_ones_stay_a_hundred_times_below_the_tolerance() -> None:
    worst: dict[str, float] = dict.fromkeys(laws.TOLERANCE, 0.0)
    for source in HERE.values():
        solution = module("model_solution", source)
        for setting in (one for one in laws.SETTINGS.values() if one.counts and one.part in MODEL):
            for dtype in worst:
                made = answers(setting, solution, True, dtype)
                calls = [Call(setting, place, one, dtype) for place, one in enumerate(made)]
                worst[dtype] = max(worst[dtype], *(call.error for call in calls))
    assert worst["float64"] * 100 <= laws.TOLERANCE["float64"]
    assert worst["float32"] * 50 <= laws.TOLERANCE["float32"]


@pytest.mark.parametrize(("part", "source"), NOTES, ids=range(len(NOTES)))
def test_what_the_assignment_does_not_ask_for_is_a_note(part: str, source: str) -> None:
    result = judged(source, part)[part]
    assert result.outcome == "passed"
    assert result.notes
    if source == NO_CROP:
        assert [note.law for note in result.notes] == ["past the context", "a prompt longer than the context"]


# --- wrong ------------------------------------------------------------------------------------------------------------


def test_all_parts_are_there_and_no_two_are_equal() -> None:
    assert len({case.source for case in WRONG}) == len(WRONG)
    assert {case.part for case in WRONG} == set(MODEL)


@pytest.mark.parametrize(
    "case",
    [pytest.param(one, id=one.id, marks=[pytest.mark.thorough] if n % 6 else []) for n, one in enumerate(WRONG)],
)
def test_a_wrong_solution_is_caught_and_named(case: Wrong) -> None:
    result = judged(case.source, case.part)[case.part]
    assert (result.outcome, result.points) == ("failed", 0)
    assert set(named(result)) & set(case.names), named(result)
    assert result.broken[0].symptom


@pytest.mark.thorough
def test_a_mistake_in_one_part_leaves_the_others_right() -> None:
    """Each part is judged with our own parts below it."""
    shapes = [case for case in WRONG if case.names[0] in ("d_ff is not 4 d_model", "bias missing in a layer")]
    for case in [*WRONG[::4], *shapes]:
        if case.names[0] == "layers outside a ModuleList":
            continue  # the model has no layers; no part of MODEL
        results = judged(case.source, *MODEL)
        assert [part for part, result in results.items() if result.outcome != "passed"] == [case.part], case.id


def test_both_mistakes_of_a_pair_are_named() -> None:
    source = edited(BASE, (SCALE, "scores = scores / C ** 0.5"), (OUT, "out = z @ self.W_o.weight.T"))
    assert "scale by d_model + W_o without bias" in named(judged(source, "attention")["attention"])


def test_what_no_mistake_explains_is_told_by_its_first_place_and_soon() -> None:
    """Nothing is named that does not reproduce the numbers."""
    strange = ("z = weights @ v", "z = weights @ v + 0.01 * torch.arange(B)[:, None, None, None]")
    found = transcript(edited(BASE, strange), ("attention",))
    began = time.process_time()
    result = outcomes.judge_part("attention", found)
    assert time.process_time() - began < 4  # half of that is usual
    assert (result.outcome, result.diagnosis) == ("failed", None)
    assert re.search(r"row 1, .*yours .*expected", result.broken[0].symptom)


def test_a_stub_is_not_started_and_blocks_what_rests_on_it() -> None:
    """The starter's return torch.empty(1), which broadcasts; a class may be missing."""
    ends = {"mlp": "return out\n\nclass CausalAttention", "loss": "return loss\n"}
    for part, old in ends.items():
        results = judged(edited(BASE, (old, old.replace(old.split("\n")[0], "return torch.empty(1)"))), *MODEL)
        assert {p: r.outcome for p, r in results.items() if r.outcome != "passed"} == {part: "not started"}
    results = judged(edited(BASE, ("class DecoderBlock(", "class Block(")), *MODEL)
    found = {part: result.outcome for part, result in results.items() if result.outcome != "passed"}
    assert found == {"block": "not started", **dict.fromkeys(("forward", "generate", "loss"), "blocked")}


def test_lazy_annotations_and_packages_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the child: `Float[Tensor, ...]` raises when it is evaluated, before Python 3.14."""
    old = "def forward(self, x):\n        h = self.fc1(x)"
    source = edited(BASE, (old, old.replace("x):", "x: Float[Tensor, ...]):")))
    top = "import nowhere_installed\nfrom tensorflow import keras\nfrom jaxtyping import Float\nmodel = keras.Model()\n"
    (tmp_path / "model_solution.py").write_text(top + source)
    finder = Finder(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("model_solution", "nowhere_installed", "tensorflow"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # remembered, to be put back
        del sys.modules[name]
    monkeypatch.setattr(Absent, "importing", True)
    modules, errors = import_submission(["model_solution"], finder)
    assert (set(modules), errors, finder.missing) == ({"model_solution"}, {}, {"nowhere_installed"})
    assert modules["model_solution"].__file__ == str(tmp_path / "model_solution.py")
    with pytest.raises(RuntimeError, match="not available while grading"):
        modules["model_solution"].model()


def test_what_did_not_come_back_passes_nobody() -> None:
    """A child that dies with the submission's own lower parts leaves no answers there; none may count as right."""
    found = transcript(edited(BASE, (TOKEN, TOKEN.replace("argmax", "argmin"))), ("generate",))
    found.calls = {key: made for key, made in found.calls.items() if key[1] != "own"}
    assert outcomes.judge_part("generate", found).outcome == "failed"
    del found.calls["generate", "patched"]
    assert outcomes.judge_part("generate", found).outcome == "grader fault"


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


def test_mistakes_in_the_textbook_are_named() -> None:
    for part, old, new, name in TEXTBOOK_MISTAKES:
        result = judged(edited(TEXTBOOK, (old, new)), part)[part]
        assert result.outcome == "failed"
        assert name in named(result)
