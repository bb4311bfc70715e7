"""The page about a comparison: what is on it, that all text is escaped, and that it asks for nothing outside."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import make_corpus
from made_up import make_up, numbered_arms

from hectogpt.data import Corpus
from hectogpt.lab.compare import Comparison
from hectogpt.lab.comparison_page import render_page, stack
from hectogpt.lab.curves_svg import Curve, Level, draw_chart
from hectogpt.lab.plan import plan
from hectogpt.lab.verdict import give_verdicts

IDEA = '''"""An idea: <b>slower</b> & </pre><script>window.hacked = 1</script>."""

from dataclasses import replace


def slower(run):
    return replace(run, optim=replace(run.optim, lr=1e-5))
'''
SCRIPT = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("tiny"))


class Outside(HTMLParser):
    """Elements that may run or load something, and attributes that name an address or a handler."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "iframe", "object", "embed", "form", "base", "image", "use", "a", "foreignobject"):
            self.found.append(tag)
        addresses = ("src", "href", "action", "style", "xlink:href")
        odd = [n for n, value in attrs if n.startswith("on") or (n in addresses and value != "data:,")]
        self.found += [f"{tag} {name}" for name in odd]


def outside(page: str) -> list[str]:
    parser = Outside()
    parser.feed(page)
    return parser.found


def page_of(comparison: Comparison, notes: tuple[str, ...] = (), ended: str = "") -> str:
    results = comparison.results()
    return render_page(comparison, results, give_verdicts(comparison, results), notes, ended)


@pytest.fixture(scope="module")
def with_idea(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("idea")
    (folder / "mine.py").write_text(IDEA, encoding="utf-8")
    arms = plan(["baseline", f"{folder}/mine.py:slower", "muon"])
    losses = dict(zip([arm.label for arm in arms], ([5.0, 5.1, 5.2], [4.9, 5.01, 5.09], [5.0, 5.1, 5.21]), strict=True))
    return make_up(corpus, folder / "r.jsonl", arms, losses)


def test_everything_is_on_the_page(with_idea: Comparison) -> None:
    page = page_of(with_idea, ("a note",), "decided after 3 seeds")
    text = re.sub(r"<[^>]*>", "", page)
    for verdict in give_verdicts(with_idea, with_idea.results()):
        assert verdict.text in text.replace("&lt;", "<")
    (idea,) = (arm for arm in with_idea.arms if arm.run.ideas)
    assert idea.run.ideas[0] in page
    for part in (
        "mine.py",
        "a note",
        "decided after 3 seeds",
        "Kneser-Ney trigram 4.90",
        "unigram counts 6.40",
        "1e-05",
    ):
        assert part in text
    assert page.count("<polyline") == 3 + 2, "three arms, two gains"
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|url\(|@import", page)


def test_everything_from_records_and_files_is_escaped(with_idea: Comparison, corpus: Corpus, tmp_path: Path) -> None:
    page = page_of(with_idea, (SCRIPT, "red \x1b[31m"), SCRIPT)
    assert "&lt;/pre&gt;&lt;script&gt;window.hacked = 1&lt;/script&gt;" in page
    assert "\\x1b[31m" in page
    assert "\x1b" not in page
    assert outside(page) == []
    named = [replace(arm, label=f"{SCRIPT} {arm.label}") for arm in numbered_arms(2)]
    hostile: dict[str, Any] = {"version": SCRIPT, "commit": SCRIPT, "error": SCRIPT, "rules_broken": [SCRIPT]}
    this = make_up(corpus, tmp_path / "r.jsonl", named, {arm.label: [5.0, 5.1] for arm in named}, **hostile)
    page = page_of(this)
    assert outside(page) == []
    assert page.count("&lt;script&gt;") > 4


def test_curves_that_are_short_broken_or_absent(corpus: Corpus, tmp_path: Path) -> None:
    this = make_up(
        corpus, tmp_path / "r.jsonl", numbered_arms(3), {"lr 1": [5.0, 5.1], "lr 2": [4.0, 10.8], "lr 3": [5.0]}
    )
    broken: dict[tuple[str, int], list[Any]] = {("lr 1", 0): [], ("lr 2", 1): [9.5]}
    broken |= {("lr 2", 0): [9.0, float("nan"), "x", None, float("inf"), 8.0]}
    for key, losses in broken.items():
        this.records[key].losses[:] = losses
    curves = stack([this.records["lr 2", 0], this.records["lr 2", 1]])
    assert (curves.shape, np.isfinite(curves).sum()) == ((2, 6), 3)
    assert re.search(r"\bnan\b", page_of(this)) is None
    for key, record in this.records.items():
        this.records[key] = replace(record, losses=[], ngram_kn3=None)
    assert "<h1>" in page_of(this)
    alone = page_of(make_up(corpus, tmp_path / "one.jsonl", numbered_arms(1), {"lr 1": [5.0]}))
    assert "<h1>lr 1</h1>" in alone
    assert "Gain over" not in alone


def test_charts() -> None:
    assert draw_chart([], []) == draw_chart([Curve(np.zeros(0), 0)], []) == ""
    assert "<polyline class=c1" in draw_chart([Curve(np.array([2.0]), 1)], [])
    flat = draw_chart([Curve(np.full(5, 2.0), 9)], [Level(2.0, "level"), Level(99.0, "far away")], log=True)
    assert "level</text>" in flat
    assert "stroke-dasharray='7 4'" in flat, "more arms than colours"
    long = draw_chart([Curve(np.linspace(10, 5, 10_000), 0)], [])
    (points,) = re.findall(r"points='([^']*)'", long)
    assert len(points.split()) == 200
    wild = np.concatenate([[50.0, -50.0], np.full(98, 0.1)])
    ticks = [
        float(tick)
        for tick in re.findall(r"x=62.0 y=[\d.]+ text-anchor=end>([-\d.e]+)<", draw_chart([Curve(wild, 0)], []))
    ]
    assert max(ticks) < 1, "the first steps do not set the limits"


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser(with_idea: Comparison, tmp_path: Path, browser: Any, theme: str, width: int) -> None:
    (tmp_path / "page.html").write_text(page_of(with_idea, (SCRIPT,)), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: asked.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    assert page.evaluate("window.hacked") is None
    assert asked == [(tmp_path / "page.html").as_uri()]
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[theme]
    assert page.evaluate("document.querySelectorAll('svg').length") == 2
    page.close()
