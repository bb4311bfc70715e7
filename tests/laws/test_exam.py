"""Questions on known mistakes: each has one answer; sheets of an exam differ, and are equally hard."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from hectogpt.exam import questions
from hectogpt.exam.labs import (
    LABS,
    RIGHT,
    VARIANTS,
    WORDS,
    Outcome,
    differ,
    mistakes_of,
    outcome,
    shown_inputs,
    unlike_cells,
)
from hectogpt.exam.questions import KINDS, Draw, Question, block_of, draw, text_of, wrong_rows
from hectogpt.exam.sheets import checksum, make_sheets
from hectogpt.grade.mistakes import GRADIENTS, MISTAKES, words_of

LEVELS = (1, 2, 3)


def is_seen(lab: str, one: Outcome, two: Outcome) -> bool:
    return one.fault != two.fault or (not one.fault and any(unlike_cells(lab, one, two)))


def check(question: Question, variant: int) -> None:
    """Run all that is offered: one choice fits, and as many are left to a hasty reader as the level says."""
    lab = question.lab
    run = outcome.__wrapped__
    names = [choice.name for choice in question.choices]
    assert len({choice.words for choice in question.choices}) == len(names) == KINDS[question.kind]
    if question.kind == "experiment":
        one, two = ([run(lab, name, (given,), variant) for given in names] for name in question.mistakes)
        right = [run(lab, RIGHT, (given,), variant) for given in names]
        told = [is_seen(lab, a, b) for a, b in zip(one, two, strict=True)]
        assert [place for place, tells in enumerate(told) if tells] == [question.answer], question
        wrong = [is_seen(lab, a, r) or is_seen(lab, b, r) for a, b, r in zip(one, two, right, strict=True)]
        assert sum(wrong) == question.level
        return
    made = [run(lab, name, shown_inputs(lab), variant) for name in names]
    assert all(is_seen(lab, a, b) for n, a in enumerate(made) for b in made[:n]), question
    assert names[question.answer] == question.mistakes[0]
    if question.kind == "symptom":
        blocks = [block_of(lab, WORDS["seen"], one) for one in made]
        assert [n for n, block in enumerate(blocks) if block == question.shown[-1]] == [question.answer], question
    hasty = [wrong_rows(lab, variant, name) for name in names]
    assert hasty.count(hasty[question.answer]) == question.level


def all_questions(lab: str, variant: int, names: list[str]) -> Iterator[Question]:
    """Questions of every kind and level about some mistakes of a lab."""
    for level in LEVELS:
        for kind in ("symptom", "predict"):
            for name in names:
                now = Draw(random.Random(f"{name} {variant}"), lab, variant, kind, level)
                if found := questions.of_outcomes(now, name):
                    yield found
        for pair in questions.experiments(lab, level, variant):
            if set(pair) & set(names):
                yield questions.experiment(Draw(random.Random(0), lab, variant, "experiment", level), *pair)


@pytest.mark.parametrize("lab", LABS)
def test_one_choice_is_the_answer(lab: str) -> None:
    found = list(all_questions(lab, 0, list(mistakes_of(lab))[1::7]))
    assert found
    for question in found:
        check(question, 0)


# All variants take ten minutes: --thorough --slow.
@pytest.mark.thorough
@pytest.mark.parametrize("variant", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, VARIANTS))])
@pytest.mark.parametrize("lab", LABS)
def test_one_choice_is_the_answer_of_every_question(lab: str, variant: int) -> None:
    for question in all_questions(lab, variant, list(mistakes_of(lab))):
        check(question, variant)


def test_every_known_mistake_is_asked_about_or_left_out_with_a_reason() -> None:
    """A lab shows each of its mistakes. What has no fixed outcome (fitted numbers, messages of errors, randomness, what
    a call leaves changed) is no computation of the catalogue."""
    asked: set[tuple[str, str]] = set()
    for lab in LABS:
        for name in filter(None, mistakes_of(lab)):
            if any(differ(lab, name, RIGHT, shown_inputs(lab), v) for v in range(VARIANTS)):
                part, _, short = name.rpartition(": ")
                asked.add((part or LABS[lab]["part"], short))
    pairs = [(n, p) for n in ("forward", "generate") for p in questions.experiments(n, 1, 0)]
    asked |= {(part, name) for part, pair in pairs for name in pair if name}
    known = {(part, one.name) for table in (MISTAKES, GRADIENTS) for part in table for one in table[part]}
    known |= {("loop", name) for name in words_of("loop")}
    left_out = {(part, name) for part, table in WORDS["left_out"].items() for name in table}
    assert known - asked == left_out
    assert (len(known), len(left_out)) == (296, 12)


def test_a_seed_draws_the_same_question_and_every_kind_has_every_level() -> None:
    for kind in KINDS:
        for level in LEVELS:
            one, two = (draw(f"s {level}", kind, level) for _ in range(2))
            assert text_of(one) == text_of(two)
            assert max(map(len, text_of(one, 80))) <= 80
            assert (one.kind, one.level) == (kind, level)


def test_an_edit_of_a_wrong_program_is_made_once() -> None:
    from hectogpt.assignment.kit import folder_of

    source = (folder_of("reference") / "model_solution.py").read_text(encoding="utf-8")
    for program in WORDS["program"]:
        assert source.count(program["old"]) == 1, program
        assert program["new"] not in source or not program["new"]
        assert program["name"] in words_of(program["part"])


# --- the exam ---------------------------------------------------------------------------------------------------------


def test_sheets_differ_are_equally_hard_and_a_guesser_gets_what_chance_gives() -> None:
    """Difficulty is how many choices a hasty reader is left with: the same, question by question, on all sheets."""
    made = make_sheets([f"student {n}" for n in range(30)], "secret", WORDS["exam"][:5])
    assert len({str([text_of(one) for one in sheet.questions]) for sheet in made}) == len(made)
    assert len({tuple((one.kind, one.level) for one in sheet.questions) for sheet in made}) == 1
    assert all(len({one.lab for one in sheet.questions}) == 5 for sheet in made)
    chance = sum(1 / KINDS[kind] for kind, _ in WORDS["exam"][:5])
    guess = random.Random(1)
    points = [
        guess.randrange(len(one.choices)) == one.answer for _ in range(200) for sheet in made for one in sheet.questions
    ]
    assert abs(sum(points) / 200 / len(made) - chance) < 0.03
    assert abs(sum(sheet.key.count("a") for sheet in made) / len(made) - chance) < 0.4  # nor does one letter help


def test_the_checksum_finds_a_changed_letter_and_two_that_change_places() -> None:
    code = "ABCD-001-BDACA"
    changed = {code[:n] + letter + code[n + 1 :] for n in range(len(code)) for letter in "ABCDEF01"} - {code}
    swapped = {code[:n] + code[n + 1] + code[n] + code[n + 2 :] for n in range(len(code) - 1)} - {code}
    assert checksum(code) not in map(checksum, changed | swapped)
