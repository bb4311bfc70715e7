"""The pages of `hectogpt explore` in a real browser: one server and one Chromium serve all tests.

Without Chromium they skip and say so. The server's locks have tests of their own, in test_pages_gate.py.
"""

from __future__ import annotations

import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browsers import wait_until
from pages import SCRIPT, make_run, shown

from hectogpt.explore.pages import by_hand, drawing, order, trained
from hectogpt.explore.pages.by_hand import ByHand
from hectogpt.explore.pages.order import Order
from hectogpt.explore.pages.trained import Trained
from hectogpt.explore.pages.view import export

server = pytest.importorskip("hectogpt.explore.pages.server")  # marimo is optional

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="session")
def address(run: Path) -> Iterator[str]:
    """One server for all, started as a user would, in a folder whose ./runs holds the run."""
    pytest.importorskip("marimo")
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import hectogpt.cli; hectogpt.cli.main()"
    server = subprocess.Popen(
        [sys.executable, "-c", program, "explore", "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=run.parent.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()


class Watched:
    """A page and what went wrong on it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.problems: list[str] = []
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self.problems.append(str(e)))
        page.on("request", lambda r: self._request(r.url))

    def _request(self, url: str) -> None:
        if not re.match(r"(http|ws)://127\.0\.0\.1:|data:|blob:", url):
            self.problems.append(f"request to {url}")

    def open(self, name: str) -> Any:
        """Choose a page by its tab; returns the section of its view."""
        self.page.get_by_role("tab", name=name).click()
        return self.page.locator("section.hecto-view")

    def reads(self, values: dict[str, str]) -> None:
        """Wait until the named numbers are these."""
        from playwright.sync_api import expect

        for name, text in values.items():
            expect(self.page.locator(f"[data-name={name}]")).to_have_text(text, timeout=30_000)


@pytest.fixture
def watched(browser: Any, address: str) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(30_000)
    watched = Watched(context.new_page())
    watched.page.goto(address)
    watched.page.locator("section.hecto-view").wait_for()
    yield watched
    context.close()
    assert watched.problems == []


@pytest.mark.browser
def test_sliders_change_numbers_to_what_the_functions_give(watched: Watched) -> None:
    page = watched.page
    watched.reads(shown(by_hand.view(ByHand())))
    page.get_by_role("slider", name="β, scale of the query").focus()
    page.keyboard.press("ArrowRight")
    watched.reads(shown(by_hand.view(ByHand(beta=10.5))))
    page.get_by_text("average, two heads").click()
    watched.reads(shown(by_hand.view(ByHand("heads", beta=10.5))))
    page.get_by_role("slider", name="n, number of keys").focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("layer-normalised keys").click()
    watched.reads(shown(by_hand.view(ByHand("heads", beta=10.5, n=7, normalised=True))))
    for svg in page.locator("section.hecto-view svg").all():
        assert any(c.isdigit() for c in svg.get_attribute("aria-label"))


@pytest.mark.browser
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (1366, 768), (1920, 1080)])
def test_all_charts_are_in_view_while_sliders_move(watched: Watched, width: int, height: int) -> None:
    page = watched.page
    page.set_viewport_size({"width": width, "height": height})
    watched.reads(shown(by_hand.view(ByHand())))

    def all_fit() -> bool:
        text = page.locator("section.hecto-view > p").bounding_box()
        boxes = [svg.bounding_box() for svg in page.locator("section.hecto-view svg").all()]
        assert len(boxes) == 4
        assert text is not None
        assert None not in boxes
        for left, right in pairwise(boxes):
            assert left["x"] + left["width"] <= right["x"]  # side by side, and nothing beside the text
            assert left["y"] == pytest.approx(right["y"], abs=2)
        for box in boxes:
            assert 0 <= box["y"] - text["y"] - text["height"] < 40
            assert box["y"] + box["height"] <= height
        return boxes[-1]["x"] + boxes[-1]["width"] > 0.85 * width

    wait_until(page, all_fit)


@pytest.mark.browser
def test_positions_and_the_message_of_an_odd_d(watched: Watched) -> None:
    page = watched.page
    watched.open("Positions")
    watched.reads(shown(order.view(Order())))
    page.get_by_text("add sinusoids", exact=True).click()
    watched.reads(shown(order.view(Order(positions=True))))
    d = page.get_by_role("textbox", name="d, dimensions")
    d.fill("33")
    d.press("Enter")
    page.get_by_role("alert").get_by_text("sinusoids of d = 33").wait_for()
    d.fill("<b>many</b>")
    d.press("Enter")
    page.get_by_role("alert").get_by_text("d = <b>many</b>").wait_for()
    d.fill("48")
    d.press("Enter")
    watched.reads(shown(order.view(Order(positions=True, d=48))))


@pytest.mark.browser
def test_from_a_prompt_to_the_model_s_maps(watched: Watched, run: Path) -> None:
    page = watched.page
    view = watched.open("A trained model")
    watched.reads(shown(trained.view(run, Trained())))
    prompt = page.get_by_role("textbox", name="prompt")
    prompt.fill("to be or not to be")
    s = Trained("to be or not to be")
    watched.reads(shown(trained.view(run, s)))
    label = trained.view(run, s).drawings[1].alt
    view.get_by_role("img", name=label, exact=True).wait_for()
    prompt.fill(SCRIPT)
    watched.reads(shown(trained.view(run, Trained(SCRIPT))))
    assert "".join(view.locator("li span").all_text_contents()).replace("␣", " ") == SCRIPT
    assert page.evaluate("window.hacked") is None
    prompt.fill("")
    page.get_by_role("alert").get_by_text("the prompt is empty").wait_for()


@pytest.mark.browser
def test_heads_are_switched_off_and_bad_folders_get_a_message(watched: Watched, run: Path, tmp_path: Path) -> None:
    page = watched.page
    watched.open("A trained model")
    watched.reads(shown(trained.view(run, Trained())))
    page.get_by_text("Select...").click()
    page.get_by_role("option", name="layer 1 head 2").click()
    watched.reads(shown(trained.view(run, Trained(off=((0, 1),)))))
    page.keyboard.press("Escape")
    folder = page.get_by_role("textbox", name="folder of the model")
    for bad, words in (
        (str(tmp_path / "nowhere"), "there is no such folder"),
        (str(tmp_path), "config.json"),
        ("\0", "null byte"),  # D6
        ("x" * 5000, "File name too long"),
    ):
        folder.fill(bad)
        folder.press("Enter")
        page.get_by_role("alert").get_by_text(words).wait_for()
    folder.fill("")
    folder.press("Enter")
    page.get_by_text("No trained model yet").wait_for()
    folder.fill(str(run))
    folder.press("Enter")
    watched.reads(shown(trained.view(run, Trained())))


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "ink"), [("light", "LIGHT"), ("dark", "DARK")])
def test_a_telephone_s_width_in_both_themes(browser: Any, address: str, theme: str, ink: str) -> None:
    context = browser.new_context(viewport={"width": 400, "height": 800}, color_scheme=theme)
    context.set_default_timeout(30_000)
    watched = Watched(context.new_page())
    watched.page.goto(address)
    for name in ("Attention by hand", "Positions", "A trained model"):
        watched.open(name)
        watched.page.locator(f'section[aria-label^="{name}"]').wait_for()
        wait_until(watched.page, lambda: watched.page.evaluate("document.documentElement.scrollWidth") <= 400)
        found = watched.page.evaluate(
            "getComputedStyle(document.querySelector('section.hecto-view')).getPropertyValue('--ink')"
        )
        assert found == getattr(drawing, ink)["ink"]
    assert watched.problems == []
    context.close()


@pytest.mark.browser
def test_a_file_leads_in_and_another_server_s_page_does_not(browser: Any, address: str, tmp_path: Path) -> None:
    """D22, D9, K3: the file is what the browser is started with. A page of another port has the same site and, once
    the user is in, the cookie; its sockets, frames and requests are refused all the same."""
    page = browser.new_context().new_page()
    door = server.write_page(tmp_path, address)
    page.goto(door.as_uri())
    page.locator("section.hecto-view").wait_for(timeout=30_000)
    ours = address.partition("?")[0]
    assert page.url == ours

    class Foreign(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"<!doctype html><title>x</title><iframe src={ours}></iframe>".encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        answers: dict[str, int] = {}
        page.on("response", lambda r: answers.update({r.url: r.status}))
        page.goto(f"http://127.0.0.1:{foreign.server_port}/")
        assert answers[ours] == 403
        outcomes = page.evaluate(
            """async (ours) => [
              await new Promise(done => {
                const socket = new WebSocket(ours.replace('http', 'ws') + 'ws?session_id=x');
                socket.onopen = () => done('open'); socket.onerror = () => done('refused'); }),
              await fetch(ours, {credentials: 'include'}).then(() => 'read', () => 'refused'),
              await fetch(ours + 'api/kernel/function_call', {method: 'POST', body: '{}', mode: 'no-cors',
                credentials: 'include'}).then(() => 'sent', () => 'refused')]""",
            ours,
        )
        assert outcomes == ["refused"] * 3
        foreign.shutdown()
    page.context.close()


@pytest.mark.browser
def test_an_exported_page_opens_alone(browser: Any, tmp_path: Path) -> None:
    view = by_hand.view(ByHand())
    (tmp_path / "view.html").write_bytes(export(view, ".html"))
    context = browser.new_context(offline=True)
    page = context.new_page()
    requests: list[str] = []
    page.on("request", lambda r: requests.append(r.url))
    page.on("console", lambda m: requests.append(m.text))
    page.goto((tmp_path / "view.html").as_uri())
    assert page.locator("svg").count() == 4
    assert page.locator("[data-name=variance]").inner_text() == shown(view)["variance"]
    assert [r for r in requests if not r.startswith(("file:", "data:"))] == []
    context.close()
