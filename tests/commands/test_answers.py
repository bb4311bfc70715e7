"""The written answers: every number is what the code computes, and the PDF is made of them alone."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import pytest

from hectogpt.errors import UserError
from tools.research import answer_figures as figures
from tools.research import answers
from tools.research.quotes import check_quotes, find_quotes, find_unnamed

TEXTS = [answers.FOLDER / name for name in answers.ORDER if name not in answers.GENERATED]
# The assignment's questions that are answered in writing, and their points: of the 10 of 3(b), 3 are for a picture.
POINTS = {
    "1(a)i": 2, "1(a)ii": 1, "1(b)": 2, "1(c)i": 2, "1(c)ii": 3, "1(d)i": 1, "1(d)ii": 2, "1(e)": 1,
    "2(a)i": 3, "2(a)ii": 1, "2(b)i": 1, "2(b)ii": 1, "3(b)": 3, "3(c)": 9,
}  # fmt: skip


def read_all() -> str:
    return "\n".join((answers.FOLDER / name).read_text(encoding="utf-8") for name in answers.ORDER)


def test_every_question_has_a_heading_with_its_points_and_begins_with_its_answer() -> None:
    text = read_all()
    found = re.findall(r"^##? (\d\([a-e]\)i*)\. [^(\n]+\((?:bonus, )?(\d+)(?: of the 10)? points?\)$", text, re.M)
    assert [(name, int(points)) for name, points in found] == list(POINTS.items()), "in the assignment's order"
    assert sum(points for name, points in POINTS.items() if name < "2") == 14
    assert sum(points for name, points in POINTS.items() if "2" <= name < "3") == 6
    assert re.findall(r"^# ([123])\. \w.*\((\d+) points", text, re.M) == [("1", "14"), ("2", "6"), ("3", "30")]
    sections = re.split(r"^##? (?=\d\()", text, flags=re.M)[1:]
    assert [section for section in sections if not section.split("\n\n")[1].startswith("**Answer")] == []
    sentence = sections[0].split("\n\n")[1].removeprefix("**Answer.** ")
    assert len(re.findall(r"\.(?:\s|$)", sentence)) == 1, "1(a)i asks for one sentence"
    assert "](losses_and_grad_norms.png)" in sections[-2]


@pytest.mark.thorough
def test_every_quoted_number_is_what_the_code_computes_and_none_lacks_a_name() -> None:
    computed = answers.read_numbers()
    assert all(math.isfinite(value) for value in computed.values())
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        found = list(find_quotes(text))
        assert len(found) > 10
        assert [(q.shown, computed.get(q.name)) for q in found if not q.agrees(computed)] == []
        assert find_unnamed(text) == []


def test_a_wrong_digit_is_noticed_and_builds_no_pdf(tmp_path: Path) -> None:
    for text, value, right in (
        ("0.123<!-- n:x -->", 0.1234, True),
        ("0.124<!-- n:x -->", 0.1234, False),
        ("7.9 %<!-- n:x -->", 0.0786, True),
        ("2.82 × 10⁻⁶<!-- n:x -->", 2.824e-5, False),
        ("10⁻¹²<!-- n<x -->", 3e-15, True),
        ("10⁻¹²<!-- n<x -->", 3e-11, False),
    ):
        (quote,) = find_quotes(text)
        assert quote.agrees({"x": value}) == right, text
    (tmp_path / "attention.md").write_text("It is 0.2<!-- n:x -->.", encoding="utf-8")
    with pytest.raises(UserError, match="disagree"):
        check_quotes([tmp_path / "attention.md"], {"x": 0.1})


def test_figures_are_stable_bytes(tmp_path: Path) -> None:
    with mpl.rc_context(figures.STYLE):
        for i in range(2):
            figures.FIGURES["average"]().savefig(tmp_path / f"{i}.svg", metadata={"Date": None, "Creator": None})
    first, second = ((tmp_path / f"{i}.svg").read_bytes() for i in range(2))
    assert first == second
    assert b"<dc:date>" not in first
    assert {f"{name}.svg" for name in figures.FIGURES} == {p.name for p in (answers.FOLDER / "figures").iterdir()}


def test_page_has_formulas_and_figures_and_fetches_nothing(tmp_path: Path) -> None:
    (tmp_path / "f.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    text = "# A\n\n$x_i \\lt \\ln n$\n\n$$y = 1$$\n\n![described](f.svg)\n"
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    html = answers.make_page([tmp_path / "a.md"])
    for path in TEXTS:
        assert "$" not in answers.make_page([path])
    assert html.count("<math") == 2
    assert "data:image/svg+xml;base64," in html
    assert 'src="http' not in html


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs pdftotext")
def test_the_pdf_has_a_page_for_every_question(tmp_path: Path) -> None:
    printed = tmp_path / "answers.pdf"
    answers.print_pdf(answers.make_page([answers.FOLDER / name for name in answers.ORDER]), printed)
    text = subprocess.run(["pdftotext", "-layout", printed, "-"], capture_output=True, text=True, check=True).stdout
    pages = text.split("\f")[:-1]
    starts = [
        [n for n, page in enumerate(pages) if re.search(rf"^ *{re.escape(name)}\. ", page, re.M)] for name in POINTS
    ]
    assert [len(found) for found in starts] == [1] * len(POINTS)
    assert all(a < b for a, b in pairwise(starts)), "no two questions on one page"
