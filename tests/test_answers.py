"""The written answers: every number is what the code computes, and the PDF is made of them alone."""

from __future__ import annotations

import math
import re
from pathlib import Path

import matplotlib as mpl
import pytest

from hectogpt.errors import UserError
from hectogpt.explore import figures, numbers
from tools import answers
from tools.quotes import check_quotes, find_quotes, find_unnamed, read_trained

TEXTS = [answers.FOLDER / name for name in answers.ORDER if name not in answers.GENERATED]


@pytest.fixture(scope="module")
def computed() -> dict[str, float]:
    return numbers.numbers() | read_trained(answers.TRAINED)


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_every_quoted_number_is_what_the_code_computes(path: Path, computed: dict[str, float]) -> None:
    found = list(find_quotes(path.read_text(encoding="utf-8")))
    assert len(found) > 30
    wrong = [(q.shown, computed.get(q.name)) for q in found if not q.agrees(computed)]
    assert not wrong
    assert all(math.isfinite(value) for value in computed.values())


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_no_number_stands_in_the_text_without_a_name(path: Path) -> None:
    assert find_unnamed(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_every_figure_exists_and_is_described(path: Path) -> None:
    images = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    assert images
    for description, target in images:
        assert len(description) > 40
        assert (path.parent / target).is_file()


def test_a_wrong_digit_is_noticed() -> None:
    assert agrees("0.123<!-- n:x -->", 0.1234)
    assert not agrees("0.124<!-- n:x -->", 0.1234)
    assert agrees("7.9 %<!-- n:x -->", 0.0786)
    assert not agrees("7.8 %<!-- n:x -->", 0.0786)
    assert agrees("2.82 × 10⁻⁶<!-- n:x -->", 2.824e-6)
    assert not agrees("2.82 × 10⁻⁶<!-- n:x -->", 2.824e-5)
    assert agrees("312,689<!-- n:x -->", 312689)
    assert agrees("-0.01<!-- n:x -->", -0.013)
    assert agrees("10⁻¹²<!-- n<x -->", 3e-15)
    assert not agrees("10⁻¹²<!-- n<x -->", 3e-11)
    assert not agrees("0.123<!-- n:y -->", 0.123)
    two = list(find_quotes("10⁻¹²<!-- n<x --><!-- n<y -->"))
    assert [q.name for q in two] == ["x", "y"]


def agrees(text: str, value: float) -> bool:
    (quote,) = find_quotes(text)
    return quote.agrees({"x": float(value)})


def test_unnamed_numbers_are_found() -> None:
    text = "<!-- given: 0.99 --> 0.99 and 0.5 and 3 % and 10⁻⁶ and 2 keys, `0.7`, 0.1<!-- n:x -->"
    assert find_unnamed(text) == ["0.5", "3 %", "10⁻⁶"]


def test_a_text_that_disagrees_builds_no_pdf(tmp_path: Path) -> None:
    text = tmp_path / "attention.md"
    text.write_text("It is 0.2<!-- n:x -->.", encoding="utf-8")
    with pytest.raises(UserError, match="disagree"):
        check_quotes([text], {"x": 0.1})
    check_quotes([text], {"x": 0.2})


def test_figures_are_stable_bytes(tmp_path: Path) -> None:
    with mpl.rc_context(figures.STYLE):
        for i in range(2):
            figures.FIGURES["average"]().savefig(tmp_path / f"{i}.svg", metadata={"Date": None, "Creator": None})
    first, second = ((tmp_path / f"{i}.svg").read_bytes() for i in range(2))
    assert first == second
    assert b"<dc:date>" not in first
    assert {f"{name}.svg" for name in figures.FIGURES} == {p.name for p in (answers.FOLDER / "figures").iterdir()}


@pytest.fixture
def markdown() -> None:
    pytest.importorskip("latex2mathml")
    pytest.importorskip("mdit_py_plugins")


@pytest.mark.usefixtures("markdown")
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


@pytest.mark.usefixtures("markdown")
def test_no_line_breaks_into_a_number(tmp_path: Path) -> None:
    text = (
        "gained +0.266 [+0.240, +0.291] (p 4e-06), 4.13 ± 0.02, 7.2 × 10⁻⁵<!-- n:x --> and 3 %; `2 4e-5` $4e-5$ of 10\n"
    )
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    html = answers.make_page([tmp_path / "a.md"])
    marked = re.findall(r'<span class="number">(.*?)</span>', html)
    assert marked == ["+0.266", "[+0.240, +0.291]", "p 4e-06", "4.13 ± 0.02", "7.2 × 10⁻⁵", "3 %"]
    assert re.sub(r'<span class="number">(.*?)</span>', r"\1", html).count("<!-- n:x -->") == 1


@pytest.mark.usefixtures("markdown")
def test_a_rung_stays_on_one_page_with_its_picture(tmp_path: Path) -> None:
    (tmp_path / "f.png").write_bytes(b"")
    rung = "### rung\n\nWhy.\n\n![curves](f.png)\n\n"
    (tmp_path / "a.md").write_text("## Part\n\n" + 2 * rung + "### long\n\n" + 500 * "words " + rung[9:] + "## End\n")
    html = answers.make_page([tmp_path / "a.md"])
    assert html.count("<section>") == 2
    assert re.findall(r"<section><h3>(\w+)", html) == ["rung", "rung"]


def test_without_chromium_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no Chromium found"):
        answers.print_pdf("<p>hello", tmp_path / "answers.pdf")
    assert not (tmp_path / "answers.pdf").exists()


def test_an_empty_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answers.main(["--folder", str(tmp_path)]) == 2
    assert "no answers" in capsys.readouterr().err


@pytest.mark.browser
@pytest.mark.usefixtures("markdown")
def test_equal_pages_print_equal_pdfs(tmp_path: Path) -> None:
    html = answers.make_page([answers.FOLDER / "positions.md"])
    for name in ("a.pdf", "b.pdf"):
        answers.print_pdf(html, tmp_path / name)
    printed = (tmp_path / "a.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert printed == (tmp_path / "b.pdf").read_bytes()
