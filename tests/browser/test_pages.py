"""The pages that are not trained in, and `hectogpt watch`, in a real browser; the types of scripts, and the module of
kernels, which is what its source and compiler give."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from atlas_records import arm, write
from browsers import axe_faults
from helpers import ROOT, shrunk, write_tokens

import hectogpt
from hectogpt.cli import main
from hectogpt.cli.watch import Board
from hectogpt.data import load_tokenizer
from hectogpt.generation import model_view
from hectogpt.interop import open_model
from hectogpt.web import server
from hectogpt.web.page import fill
from hectogpt.web.server import PageServer
from tools.report import atlas

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run with a checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = str(write_tokens(folder / "t"))
    small = hectogpt.replace(shrunk(hectogpt.recipe("rotary"), steps=6), corpus=corpus)
    hectogpt.train(small, out=folder / "runs" / "small<b>", quiet=True, save_every=3)
    return folder / "runs" / "small<b>"


def opened(browser: Any, address: str, width: int = 1366, dark: bool = False) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 768}, color_scheme="dark" if dark else "light")
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.goto(address)
    return page


def check_layout(page: Any) -> None:
    """Nothing is wider than the page, every control and picture has a name, and nothing failed."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    unnamed = "[...document.querySelectorAll('button, input, select, textarea')].filter((e) => !(e.labels?.length || "
    assert page.evaluate(unnamed + "e.getAttribute('aria-label') || e.textContent.trim())).length") == 0
    assert page.evaluate("document.querySelectorAll('svg:not([aria-label]), canvas:not([aria-label])').length") == 0
    assert page.faults == []
    assert axe_faults(page) == []


@pytest.mark.parametrize("name", ["attention", "positions", "train"])
def test_a_page_fits_and_needs_no_network(name: str, browser: Any, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    main(["explore", "export", name, "--out", str(out)])
    for width in (400, 768, 1366):
        page = opened(browser, out.as_uri(), width, dark=width == 768)
        page.wait_for_timeout(300)
        check_layout(page)
        page.close()


def test_attention_by_hand(browser: Any, tmp_path: Path) -> None:
    """Each question's setting gives its answer, and a key moves by the keyboard."""
    out = tmp_path / "page.html"
    main(["explore", "export", "attention", "--out", str(out)])
    page = opened(browser, out.as_uri())
    page.goto(out.as_uri() + "#1a")
    assert "is a copy of value a" in page.inner_text("#hand-text")
    page.click("text=1 (b) average")
    assert "close to the middle of values a and b" in page.inner_text("#hand-text")
    before = page.inner_text("#weights")
    page.focus("#keys [data-name=a]")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#weights") != before
    assert page.evaluate("document.activeElement.getAttribute('data-name')") == "a"
    one = page.inner_text("#norm-text")
    page.click("text=1 (d) ii")
    share = lambda text: float(text.split("average in ")[1].split(" %")[0])  # noqa: E731
    assert share(page.inner_text("#norm-text")) > share(one) + 30
    page.close()


def test_positions(browser: Any, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    main(["explore", "export", "positions", "--out", str(out)])
    page = opened(browser, out.as_uri())
    page.click("#sorted")
    page.click("#words button:nth-child(2)")
    page.click("#words button:nth-child(6)")
    assert "cannot tell “the dog bit the old man” from “the man bit the old dog”" in page.inner_text("#order-text")
    page.check("#sinusoids")
    assert "the block sees the order" in page.inner_text("#order-text")
    page.close()


def test_a_trained_models_page(browser: Any, run: Path, tmp_path: Path) -> None:
    """Its maps and effects are those of Python; a folder's name is text."""
    out = tmp_path / "page.html"
    main(["explore", "export", "model", "--model", str(run), "--prompt", "The state of", "--out", str(out)])
    page = opened(browser, out.as_uri())
    check_layout(page)
    assert "small<b>" in page.inner_text("#about")
    maps = hectogpt.attention_maps(run, "The state of")
    page.click("#maps button:nth-child(2)")
    assert f"{round(maps[0, 1, 2].max() * 65535) / 65535:.4f}" in page.inner_text("#cell")
    page.focus("#large canvas")
    page.keyboard.press("ArrowLeft")
    place = int(maps[0, 1, 2].argmax())
    assert f"{maps[0, 1, 2, max(place - 1, 0)]:.4f}" in page.inner_text("#cell")
    assert page.locator("#alone tbody tr").count() == 10, "four heads and their six pairs"
    first, _ = open_model(run, step=3)
    page.locator("#step").fill("0")
    assert page.inner_text("#step-text") == "step 3"
    maps = model_view.trace(first, load_tokenizer().encode("The state of")).maps
    assert f"{round(maps[0, 1, 2].max() * 65535) / 65535:.3f}" in page.inner_text("#looks")
    assert page.locator("#history svg").count() == 1
    check_layout(page)
    page.close()


def test_the_code_of_an_exams_page_is_marked(browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roster, exam, answers = (tmp_path / name for name in ("class.csv", "exam", "exam/answers.csv"))
    roster.write_text("name\nAda\nBen\n", encoding="utf-8")
    main(["assignment", "exam", str(roster), "--questions", "3", "--seed", "s", "--out", str(exam)])
    sheet, key = (exam / "key.csv").read_text(encoding="utf-8").splitlines()[2].split(",")[1:]
    page = opened(browser, (exam / "page.html").as_uri(), width=400)
    page.fill("#sheet", "ABCD-999")
    page.press("#sheet", "Enter")
    assert "There is no sheet ABCD-999" in page.inner_text("#said")
    page.fill("#sheet", sheet.lower())
    page.press("#sheet", "Enter")
    check_layout(page)
    for number, letter in enumerate(key, start=1):
        assert "without an answer" in page.inner_text("#said")
        page.locator(f"section:nth-child({number}) label", has_text=letter).click()
    assert "all questions have an answer" in page.inner_text("#said")
    answers.write_text(f"name,answers\nBen,{page.inner_text('#code')}\n", encoding="utf-8")
    page.close()
    main(["assignment", "exam", "--mark", str(exam), str(answers)])
    assert "sheets: 1; 3.00 points" in capsys.readouterr().out


@pytest.mark.parametrize("width", [400, 1366])
def test_a_report_shows_every_block_and_text_as_text(width: int, browser: Any, tmp_path: Path) -> None:
    """The page of the grader and of the ladder."""
    evil = "<img src=x onerror=document.title='ran'>"
    lines = {"label": evil, "xLabel": "step", "yLabel": evil, "levels": [{"name": evil, "y": 2}]}
    rows = [[evil, {"text": evil, "href": "javascript:alert(1)", "kind": "good"}, {"bar": 0.5}, None]]
    blocks = [
        *({"text": evil, "kind": "soft"}, {"text": evil, "kind": "bad", "word": evil}, {"heading": evil}),
        {"chart": lines | {"curves": [{"name": evil, "points": [[1, 3], [2, 1]]}]}},
        *({"table": {"head": ["a", evil, "b", ""], "rows": rows}}, {"list": [evil]}, {"code": evil}),
    ]
    out = tmp_path / "page.html"
    out.write_text(fill("report", {"title": evil, "blocks": blocks}), encoding="utf-8")
    page = opened(browser, out.as_uri(), width, dark=width == 400)
    check_layout(page)
    assert page.title() == evil
    assert page.locator("img, td a").count() == 0
    page.focus("svg")
    page.keyboard.press("Home")
    assert "step 1:" in page.inner_text(".reading")
    page.click("summary")
    page.wait_for_selector("details tbody tr:nth-child(2)")
    page.close()


def test_a_page_that_is_not_whole_says_so(browser: Any, tmp_path: Path) -> None:
    """Cut in the middle it has no script; edited, its data cannot be read."""
    whole = fill("report", {"title": "a", "blocks": [{"text": "b" * 1000}]})
    cut, edited = whole[: len(whole) // 2], whole.replace('{"text"', "{text")
    for text, sentence in ((cut, "its end is missing"), (edited, "cut off or was edited")):
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_selector("#whole", state="visible")
        assert sentence in page.inner_text("#whole")
        page.close()


@pytest.mark.parametrize("width", [400, 1366])
def test_rows_of_the_atlas_are_filtered_and_open(width: int, browser: Any, tmp_path: Path) -> None:
    swiglu, tied = atlas.ideas(["swiglu", "tied"])[::-1]
    arms = [arm(None, 0.0, 12), arm(swiglu, 0.1), arm(tied, -3.0)]
    arms += [arm(None, 0.0, text="sotu"), arm(swiglu, 0.05, text="sotu")]
    _, out = atlas.write_pages(write(tmp_path, arms), tmp_path)
    page = opened(browser, out.as_uri(), width, dark=width == 400)
    rows = page.locator("#rows > details")
    assert rows.first.get_attribute("data-name") == "swiglu"
    assert "TinyStories: better +0.099" in rows.first.locator("svg").get_attribute("aria-label")
    page.select_option("#scale", "0.2")
    page.select_option("#word", "worse")
    assert [row.get_attribute("data-name") for row in rows.all()] == ["tied"]
    assert "◀" in rows.first.locator("svg").text_content(), "it leaves the scale"
    page.select_option("#word", "")
    page.select_option("#kind", "mlp")
    assert rows.count() == len([idea for idea in atlas.ideas() if idea.kind == "mlp"])
    rows.first.locator("summary").click()
    rows.first.locator("dl").wait_for()
    inside = rows.first.locator(".inside").inner_text()
    told = (swiglu.source, "def swiglu(run", "+0.1000", "--first-seed 401", atlas.sha_of(swiglu.code)[:16])
    assert [text for text in told if text not in inside] == []
    check_layout(page)
    page.close()


@pytest.fixture
def watching(run: Path) -> Iterator[PageServer]:
    server = PageServer(fill("watch", None), Board([run], None, (), Path("runs")).data)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_watch_shows_a_run(browser: Any, watching: PageServer, run: Path) -> None:
    page = opened(browser, watching.address)
    page.wait_for_selector("#large canvas", timeout=60_000)
    assert "small<b>" in page.inner_text("#runs")
    assert "6 of 6" in page.inner_text("#runs")
    prompt = json.loads((run / "summary.json").read_text(encoding="utf-8"))["prompt"]
    assert page.text_content("#sample").startswith(prompt or "none"), "the run's own, of its held-out text"
    check_layout(page)
    page.close()


def status_of(address: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()  # its answer; Python 3.14 warns about one that is left open
        return error.code


def test_watch_answers_its_reader_alone(watching: PageServer) -> None:
    own, port = watching.address, watching.server_port
    root = f"http://127.0.0.1:{port}/"
    assert status_of(own) == 200
    assert status_of(own + "data?look=nothing") == 200
    for address in (root, root + "data", own[:-2] + "x/data", own + "../etc/passwd", own + "%2e%2e/run.json"):
        assert status_of(address) == 404
    assert status_of(own, Host="evil.example") == 421
    assert status_of(own, Host=f"evil.example:{port}") == 421
    assert status_of(own + "data", Origin="http://evil.example") == 403
    assert status_of(own + "data", Origin="null") == 403
    assert status_of(own + "data", Origin=f"127.0.0.1:{port}") == 403
    assert status_of(own + "data", Origin=f"http://127.0.0.1:{port}") == 200
    request = urllib.request.Request(own + "data", data=b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    refused.value.close()
    with urllib.request.urlopen(own, timeout=20) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Access-Control-Allow-Origin"] is None


def test_a_request_that_takes_too_long_is_cut_off(watching: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However regularly its bytes come."""
    monkeypatch.setattr(server, "SECONDS", 0.5)
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", watching.server_port)) as client, suppress(ConnectionError):
        client.sendall(b"GET / HTTP/1.0\r\n")
        for _ in range(200):
            client.sendall(b"X: y\r\n")
            time.sleep(0.1)
    assert time.monotonic() < begun + 15


def test_watch_reads_hostile_rows(tmp_path: Path) -> None:
    """Numbers that are none, rows without an end and markup in names do not reach the page as such."""
    folder = tmp_path / "<img src=x>"
    folder.mkdir()
    rows = ['{"step": 1, "train/loss": NaN}', '{"step": 2, "train/loss": 1e999}', '{"step": "x"}', "[" * 100_000]
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n" + "0" * 1_000_000)
    (folder / "run.json").write_text('{"run": {"steps": 3}}')
    board = Board([folder], None, (), tmp_path)
    found = json.loads(json.dumps(board.data({}), allow_nan=False))
    assert found["runs"][0]["rows"]["loss"] == [None, None]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("0" * 10_000_000)
    assert board.data({})["runs"][0]["rows"]["loss"] == [], "of a long file the end is read, and there are no rows"


# --- the scripts ------------------------------------------------------------------------------------------------------

WEB = ROOT / "hectogpt" / "web"
OPTIONS = ["--allowJs", "--checkJs", "--noEmit", "--strict", "false", "--skipLibCheck"]
OPTIONS += ["--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler"]


@pytest.mark.parametrize(("scripts", "library"), [("pages/*.js", "dom"), ("engine/worker.js", "webworker")])
def test_the_types_of_scripts_agree(scripts: str, library: str) -> None:
    """TypeScript's compiler reads the types in comments: npm install --prefix .venv/npm typescript"""
    here = ROOT / ".venv" / "npm" / "node_modules" / ".bin" / "tsc"
    compiler = str(here) if here.exists() else shutil.which("tsc")
    if compiler is None:
        pytest.skip("no TypeScript compiler here")
    command = [compiler, *OPTIONS, "--lib", f"es2022,{library}", *map(str, WEB.glob(scripts))]
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_modules_are_what_their_compiler_makes_of_their_source(tmp_path: Path) -> None:
    folder = WEB / "engine"
    made_by = (folder / "kernels.wasm.txt").read_text(encoding="utf-8").strip()
    clang = shutil.which("clang")
    version = clang and subprocess.run([clang, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    if version != made_by or shutil.which("wasm-ld") is None:
        pytest.skip(f"the module was made by {made_by} and wasm-ld; here is {version}")
    subprocess.run(["sh", str(folder / "build.sh"), str(tmp_path)], check=True)
    for name in ("kernels.wasm", "kernels64.wasm"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert sum(path.stat().st_size for path in folder.glob("*.wasm")) <= 100_000
