"""Wrong solutions are caught, and their mistakes named; the whole table is thorough."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from grade_solutions import BASE, edited, judged
from grade_wrong import NOTES, WRONG, Wrong

from hectogpt.grade.result import PartResult

SAMPLE = WRONG[::6]


def named(result: PartResult) -> tuple[str, ...]:
    """The diagnosis and its equivalents."""
    found = result.diagnosis
    return () if found is None else (found.id, *found.equivalent)


def test_there_are_enough_and_they_differ() -> None:
    assert len(WRONG) >= 90
    assert len({case.source for case in WRONG}) == len(WRONG)
    assert {case.part for case in WRONG} >= {"gelu", "mlp", "attention", "block", "forward", "generate", "loss"}


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.id)
def test_a_wrong_solution_is_caught_and_named(case: Wrong) -> None:
    result = judged(case.source, case.part)[case.part]
    assert result.outcome == "failed"
    assert result.points == 0
    assert set(named(result)) & set(case.names), named(result)
    assert result.broken[0].symptom


@pytest.mark.thorough
def test_every_wrong_solution_is_caught_and_nine_in_ten_are_named_first() -> None:
    passed, unnamed = [], []
    for case in WRONG:
        result = judged(case.source, case.part)[case.part]
        passed += [case.id] if result.outcome == "passed" else []
        unnamed += [case.id] if not set(named(result)) & set(case.names) else []
    assert passed == []
    assert len(unnamed) <= 0.1 * len(WRONG), unnamed


@pytest.mark.thorough
def test_a_mistake_in_one_part_leaves_the_others_right() -> None:
    """Each part is judged with our own parts below it."""
    parts = ("gelu", "mlp", "attention", "block", "forward", "generate", "loss")
    shapes = [case for case in WRONG if case.names[0] in ("d_ff is not 4 d_model", "bias missing in a layer")]
    for case in [*WRONG[::4], *shapes]:
        if case.names[0] == "layers outside a ModuleList":
            continue  # the model has no layers
        if case.names[0] == "weights not initialised":
            continue
        results = judged(case.source, *parts)
        wrong = [part for part, result in results.items() if result.outcome != "passed"]
        assert wrong == [case.part], case.id


def pairs() -> list[tuple[Wrong, Wrong, str]]:
    """Pairs of edits in one part that change different lines, up to twenty a part."""
    found: dict[str, list[tuple[Wrong, Wrong, str]]] = {}
    for a, b in combinations([case for case in WRONG if case.edits], 2):
        if a.part == b.part and not {old for old, _ in a.edits} & {old for old, _ in b.edits}:
            try:
                found.setdefault(a.part, []).append((a, b, edited(BASE, *a.edits, *b.edits)))
            except AssertionError:  # one edit has taken away the line of the other
                continue
    order = random.Random(5)
    return [pair for listed in found.values() for pair in order.sample(listed, min(20, len(listed)))]


@pytest.mark.slow
def test_of_pairs_both_are_named_in_six_of_ten() -> None:
    cases = pairs()
    assert len(cases) >= 80
    both, passed = 0, []
    for a, b, source in cases:
        result = judged(source, a.part)[a.part]
        passed += [f"{a.id} + {b.id}"] if result.outcome == "passed" else []
        both += any(any(x in name for x in a.names) and any(y in name for y in b.names) for name in named(result))
    assert passed == []
    assert both >= 0.6 * len(cases), f"{both} of {len(cases)}"


@pytest.mark.parametrize(("part", "source"), NOTES, ids=range(len(NOTES)))
def test_what_the_assignment_does_not_ask_for_is_a_note(part: str, source: str) -> None:
    result = judged(source, part)[part]
    assert result.outcome == "passed"
    assert result.notes


@pytest.mark.thorough
def test_a_pair_is_named() -> None:
    scale = ("scores = scores / math.sqrt(self.d_attention)", "scores = scores / math.sqrt(H)")
    values = ("v = self.W_v(x)", "v = self.W_k(x)")
    result = judged(edited(BASE, scale, values), "attention")["attention"]
    assert result.diagnosis is not None
    assert set(result.diagnosis.names) == {"scale by n_heads", "W_k for values too"}


def test_what_no_mistake_explains_is_told_by_its_first_place() -> None:
    """Nothing is named that does not reproduce the numbers."""
    strange = ("z = weights @ v", "z = weights @ v + 0.01 * torch.arange(B)[:, None, None, None]")
    result = judged(edited(BASE, strange), "attention")["attention"]
    assert result.outcome == "failed"
    assert result.diagnosis is None
    assert "yours" in result.broken[0].symptom
    assert "row 1" in result.broken[0].symptom
    assert "first row" in result.hint or "one row" in result.hint
