"""The page that trains, in a real browser, opened as a file: it computes what `hectogpt train` computes."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsers import firefox

import hectogpt
from hectogpt.cli import main
from hectogpt.data.tokenizer import load_tokenizer
from hectogpt.model.weights import save_model
from hectogpt.training.evaluate import evaluate
from hectogpt.training.precision import choose
from hectogpt.training.setup import build_model
from hectogpt.web.train_page import own_texts

pytestmark = pytest.mark.browser

SIZES = {"model.d_model": 24, "model.n_heads": 3, "model.n_layers": 2, "model.context_length": 128}
FIELDS = SIZES | {"data.batch_size": 4, "data.seq_len": 128}
STEPS = 30


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(own_texts()[1][1], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(browser: Any, text: Path) -> Iterator[Any]:
    """The page as a user exports and opens it. No address but its own is asked for."""
    out = text.with_name("train.html")
    main(["explore", "export", "train", "--out", str(out), "--text", str(text)])
    assert out.stat().st_size < 3_000_000
    opened = browser.new_page(viewport={"width": 1366, "height": 768})
    opened.set_default_timeout(120_000)
    asked, faults = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    opened.goto(out.as_uri())
    yield opened
    assert faults == []
    assert [address for address in asked if not address.startswith(("blob:", out.as_uri()))] == []
    opened.close()


def run_of(recipe: str, text: Path, steps: int, dtype: Any) -> Any:
    run = hectogpt.recipe(recipe)
    sizes: dict[str, Any] = {name.removeprefix("model."): size for name, size in SIZES.items()}
    head = hectogpt.replace(run.model.lm_head, compact_vocab=True)
    model, data = hectogpt.replace(run.model, **sizes, lm_head=head), hectogpt.Data(batch_size=4, seq_len=128)
    given = {"steps": steps, "seed": 3, "corpus": str(text), "threads": 1, "dtype": dtype, "head_dtype": dtype}
    return hectogpt.replace(run, model=model, data=data, **given)


def train_in(page: Any, recipe: str, steps: int, fields: dict[str, Any] = FIELDS, dtype: str = "float32") -> Any:
    options = json.dumps({"recipe": recipe, "steps": steps, "seed": 3, "fields": fields | {"dtype": dtype}})
    return page.evaluate(f"hecto.train({options})")


@pytest.fixture(scope="module", params=["baseline learning_rate embedding_lr muon", "rotary head_lr", "smear browser"])
def with_first_weights(request: pytest.FixtureRequest, browser: Any, text: Path) -> Iterator[tuple[Any, list[str]]]:
    """A page that was made with the first weights of a run, and the recipes that begin with them."""
    recipes = request.param.split()
    run = run_of(recipes[0], text, 1, "float32")
    folder = text.with_name(recipes[0])
    folder.mkdir()
    save_model(build_model(run, choose(run), hectogpt.open_corpus(str(text))), folder)
    out = text.with_name(f"{recipes[0]}.html")
    main(["explore", "export", "train", "--out", str(out), "--text", str(text), "--weights", str(folder)])
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(out.as_uri())
    yield page, recipes
    page.close()


def test_the_page_computes_what_training_computes(with_first_weights: tuple[Any, list[str]], text: Path) -> None:
    """Losses, gradient norms and the held-out loss of every recipe, from the same weights, text and order.

    Training makes rounding larger with every step: Adam with an epsilon of 1e-10 turns it into steps. In float64 thirty
    losses are those of `hectogpt train --dtype float64` (from head_lr on, where it grows fastest, ten), in float32 ten.
    After that the page may be three times as far from float64 as torch's float32 is here. Of embedding_lr it may be
    0.02: the page is .0159 away on every processor, torch .003 on a Zen 4; of muon and head_lr the page is the nearer.
    """
    page, recipes = with_first_weights
    for recipe in recipes:
        dtypes = ("float64", "float32")
        exact, torchs = (hectogpt.train(run_of(recipe, text, STEPS, dtype), quiet=True) for dtype in dtypes)
        double, single = (train_in(page, recipe, STEPS, dtype=dtype) for dtype in dtypes)
        away = [
            np.abs(np.subtract(losses, exact.losses)) for losses in (double["losses"], single["losses"], torchs.losses)
        ]
        least = 0.02 if recipe == "embedding_lr" else 1e-3
        exactly, floor = 10 if recipe in ("head_lr", "smear", "browser") else 30, max(least, 3 * away[2].max())
        assert away[0][:exactly].max() < 1e-3
        assert away[1][:10].max() < 1e-3
        assert max(away[0].max(), away[1].max()) < floor
        assert np.allclose(double["gradNorms"][:exactly], exact.grad_norms[:exactly], rtol=1e-2)
        assert double["heldOut"] == pytest.approx(exact.dev_loss, abs=floor)


def test_a_seed_gives_the_weights_and_the_counts_of_training(page: Any, text: Path) -> None:
    there = train_in(page, "rotary", 10)
    here = hectogpt.train(run_of("rotary", text, 10, "float32"), quiet=True)
    assert np.allclose(there["losses"], here.losses, atol=1e-3)
    assert np.allclose(there["gradNorms"], here.grad_norms, rtol=1e-3)
    assert there["lines"]["uniform"] == pytest.approx(np.log(50257))


@pytest.mark.slow
def test_the_default_ends_below_the_lines_of_models_that_count(browser: Any, tmp_path: Path) -> None:
    """As the page is opened, with nothing chosen. Half a minute on one core."""
    main(["explore", "export", "train", "--out", str(tmp_path / "train.html")])
    page = browser.new_page()
    page.set_default_timeout(300_000)
    page.goto((tmp_path / "train.html").as_uri())
    run = page.evaluate("hecto.train()")
    assert len(run["losses"]) == 100
    assert run["heldOut"] < min(run["lines"].values()) - 0.05
    page.close()


def test_firefox_computes_the_same(page: Any, text: Path, tmp_path: Path) -> None:
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        pytest.skip("no Firefox here")
    options = {"recipe": "muon", "steps": 8, "seed": 3, "fields": FIELDS}
    script = "const [options, end] = arguments; hecto.train(options).then((run) => end([...run.losses]), end)"
    with firefox(program, tmp_path / "profile") as call:
        call("WebDriver:Navigate", url=text.with_name("train.html").as_uri())
        found = call("WebDriver:ExecuteAsyncScript", script=script, args=[options], scriptTimeout=120_000)["value"]
    assert found == train_in(page, "muon", 8)["losses"]


def test_heads_off_weights_and_a_saved_page(page: Any, text: Path, browser: Any, tmp_path: Path) -> None:
    """Python, which reads the weights of the page, measures the same effects; a saved page goes on with its run."""
    train_in(page, "rotary", 20)
    found = {mode: page.evaluate(f"hecto.ablate([[0, 1], [1, 2]], '{mode}')") for mode in ("zero", "mean")}
    assert all(effect["se"] > 0 and effect["delta"] != 0 for effect in found.values())
    content = bytes(page.evaluate("hecto.weights().then((buffer) => Array.from(new Uint8Array(buffer)))"))
    (tmp_path / "model.safetensors").write_bytes(content)
    model, tokenizer = hectogpt.load(tmp_path)
    dev = hectogpt.open_corpus(str(text)).tokens["dev"]
    score = lambda: evaluate(model, dev, tokenizer.token_bytes).loss  # noqa: E731
    whole = score()
    assert isinstance(hectogpt.generate((model, tokenizer), "The", max_new_tokens=4), str)
    width = model.config.d_attention
    with torch.no_grad():
        for layer, head in ((0, 1), (1, 2)):
            model.backbone[layer].attention.W_o.weight[:, head * width : (head + 1) * width] = 0
    assert score() - whole == pytest.approx(found["zero"]["delta"], abs=1e-4)

    saved = tmp_path / "saved.html"
    saved.write_text(page.evaluate("hecto.save()"), encoding="utf-8")
    again = browser.new_page()
    again.goto(saved.as_uri())
    again.wait_for_selector("#each:enabled", timeout=60_000)
    same = again.evaluate("hecto.ablate([[0, 1], [1, 2]], 'zero')")
    assert same["delta"] == pytest.approx(found["zero"]["delta"], abs=1e-6)
    again.close()


def test_a_run_goes_on_from_its_newest_weights_whatever_is_shown(page: Any) -> None:
    whole = train_in(page, "rotary", 6, FIELDS | {"model.context_length": 128})
    for name, value in {"steps": 6, "seed": 3, "dModel": 24, "heads": 3, "seqLen": 128}.items():
        page.evaluate(f"document.getElementById('set-{name}').value = {value}")
    page.evaluate("document.getElementById('set-recipe').value = 'rotary'")
    page.evaluate("document.getElementById('set-batchSize').value = '4'")
    page.click("#reset:enabled")
    for step in (1, 2, 3):
        page.click("#one:enabled")
        page.get_by_text(f"Paused after step {step}.").wait_for()
    slider = "document.getElementById('slider')"
    page.evaluate(f"({slider}.value = 1, {slider}.dispatchEvent(new Event('change')))")
    page.click("#start:enabled")
    page.get_by_text("Done: 6 steps").wait_for()
    assert f"held-out loss is {whole['heldOut']:.3f}" in page.inner_text("#loss-text")


def test_the_tokenizer_is_gpt2s(page: Any) -> None:
    draw, tokenizer = random.Random(0), load_tokenizer()
    pieces = ["a", " the", "\n", "\t", "'ll", " 12", "é", "中", "😀", "\u00a0", "\ufeff", "\x85", "\x1c", "?!", "نص"]
    pieces += ["\r\n", "<|endoftext|>"]
    texts = ["".join(draw.choices(pieces, k=draw.randint(0, 30))) for _ in range(10_000)]
    found = page.evaluate("(texts) => Promise.all(texts.map((text) => hecto.encode(text)))", texts)
    assert [ids for ids, text in zip(found, texts, strict=True) if ids != tokenizer.encode(text).tolist()] == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"text": "too short"}, "The text is too short"),
        ({"text": "a\u0000b" * 9000}, "This is not a text file"),
        ({"recipe": "nothing"}, "There is no recipe nothing"),
        ({"fields": {"model.n_heads": 5}}, "cannot be divided among 5 heads"),
        ({"fields": {"model.size": 5}}, "There is no field model.size"),
        ({"steps": 0}, "steps is 0"),
        ({"fields": {"lr": 0.1}}, "would change nothing"),
        ({"steps": 30, "recipe": "learning_rate", "fields": FIELDS | {"lr": 3e38}}, "The weights after step"),
    ],
)
def test_bad_input_is_one_sentence(options: dict[str, Any], sentence: str, page: Any) -> None:
    error = page.evaluate(f"hecto.train({json.dumps(options)}).then(() => 'none', (error) => error.message)")
    assert sentence in error


def test_a_text_is_shown_as_text(page: Any) -> None:
    attack = "<img src=x onerror=document.title='ran'> </script><script>document.title='ran'</script> " * 200
    page.evaluate("(text) => hecto.train({text, steps: 1, fields: {'model.d_model': 8, 'model.n_heads': 1}})", attack)
    page.wait_for_timeout(300)
    assert page.title() != "ran"
    assert page.locator("main img").count() == 0
