"""ladder.html in a real browser: draws, asks nobody for anything, fits a narrow window, follows the dark mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reports import NAMES, whole_report

CURVES = "document.getElementById('tinystories-closed-curves')"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_report(tmp_path_factory)


def wait_until(page: Any, condition: Callable[[], bool]) -> None:
    """Playwright's own waiting evaluates strings inside the page, which the page's policy forbids."""
    for _ in range(100):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not happen within 5 s")


@pytest.mark.browser
def test_the_page_works_offline(made: Path, browser: Any) -> None:
    """Draws, hides a curve, switches to a log axis, asks nobody for anything, says no error."""
    page = browser.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((made / "results" / "ladder.html").as_uri())
    curves = page.locator("#tinystories-closed-curves")
    curves.locator(".legendtoggle").nth(1).click()
    state = f"(() => {{ const f = {CURVES}; return [f.layout.yaxis.type,"
    state += " f.data.some(t => t.visible === 'legendonly')]; })()"
    wait_until(page, lambda: page.evaluate(state)[1])
    curves.locator(".updatemenu-button", has_text="log").click()
    wait_until(page, lambda: page.evaluate(state)[0] == "log")
    assert page.locator("#tinystories-closed-ladder .point").count() >= len(NAMES)
    assert page.locator('[data-title^="Share"]').count() == 0, "nothing offers to upload the figures"
    page.close()
    assert len(asked) == 1
    assert asked[0].startswith("file:")
    assert said == []


@pytest.mark.browser
def test_the_page_adapts_to_window_and_theme(made: Path, browser: Any) -> None:
    """Panels side by side on a wide window, one above the other on a narrow one; colours change with the theme."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page.goto((made / "results" / "ladder.html").as_uri())

    def boxes() -> list[dict[str, float]]:
        return [page.locator(f"#tinystories-closed-curves .{name}title").bounding_box() for name in ("y", "y2")]

    def colors() -> list[str]:
        return page.evaluate(f"[{CURVES}.data[2].line.color, {CURVES}.layout.font.color,"
                             " getComputedStyle(document.body).backgroundColor]")  # fmt: skip

    wait_until(page, lambda: boxes()[1]["x"] > boxes()[0]["x"] + 300)
    light = colors()
    page.set_viewport_size({"width": 400, "height": 800})
    wait_until(page, lambda: boxes()[1]["y"] > boxes()[0]["y"] + boxes()[0]["height"])
    wait_until(page, lambda: page.evaluate("document.documentElement.scrollWidth") <= 400)
    page.emulate_media(color_scheme="dark")
    wait_until(page, lambda: all(new != old for new, old in zip(colors(), light, strict=True)))
    page.close()
