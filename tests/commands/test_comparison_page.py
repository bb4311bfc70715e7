"""The page about a comparison: what is on it, that foreign text is text, and that it asks for nothing outside."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import make_corpus
from made_up import make_up, numbered_arms

from hectogpt.data import Corpus
from hectogpt.lab.compare import Comparison
from hectogpt.lab.comparison_page import page_data, stack
from hectogpt.lab.plan import plan
from hectogpt.lab.verdict import give_verdicts
from hectogpt.web.page import fill

IDEA = '''"""An idea: <b>slower</b> & </pre><script>window.hacked = 1</script>."""

from dataclasses import replace


def slower(run):
    return replace(run, optim=replace(run.optim, lr=1e-5))
'''
SCRIPT = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("tiny"))


def page_of(comparison: Comparison, notes: tuple[str, ...] = (), ended: str = "") -> str:
    """The page's data as JSON, which is all that differs between pages."""
    results = comparison.results()
    data = page_data(comparison, results, give_verdicts(comparison, results), notes, ended)
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


@pytest.fixture(scope="module")
def with_idea(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("idea")
    (folder / "mine.py").write_text(IDEA, encoding="utf-8")
    arms = plan(["baseline", f"{folder}/mine.py:slower", "muon"])
    losses = dict(zip([arm.label for arm in arms], ([5.0, 5.1, 5.2], [4.9, 5.01, 5.09], [5.0, 5.1, 5.21]), strict=True))
    return make_up(corpus, folder / "r.jsonl", arms, losses)


def test_everything_is_on_the_page(with_idea: Comparison) -> None:
    page = page_of(with_idea, ("a note",), "decided after 3 seeds")
    for verdict in give_verdicts(with_idea, with_idea.results()):
        assert json.dumps(verdict.text, ensure_ascii=False) in page
    (idea,) = (arm for arm in with_idea.arms if arm.run.ideas)
    parts = ("mine.py", "a note", "decided after 3 seeds", "Kneser-Ney trigram 4.90", "unigram counts 6.40")
    assert [part for part in (*parts, idea.run.ideas[0]) if part not in page] == []
    assert page.count('"points"') == 3 + 2, "three arms, two gains"


def test_curves_that_are_short_broken_or_absent(corpus: Corpus, tmp_path: Path) -> None:
    this = make_up(
        corpus, tmp_path / "r.jsonl", numbered_arms(3), {"lr 1": [5.0, 5.1], "lr 2": [4.0, 10.8], "lr 3": [5.0]}
    )
    broken: dict[tuple[str, int], list[Any]] = {("lr 1", 0): [], ("lr 2", 1): [9.5]}
    broken |= {("lr 2", 0): [9.0, 8.0]}
    for key, losses in broken.items():
        this.records[key].losses[:] = losses
    curves = stack([this.records["lr 2", 0], this.records["lr 2", 1]])
    assert (curves.shape, np.isfinite(curves).sum()) == ((2, 2), 3)
    assert re.search(r"\bnan\b", page_of(this)) is None
    for key, record in this.records.items():
        this.records[key] = replace(record, losses=[], ngram_kn3=None)
    assert "blocks" in page_of(this)
    alone = page_of(make_up(corpus, tmp_path / "one.jsonl", numbered_arms(1), {"lr 1": [5.0]}))
    assert '"title": "lr 1"' in alone
    assert "Gain over" not in alone


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser(with_idea: Comparison, tmp_path: Path, browser: Any, theme: str, width: int) -> None:
    """Foreign text is shown as text, nothing is asked for, nothing sticks out."""
    data = json.loads(page_of(with_idea, (SCRIPT, "red \x1b[31m"), SCRIPT))
    (tmp_path / "page.html").write_text(fill("report", data), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: asked.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    assert page.evaluate("window.hacked") is None
    assert asked == [(tmp_path / "page.html").as_uri()]
    assert page.locator("main img").count() == 0
    assert "window.hacked = 1" in page.inner_text("main")
    assert "\\x1b[31m" in page.inner_text("main")
    assert page.locator("svg").count() == 2
    page.close()
