"""`hectogpt assignment drill` and `exam`: questions one at a time, sheets to the byte, marks, and what is refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from command import Here, assert_good_error
from grade_solutions import TEXTBOOK, judged

from hectogpt.exam.labs import WORDS
from hectogpt.exam.sheets import checksum

ROSTER = "name,group\nAnna,1\nBen Łukasz,2\n=Carl,1\n"


def answered(path: Path, *answers: str) -> None:
    """Write the answers into the table."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"answers": text} for row, text in zip(rows, answers, strict=True))


def test_an_exam_is_made_to_the_byte_and_marked(here: Here, tmp_path: Path) -> None:
    (tmp_path / "class.csv").write_text(ROSTER, encoding="utf-8")
    here.ok("assignment", "exam", "class.csv", "--questions", "3", "--seed", "s", "--out", "one")
    here.ok("assignment", "exam", "class.csv", "--questions", "3", "--seed", "s", "--out", "two")
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two
    assert set(one) == {"sheets.pdf", "page.html", "answers.csv", "key.csv", "exam.json"}
    assert not any(word in one["page.html"] for word in (b"Anna", b'answer":', b'key"'))
    sheets = json.loads(one["exam.json"])["sheets"]
    first, second, third = (sheet["key"] for sheet in sheets)
    code = f"{sheets[1]['code']}-{second.upper()}"
    wrong = "a" if third[0] != "a" else "b"
    table = tmp_path / "one" / "answers.csv"
    answered(table, first.upper(), f"{code}-{checksum(code)}", f"{wrong}-{third[2]}")
    done = here.ok("assignment", "exam", "--mark", "one", "one/answers.csv")
    assert "sheets: 3; 2.33 points" in done.stdout
    with (tmp_path / "one" / "marks.csv").open(encoding="utf-8") as file:
        marks = list(csv.DictReader(file))
    assert [row["points"] for row in marks] == ["3", "3", "1"]
    assert re.match(r"1: symptom, .+; 2: predict, .+: no answer for .+", marks[2]["confused"])
    torn, other = f"{code[:-1]}-{checksum(code)}", f"ABCD-002-{second.upper()}"
    for answers, why in (
        (("", torn + "0", ""), "a whole code"),
        (("", f"{code}-000", ""), "last three digits"),
        (("", f"{other}-{checksum(other)}", ""), "belongs to sheet ABCD-002"),
        (("ab", "", ""), "3 letters"),
    ):
        answered(table, *answers)
        assert_good_error(here("assignment", "exam", "--mark", "one", "one/answers.csv"), 3, why)
    table.write_text("name,answers\nZoe,abc\n")
    assert_good_error(here("assignment", "exam", "--mark", "one", "one/answers.csv"), 3, "no sheet for this name")
    assert (tmp_path / "one" / "marks.csv").exists()


@pytest.mark.parametrize("roster", ["", "student\nAnna\n", "name\nAnna\nAnna\n", "name\n \n", "name\n\xff"])
def test_a_wrong_roster_is_one_sentence(here: Here, tmp_path: Path, roster: str) -> None:
    (tmp_path / "class.csv").write_text(roster, encoding="latin-1")
    assert_good_error(here("assignment", "exam", "class.csv"), 3, "")
    assert not (tmp_path / "exam").exists()


def test_a_damaged_exam_is_refused(here: Here, tmp_path: Path) -> None:
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "exam.json").write_text('{"sheets": [{"name": "Anna"}]}')
    (tmp_path / "answers.csv").write_text("name,answers\nAnna,abc\n")
    assert_good_error(here("assignment", "exam", "--mark", "exam", "answers.csv"), 3, "exam.json")
    assert_good_error(here("assignment", "exam", "answers.csv", "--questions", "13"), 2, "1 to 12 questions")


def test_a_drill_asks_explains_and_is_resumed(
    here: Here, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.StringIO("z\na\nB)\n"))
    done = here.ok("assignment", "drill", "--seed", "1", "--level", "1", "--questions", "4")
    assert done.stdout.count("--- question ") == 3
    assert done.stdout.count("more: docs/traps.md, ") == 2
    assert "resume:  hectogpt assignment drill --seed 1 --level 1 --first 3 --questions 2" in done.stdout
    third = done.stdout.partition("--- question 3")[2].partition("\n> ")[0]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nq\n"))
    done = here.ok("assignment", "drill", "--seed", "1", "--level", "1", "--first", "3", "--questions", "2")
    assert done.stdout.partition("--- question 3")[2].partition("\n> ")[0] == third


@pytest.mark.thorough
@pytest.mark.parametrize("program", WORDS["program"], ids=lambda one: f"{one['part']}: {one['name']}")
def test_the_grader_names_the_mistake_of_a_wrong_program(program: dict[str, str]) -> None:
    found = judged(TEXTBOOK.replace(program["old"], program["new"]))
    wrong = {part: one.mistake() for part, one in found.items() if one.outcome == "failed"}
    assert list(wrong) == [program["part"]]
    assert program["name"] in wrong[program["part"]]
