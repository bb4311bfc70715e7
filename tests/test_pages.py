"""The pages: views show what the functions give, files open alone, and the app works in a real browser.

One server serves them all, and one Chromium those marked `browser`; without Chromium these skip and say so.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hectogpt import errors
from hectogpt.cli import explore as command
from hectogpt.errors import UserError
from hectogpt.explore import attention, model_view, positions
from hectogpt.explore.pages import by_hand, drawing, order, trained
from hectogpt.explore.pages.by_hand import ByHand
from hectogpt.explore.pages.order import Order
from hectogpt.explore.pages.trained import Trained
from hectogpt.explore.pages.view import Table, Tokens, View, export, fragment, message
from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.model.folder import save_model

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
CONFIG = ModelConfig(16, 2, 2, 32, 50257)


def shown(view: View) -> dict[str, str]:
    """The named numbers as a reader sees them."""
    return dict(re.findall(r'data-name="(\w+)">([^<]*)<', fragment(view)))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder, below a folder `runs`; weights large enough for peaked attention."""
    folder = tmp_path_factory.mktemp("pages") / "runs" / "first"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_model(Transformer(CONFIG, Init(embedding=1.0, linear=0.8, head=1.0)), folder)
    (folder / "summary.json").write_text("{}")
    return folder


# Views


@pytest.mark.parametrize("query", ["copy", "average", "heads"])
def test_attention_s_numbers_are_the_functions_(query: by_hand.Query) -> None:
    s = ByHand(query, beta=7.5, alpha=1e-3, spread=0.3, n=11, sample=5)
    seen = attention.key_projections(by_hand.SAMPLES, 11, 1e-3, 0.3)
    first, second = attention.two_heads(seen, 7.5)
    c = {"copy": first, "average": attention.single_head(seen, 7.5), "heads": (first + second) / 2}[query]
    found = by_hand.view(s).values
    assert found["weight_a"] == c[5, 0]
    assert found["weight_b"] == c[5, 1]
    assert found["mean_a"] == pytest.approx(c[:, 0].mean())
    assert found["variance"] == pytest.approx(attention.total_variance(c).value)
    assert found["variance_low"] < found["variance_limit"] * 1.1
    goal = np.eye(11)[0] if query == "copy" else (np.eye(11)[0] + np.eye(11)[1]) / 2
    assert found["error"] == pytest.approx(np.linalg.norm(c[5] - goal))
    if query == "copy":
        assert 1 - found["weight_a"] <= found["bound"]
        scores = 7.5 * seen[5, :, 0]
        assert found["gap"] == pytest.approx(scores[0] - scores[1:].max())
    if query == "average":
        assert found["taken_limit"] == attention.takeover(7.5, 11, spread=0.3)
        assert found["variance_limit"] == attention.single_head_variance(7.5, 11, spread=0.3)


@pytest.mark.parametrize("query", ["copy", "average", "heads"])
@pytest.mark.parametrize("n", [2, 16])
def test_the_drawn_closed_form_is_the_limit_of_the_sampled_bins(query: by_hand.Query, n: int) -> None:
    edges = np.linspace(0, 1, 41)
    s = ByHand(query, beta=3.0, alpha=1e-10, n=n)
    exact = by_hand.closed_form(s, edges)
    weights = np.mean(by_hand.weights(by_hand.projections(n, 1e-10, 0.5, False), s), axis=0)[:, 0]
    shares = np.histogram(weights, edges)[0] / len(weights)
    assert exact is not None
    assert exact.sum() == pytest.approx(1)
    assert np.abs(shares - exact).max() < 5 * np.sqrt(0.25 / by_hand.SAMPLES)


def test_every_setting_of_the_sliders_draws() -> None:
    for query in ("copy", "average", "heads"):
        for change in (
            {"beta": 0.0},
            {"beta": 60.0, "spread": 2.0},
            {"alpha": 0.0, "spread": 0.0},
            {"n": 2},
            {"n": 64},
        ):
            for normalised in (False, True):
                view = by_hand.view(ByHand(query, normalised=normalised, **change))
                assert all(np.isfinite(value) for value in view.values.values())
    for bad in ({"beta": float("nan")}, {"alpha": -1.0}, {"n": 1}):
        with pytest.raises(UserError):
            by_hand.view(replace(ByHand(), **bad))


def test_positions_numbers_are_the_functions_() -> None:
    s = Order(T=50, d=24, distance=7, causal=True, positions=True)
    found = order.view(s).values
    assert found["gap"] == positions.equivariance_gap(12, 16, causal=True, positions=True)
    assert found["similarity"] == positions.similarity(np.array([7]), 24)[0]
    assert found["distance"] == positions.distances(np.array([7]), 24)[0]
    assert found["nearest"] == positions.nearest_pair(50, 24).distance
    assert found["residue"] < 1e-12
    assert order.view(Order()).values["gap"] < 1e-12 < 0.1 < order.view(Order(causal=True)).values["gap"]
    for bad in (Order(d=33), Order(d=0), Order(T=1), Order(d=10**6)):
        with pytest.raises(UserError):
            order.view(bad)


def test_the_model_s_view_shows_its_own_attention(run: Path) -> None:
    model, tokenizer = model_view.open_model(run)
    s = Trained("The state of the Union", layer=1, head=1, row=3, off=((0, 1),))
    view = trained.view(run, s)
    ids = model_view.read_prompt(s.prompt, tokenizer, model).ids
    seen, whole = model_view.look(model, ids, s.off), model_view.look(model, ids)
    assert view.values["loss"] == pytest.approx(seen.loss)
    assert view.values["loss_change"] == pytest.approx(seen.loss - whole.loss)
    assert abs(view.values["loss_change"]) > 1e-3
    (table,) = [b for b in view.blocks if isinstance(b, Table)]
    weights = seen.maps[1, 1, 3]
    best = int(weights.argmax())
    assert table.rows[0][1] == f"{weights[best]:.4f}"
    assert f"weight {weights[best]:.3f}" in view.drawings[1].alt
    (tokens,) = [b for b in view.blocks if isinstance(b, Tokens)]
    assert list(tokens.names) == ["The", "␣state", "␣of", "␣the", "␣Union"]
    assert tokens.losses[1:] == pytest.approx(seen.losses)
    assert len(trained.view(run, replace(s, every_head=True)).blocks) == len(view.blocks) + 1


@pytest.mark.parametrize("prompt", ["a", "x " * 50, "\x00\u202e☃🏳️‍🌈 e\u0301\n\t", SCRIPT, "</svg>&amp;\"'"])
def test_any_text_is_shown_as_text(run: Path, prompt: str) -> None:
    html = fragment(trained.view(run, Trained(prompt)))
    assert "<script" not in html
    assert "<img" not in html
    root = ET.fromstring(html)  # nothing unescaped, nothing left open
    assert all(svg.get("aria-label") for svg in root.iter("svg"))
    svg = export(trained.view(run, Trained(prompt)), ".svg")
    assert {e.tag.split("}")[-1] for e in ET.fromstring(svg).iter()} <= set(
        ["svg", "style", "g", "text", "rect", "line", "circle", "polyline", "polygon", "image", "title"]
    )


def test_a_long_prompt_says_how_much_was_cut(run: Path) -> None:
    view = trained.view(run, Trained("one two " * 30))
    assert "The first 29 tokens of the prompt were cut" in fragment(view)
    with pytest.raises(UserError, match="empty"):
        trained.view(run, Trained(""))
    for layer, head in ((2, 0), (0, 2), (-1, 0)):
        with pytest.raises(UserError, match="layer"):
            trained.view(run, Trained("a b", layer, head))


def test_a_model_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        save_model(Transformer(CONFIG), tmp_path)
        model, _ = trained.load(tmp_path)
        assert torch.equal(model.embeddings.weight, model_view.open_model(tmp_path)[0].embeddings.weight)


def test_large_maps_are_pooled_to_their_largest_weights() -> None:
    values = np.random.default_rng(0).random((150, 150))
    small = trained._pooled(values, 64)
    assert small.shape == (50, 50)
    assert small[3, 7] == values[9:12, 21:24].max()
    assert trained._pooled(values, 200) is values


# Files


@pytest.mark.parametrize("make", [lambda: by_hand.view(ByHand()), lambda: order.view(Order())], ids=["hand", "order"])
def test_exports_are_complete_and_load_nothing(make: Callable[[], View]) -> None:
    view = make()
    html = export(view, ".html").decode()
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "default-src 'none'" in html
    assert shown(view).items() <= dict(re.findall(r'data-name="(\w+)">([^<]*)<', html)).items()
    root = ET.fromstring(export(view, ".svg"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert any(c.isdigit() for c in root.get("aria-label", ""))
    pixels = read_png(export(view, ".png"))
    assert min(pixels.shape[:2]) > 700
    assert len(np.unique(pixels[..., 0])) > 20
    with pytest.raises(UserError, match=r"\.pdf"):
        export(view, ".pdf")


def read_png(content: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return imread(io.BytesIO(content), format="png")


def test_images_hold_their_numbers() -> None:
    values = np.array([[0.0, 1.0, -1.0], [0.5, -0.25, 0.1]])
    pixels = read_png(drawing.png_of(values))
    np.testing.assert_allclose(pixels[..., 3], np.abs(values), atol=1 / 255)
    assert (pixels[0, 1, :3] != pixels[0, 2, :3]).any()


def test_command_exports_and_explains(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent.parent)
    for name in ("attention", "positions", "model"):
        out = tmp_path / f"{name}.html"
        command.main(["export", name, "--out", str(out), "--off", "1.2"])
        assert out.read_text().startswith("<!doctype html>")
    monkeypatch.chdir(tmp_path)
    for arguments, code in (
        (["model", "--out", "a.html"], errors.USAGE),
        (["model", "--out", "a.html", "--model", "nowhere"], errors.CHECKPOINT),
        (["positions", "--out", "a.html", "--d", "3"], errors.USAGE),
        (["attention", "--out", "a.html", "--beta", "inf"], errors.USAGE),
        (["attention", "--out", "a.txt"], errors.USAGE),
        (["attention", "--out", "no/a.svg"], errors.STORAGE),
        (["model", "--out", "a.html", "--model", str(run), "--off", "1-2"], errors.USAGE),
    ):
        with pytest.raises(UserError) as caught:
            command.main(["export", *arguments])
        assert caught.value.code == code
        assert caught.value.why or caught.value.fix
    with pytest.raises(UserError, match="70000"):
        command.free_port(70000)


def test_numbers_are_one_json_object(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from hectogpt.explore import numbers

    monkeypatch.setattr(numbers, "numbers", numbers._average)
    command.main(["numbers", "--json"])
    assert json.loads(capsys.readouterr().out) == numbers._average()


def test_messages_are_escaped() -> None:
    html = message(UserError(SCRIPT, why=SCRIPT, fix=SCRIPT))
    assert "<script" not in html
    assert 'role="alert"' in html


# In the browser


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


# Routes of marimo that run code, write files, open a shell or tell of the machine; and its web sockets.
POSTS = "kernel/run kernel/save kernel/scratchpad/run kernel/instantiate files/list_files packages/add terminal/start"
SOCKETS = "/ws?session_id=x", "/ws_sync?session_id=x&file_key=x", "/terminal/ws", "/iosub", "/lsp/pylsp"


def test_nobody_gets_in_without_the_token_and_nobody_runs_code(address: str) -> None:
    port, token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?access_token=(.+)", address).groups()
    assert len(token) >= 32

    def answer(method: str, path: str, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response

    entry = answer("GET", "/")
    assert (entry.status, entry.getheader("location", "").split("?")[0]) == (303, "/auth/login")
    let_in = {"Authorization": "Basic " + base64.b64encode(f"x:{token}".encode()).decode()}
    assert answer("GET", "/", **let_in).status == 200
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = base64.b64encode(bytes(16)).decode()
    for path in SOCKETS:
        assert answer("GET", path, **upgrade).status == 403
    for route in POSTS.split():
        for headers in ({}, let_in):
            assert answer("POST", f"/api/{route}", **headers).status in (401, 403, 404, 405), route
    assert answer("GET", "/terminal/ws", **upgrade, **let_in).status == 403
    for path in ("/api/status", "/api/usage", "/api/version", "/@file/0-x"):
        assert answer("GET", path).status == 401


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
    for bad, words in ((str(tmp_path / "nowhere"), "there is no such folder"), (str(tmp_path), "no config.json")):
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
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= 400
        found = watched.page.evaluate(
            "getComputedStyle(document.querySelector('section.hecto-view')).getPropertyValue('--ink')"
        )
        assert found == getattr(drawing, ink)["ink"]
    assert watched.problems == []
    context.close()


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
