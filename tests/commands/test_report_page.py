"""ladder.html in a real browser: draws, asks nobody for anything, fits a narrow window, follows the dark mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsers import wait_until
from reports import NAMES, whole_report

CURVES = "document.getElementById('tinystories-closed-curves')"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_report(tmp_path_factory)


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

    def titles(fit: Callable[[dict[str, float], dict[str, float]], bool]) -> bool:
        """Whether the boxes of both vertical axes' titles fit; a title has none while the figure is drawn again."""
        left, right = (page.locator(f"#tinystories-closed-curves .{name}title").bounding_box() for name in ("y", "y2"))
        return left is not None and right is not None and fit(left, right)

    def colors() -> list[str]:
        return page.evaluate(f"[{CURVES}.data[2].line.color, {CURVES}.layout.font.color,"
                             " getComputedStyle(document.body).backgroundColor]")  # fmt: skip

    wait_until(page, lambda: titles(lambda left, right: right["x"] > left["x"] + 300))
    light = colors()
    page.set_viewport_size({"width": 400, "height": 800})
    wait_until(page, lambda: titles(lambda upper, lower: lower["y"] > upper["y"] + upper["height"]))
    wait_until(page, lambda: page.evaluate("document.documentElement.scrollWidth") <= 400)
    page.emulate_media(color_scheme="dark")
    wait_until(page, lambda: all(new != old for new, old in zip(colors(), light, strict=True)))
    page.close()
