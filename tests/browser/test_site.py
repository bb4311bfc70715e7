"""The site, built as `make site` builds it, and opened from files in a real browser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import axe_faults
from helpers import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.thorough]
pytest.importorskip("furo")
PAGES = ["index", "search", "docs/start", "docs/exit-codes"]  # long ones take axe minutes


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Warnings and links that lead nowhere end the build."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", f"{out}/cache"]
    done = subprocess.run([*command, ".", f"{out}/site"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / "site"


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Any) -> Iterator[Any]:
    opened = browser.new_page(color_scheme=request.param)
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    assert [address for address in asked if not address.startswith(("file:", "data:", "blob:"))] == []
    opened.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_accessible_and_fits_a_telephone(site: Path, page: Any, name: str) -> None:
    page.goto((site / f"{name}.html").as_uri())
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert axe_faults(page) == []


def test_search_works_from_a_file(site: Path, page: Any) -> None:
    page.goto((site / "search.html").as_uri() + "?q=checkpoint")
    page.wait_for_selector("ul.search li:nth-child(4) a")
