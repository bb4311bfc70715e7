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
from helpers import ROOT

import hectogpt
from hectogpt.cli import main
from hectogpt.data.tokenizer import load_tokenizer
from hectogpt.training.evaluate import evaluate

pytestmark = pytest.mark.browser

SIZES = {"model.d_model": 24, "model.n_heads": 3, "model.n_layers": 2, "model.context_length": 128}
FIELDS = SIZES | {"data.batch_size": 4, "data.seq_len": 128}
STEPS = 100


def written_text() -> str:
    """Text of this repository, 100 kB: it is there without a network, and no made-up one."""
    files = ["README.md", "answers/attention.md", "answers/positions.md", "answers/learning.md", "docs/grading.md"]
    return "\n\n".join((ROOT / file).read_text(encoding="utf-8") for file in files)[:100_000]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(written_text(), encoding="utf-8")
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


def run_of(recipe: str, text: Path, steps: int) -> Any:
    run = hectogpt.recipe(recipe)
    sizes = {name.removeprefix("model."): size for name, size in SIZES.items()}
    head = hectogpt.replace(run.model.lm_head, compact_vocab=True)
    return hectogpt.replace(
        run,
        model=hectogpt.replace(run.model, **sizes, lm_head=head),
        data=hectogpt.replace(run.data, batch_size=4, seq_len=128),
        steps=steps,
        corpus=str(text),
        threads=1,
        dtype="float64",
        head_dtype="float64",
    )


def train_in(page: Any, recipe: str, steps: int, fields: dict[str, Any] = FIELDS) -> Any:
    options = json.dumps({"recipe": recipe, "steps": steps, "seed": 3, "fields": fields})
    return page.evaluate(f"hecto.train({options})")


@pytest.mark.parametrize("recipe", ["baseline", "learning_rate", "embedding_lr", "muon", "rotary", "head_lr"])
def test_the_page_computes_what_training_computes(recipe: str, page: Any, text: Path) -> None:
    """First weights, batches, losses, gradient norms, held-out loss and counts, from a text and a seed alone.

    Both are compared with training in float64. Ten steps differ by rounding alone. After that Adam with an epsilon of
    1e-10 turns rounding into steps, in torch's float32 as well: the page may be three times as far off as torch is.
    """
    there = train_in(page, recipe, STEPS)
    exact = hectogpt.train(hectogpt.replace(run_of(recipe, text, STEPS), seed=3), quiet=True)
    float32 = hectogpt.replace(exact.run, dtype="float32", head_dtype="float32")
    torchs = np.abs(np.subtract(hectogpt.train(float32, quiet=True).losses, exact.losses))
    pages = np.abs(np.subtract(there["losses"], exact.losses))
    print(f"{recipe}: page {pages.max():.5f}, torch's float32 {torchs.max():.5f} from float64")
    assert pages[:10].max() < 1e-3
    assert pages.max() < max(1e-3, 3 * torchs.max())
    assert np.allclose(there["gradNorms"][:10], exact.grad_norms[:10], rtol=1e-3)
    assert there["heldOut"] == pytest.approx(exact.dev_loss, abs=max(1e-3, 3 * torchs.max()))
    assert there["lines"]["uniform"] == pytest.approx(np.log(50257))


def test_firefox_computes_the_same(page: Any, text: Path, tmp_path: Path) -> None:
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        pytest.skip("no Firefox here")
    options = {"recipe": "muon", "steps": 8, "seed": 3, "fields": FIELDS}
    losses = "hecto.train(arguments[0]).then((run) => Array.from(run.losses))"
    with firefox(program, tmp_path / "profile") as other:
        other.open(text.with_name("train.html").as_uri())
        found = other.evaluate(losses, options)
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


def test_the_tokenizer_is_gpt2s(page: Any) -> None:
    draw, tokenizer = random.Random(0), load_tokenizer()
    pieces = [
        "a",
        " the",
        "\n",
        "\t",
        "'ll",
        " 12",
        "é",
        "中",
        "😀",
        "\u00a0",
        "\ufeff",
        "\x85",
        "\x1c",
        "?!",
        "نص",
        "\r\n",
        "<|endoftext|>",
    ]
    texts = ["".join(draw.choices(pieces, k=draw.randint(0, 30))) for _ in range(10_000)]
    found = page.evaluate("(texts) => Promise.all(texts.map((text) => hecto.encode(text)))", texts)
    assert [ids for ids, text in zip(found, texts, strict=True) if ids != tokenizer.encode(text).tolist()] == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"text": "too short"}, "The text is too short"),
        ({"text": "a\u0000b" * 9000}, "This is no text"),
        ({"recipe": "nothing"}, "There is no recipe nothing"),
        ({"fields": {"model.n_heads": 5}}, "cannot be divided among 5 heads"),
        ({"fields": {"model.size": 5}}, "There is no field model.size"),
        ({"steps": 0}, "steps is 0"),
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


def test_first_weights_of_a_run(page: Any, text: Path, browser: Any, tmp_path: Path) -> None:
    """A page made with --weights begins where the run ended."""
    run = hectogpt.replace(run_of("rotary", text, 5), dtype="float32", head_dtype="float32")
    result = hectogpt.train(run, out=tmp_path / "run", quiet=True)
    out = tmp_path / "page.html"
    main(["explore", "export", "train", "--out", str(out), "--text", str(text), "--weights", str(tmp_path / "run")])
    opened = browser.new_page()
    opened.goto(out.as_uri())
    there = train_in(opened, "rotary", 1, {"data.batch_size": 4, "data.seq_len": 128})
    opened.close()
    assert there["losses"][0] == pytest.approx(result.losses[-1], abs=0.5)
    assert there["losses"][0] < result.losses[0] - 0.5
