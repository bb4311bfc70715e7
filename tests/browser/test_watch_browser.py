"""The page of `hectogpt watch` in a real Chromium: live numbers, keyboard, narrow and wide, light and dark."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import wait_until
from command import TINY, hectogpt, start, write_tokens
from commands.test_watch import append, row

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints, and one that is under way."""
    here = tmp_path_factory.mktemp("watch")
    text = write_tokens(here / "t.bin")
    done = hectogpt(
        "train", "baseline", *TINY, "--corpus", text, "--save-every", "2", "--quiet", "--out", "one", cwd=here
    )
    assert done.returncode == 0, done.stderr
    two = here / "two"
    two.mkdir()
    (two / "run.json").write_text((here / "one" / "run.json").read_text())
    append(two / "metrics.jsonl", row(1, 9.5) + "\n" + row(2, 9.25) + "\n")
    return here


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    server = start("watch", "one", "two", "--no-browser", cwd=runs)
    assert server.stdout is not None
    assert server.stderr is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
        assert server.stderr.read() == "ended\n"
        server.stdout.close()
        server.stderr.close()


def open_page(browser: Any, address: str, problems: list[str], width: int = 1280, scheme: str = "light") -> Any:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(90_000)
    page = context.new_page()
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith("http://127.0.0.1:") else problems.append(r.url))
    page.goto(address)
    page.locator("#runs tbody tr").nth(1).wait_for()
    return page


def patient() -> Any:
    """Playwright's `expect`, which asks again until it holds."""
    from playwright.sync_api import expect

    expect.set_options(timeout=90_000)
    return expect


def test_the_page_follows_a_run_and_opens_checkpoints(browser: Any, address: str, runs: Path) -> None:
    problems: list[str] = []
    page = open_page(browser, address, problems)
    expect = patient()
    expect(page.locator("#runs tbody tr").nth(0)).to_contain_text("done")
    expect(page.locator("#runs tbody tr").nth(1)).to_contain_text("2 of 4")
    append(runs / "two" / "metrics.jsonl", row(3, 8.125) + "\n")
    expect(page.locator("#runs tbody tr").nth(1)).to_contain_text("8.125")
    page.locator("#of").select_option(label="one")
    expect(page.locator("#maps button")).to_have_count(2)  # one layer of two heads
    expect(page.locator("#sample")).to_contain_text("The state of the Union")
    expect(page.locator("#at")).to_have_attribute("max", "1")  # step 2 and step 4
    expect(page.locator("#at-step")).to_have_text("4")
    page.locator("#at").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#at-step")).to_have_text("2")
    expect(page.locator("#large-title")).to_contain_text("after step 2")
    page.locator("#maps button").nth(1).press("Enter")
    expect(page.locator("#large-title")).to_contain_text("head 2")
    page.locator("#map").focus()
    page.keyboard.press("ArrowUp")
    expect(page.locator("#weight")).to_contain_text(re.compile(r"→ 1 .*: [01]\.\d{3} \(evenly"))
    page.context.close()
    assert problems == []


def test_curves_are_read_by_keyboard_and_share_a_cursor(browser: Any, address: str, runs: Path) -> None:
    problems: list[str] = []
    page = open_page(browser, address, problems)
    expect = patient()
    loss, norm = page.locator("#charts figure").nth(0), page.locator("#charts figure").nth(1)
    loss.locator("svg").focus()
    page.keyboard.press("Home")
    expect(loss.locator("output")).to_contain_text(re.compile("^step 1"))
    expect(norm.locator("output")).to_contain_text(re.compile("^step 1"))
    page.keyboard.press("ArrowRight")
    rows = [json.loads(line) for line in (runs / "one" / "metrics.jsonl").read_text().splitlines()]
    expect(loss.locator("output")).to_contain_text(f"one {rows[1]['train/loss']:.3f}")
    expect(loss.locator("svg")).to_have_attribute("aria-label", re.compile("two 9.250"))
    page.keyboard.press("Escape")
    expect(loss.locator("output")).to_contain_text(re.compile("^now"))
    dashes = page.evaluate(
        "[...document.querySelectorAll('#charts figure:first-child path.curve')]"
        ".map(p => [getComputedStyle(p.parentNode).color, p.getAttribute('stroke-dasharray')].join())"
    )
    assert len(set(dashes)) == 2
    page.get_by_role("checkbox", name="one").uncheck()
    expect(loss.locator("output")).not_to_contain_text("one")
    page.get_by_role("radio", name="tokens").check()
    loss.locator("svg").focus()
    page.keyboard.press("End")
    expect(loss.locator("output")).to_contain_text(re.compile("^tokens 1"))
    page.context.close()
    assert problems == []


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_text_can_be_read(browser: Any, address: str, width: int, scheme: str) -> None:
    problems: list[str] = []
    page = open_page(browser, address, problems, width, scheme)
    page.locator("#of").select_option(label="one")
    page.locator("#maps button").nth(0).wait_for()
    wait_until(page, lambda: page.evaluate("document.documentElement.scrollWidth") <= width)
    faint = page.evaluate("""() => {
      const light = (c) => { const v = c.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255)
        .map((x) => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
        return .2126 * v[0] + .7152 * v[1] + .0722 * v[2] };
      const back = light(getComputedStyle(document.body).backgroundColor);
      const kinds = "p, td, th, label, span, figcaption, output, blockquote, svg text, path.curve";
      const all = [...document.querySelectorAll(kinds)];
      return all.filter((e) => e.getClientRects().length).map((e) => {
        const style = getComputedStyle(e);
        const c = light(e.matches("svg text") ? style.fill : style.color);
        return [(Math.max(c, back) + .05) / (Math.min(c, back) + .05), e.textContent || "curve"];
      }).filter(([contrast]) => contrast < 4.5) }""")
    assert faint == []
    page.context.close()
    assert problems == []


@pytest.mark.parametrize("width", [400, 1280])
def test_names_of_counting_do_not_overlap(browser: Any, tmp_path: Path, runs: Path, width: int) -> None:
    """Two runs whose texts have nearly the same levels: no name covers another, or the curves."""
    levels = ({"unigram": 7.21, "kn2": 5.71, "kn3": 5.43}, {"unigram": 7.29, "kn2": 5.8, "kn3": 5.5})
    for name, ngrams in zip(("one", "two"), levels, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text((runs / "one" / "run.json").read_text())
        (tmp_path / name / "summary.json").write_text(json.dumps({"ngrams": ngrams}))
        rows = [row(step, 5.3 + 5 * 0.96**step) for step in range(1, 101)]
        append(tmp_path / name / "metrics.jsonl", "".join(line + "\n" for line in rows))
    server = start("watch", "one", "two", "--no-browser", cwd=tmp_path)
    assert server.stdout is not None
    assert server.stderr is not None
    try:
        problems: list[str] = []
        page = open_page(browser, server.stdout.readline().strip(), problems, width)
        names = page.locator("#charts figure:first-child text.halo")
        names.nth(1).wait_for()
        boxes = [names.nth(i).bounding_box() for i in range(names.count())]
        for i, a in enumerate(boxes):
            for b in boxes[:i]:  # the boxes of lines of text touch where the letters do not
                beside = a["x"] >= b["x"] + b["width"] or b["x"] >= a["x"] + a["width"]
                assert beside or abs(a["y"] - b["y"]) >= 14
        assert any("unigram" in text for text in names.all_text_contents())
        page.context.close()
        assert problems == []
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
        server.stdout.close()
        server.stderr.close()


def test_the_last_numbers_stay_when_the_server_ends(browser: Any, runs: Path) -> None:
    server = start("watch", "one", "two", "--no-browser", cwd=runs)
    assert server.stdout is not None
    assert server.stderr is not None
    page = open_page(browser, server.stdout.readline().strip(), [])
    server.terminate()
    assert server.wait(20) == 143
    page.locator("#status.lost").wait_for()
    assert "the last numbers stay" in page.locator("#status").inner_text()
    assert page.locator("#runs tbody tr").count() == 2
    page.context.close()
    for stream in (server.stdout, server.stderr):
        stream.close()
