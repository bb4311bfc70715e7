"""The site, built as `make site` builds it, and opened from files in a real browser."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from browsers import axe_faults
from filelock import FileLock
from helpers import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.thorough]
pytest.importorskip("furo")
PAGES = ["index", "search", "docs/start", "docs/exit-codes"]  # long ones take axe minutes
WIDE = ["docs/transformer", "docs/performance", "docs/command-line", "docs/python-names", "results/LADDER"]
FOUND = "own text: own-text, resume: resume, Ctrl-C: resume, gguf: interop, fine-tune: fine-tune, grade: grading"


@pytest.fixture(scope="module")
def site() -> Path:
    """Warnings and links that lead nowhere end the build. The session's processes share it, in the session's home."""
    out = Path(os.environ["HOME"], "site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", f"{out}/cache"]
    with FileLock(f"{out}.lock"):
        if not (out / "built").exists():
            done = subprocess.run([*command, ".", f"{out}/site"], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (out / "built").touch()
    return out / "site"


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Any) -> Iterator[Any]:
    opened = browser.new_page(color_scheme=request.param)
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    assert [address for address in asked if not address.startswith(("file:", "data:", "blob:"))] == []
    opened.close()


@pytest.mark.parametrize("name", [*PAGES, *WIDE])
def test_a_page_is_accessible_and_never_scrolls_sideways(site: Path, page: Any, name: str) -> None:
    for width in (390, 768, 1024, 1280, 1366, 1440, 1600, 1920):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width
        assert width not in (390, 1280) or name in WIDE or axe_faults(page) == []


def test_the_side_bar_is_short_and_formulas_have_their_font(site: Path, page: Any) -> None:
    """The font has the table that MathML is laid out by, which a system's fonts may lack."""
    page.goto((site / "docs" / "transformer.html").as_uri())
    links = [link.get_attribute("href") for link in page.locator(".toctree-l1 > a").all() if link.is_visible()]
    assert len(links) <= 15
    assert links[:3] == ["start.html", "#", "assignment-student.html"]
    loaded = "document.fonts.ready.then(() => [...document.fonts].map(font => [font.family, font.status]))"
    assert page.evaluate(loaded) == [["STIX Two Math", "loaded"]]


@pytest.mark.parametrize("query", FOUND.split(", "))
def test_the_search_shows_the_page_first_and_how_it_begins(site: Path, page: Any, query: str) -> None:
    """From a file. The log, which has every word, is far down."""
    words, _, wanted = query.partition(": ")
    page.goto(f"{(site / 'search.html').as_uri()}?q={quote(words)}")
    page.get_by_text("Search finished").wait_for()
    results = page.locator("ul.search > li")
    found = [result.locator("a").get_attribute("href") for result in results.all()[:6]]
    assert found[0] == f"docs/{wanted}.html"
    assert "results/LOG.html" not in found
    assert len(results.first.inner_text().partition("\n")[2]) > 40
