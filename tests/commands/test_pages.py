"""The pages' views show what the functions give, any text is shown as text, and exported files load nothing."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import CONFIG, SCRIPT, make_run, shown

from hectogpt import errors
from hectogpt.cli import explore as command
from hectogpt.errors import UserError
from hectogpt.explore import attention, estimates, model_view, positions
from hectogpt.explore.pages import by_hand, drawing, order, trained
from hectogpt.explore.pages.by_hand import ByHand
from hectogpt.explore.pages.order import Order
from hectogpt.explore.pages.trained import Trained
from hectogpt.explore.pages.view import Quantities, Table, Tokens, View, export, fragment, message
from hectogpt.interop import open_model
from hectogpt.model import Transformer
from hectogpt.model.weights import save_model


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("query", ["copy", "average", "heads"])
def test_attention_s_numbers_are_the_functions_(query: by_hand.Query) -> None:
    s = ByHand(query, beta=7.5, alpha=1e-3, spread=0.3, n=11, sample=5)
    seen = attention.sample_projections(by_hand.SAMPLES, 11, 1e-3, 0.3)
    first, second = attention.attend_two_heads(seen, 7.5)
    c = {"copy": first, "average": attention.attend_one_head(seen, 7.5), "heads": (first + second) / 2}[query]
    found = by_hand.view(s).values
    assert found["weight_a"] == c[5, 0]
    assert found["weight_b"] == c[5, 1]
    assert found["mean_a"] == pytest.approx(c[:, 0].mean())
    assert found["variance"] == pytest.approx(estimates.estimate_total_variance(c).value)
    assert found["variance_low"] < found["variance_limit"] * 1.1
    goal = np.eye(11)[0] if query == "copy" else (np.eye(11)[0] + np.eye(11)[1]) / 2
    assert found["error"] == pytest.approx(np.linalg.norm(c[5] - goal))
    if query == "copy":
        assert 1 - found["weight_a"] <= found["bound"]
        scores = 7.5 * seen[5, :, 0]
        assert found["gap"] == pytest.approx(scores[0] - scores[1:].max())
    if query == "average":
        assert found["taken_limit"] == attention.takeover_probability(7.5, 11, spread=0.3)
        assert found["variance_limit"] == attention.single_head_variance(7.5, 11, spread=0.3)


@pytest.mark.parametrize("query", ["copy", "average", "heads"])
@pytest.mark.parametrize("n", [2, 16])
def test_the_drawn_closed_form_is_the_limit_of_the_sampled_bins(query: by_hand.Query, n: int) -> None:
    edges = np.linspace(0, 1, 41)
    s = ByHand(query, beta=3.0, alpha=1e-10, n=n)
    exact = by_hand.closed_form(s, edges)
    weights = np.mean(by_hand.attend(by_hand.sample_projections(n, 1e-10, 0.5, False), s), axis=0)[:, 0]
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
    assert found["distance"] == positions.embedding_distance(np.array([7]), 24)[0]
    assert found["nearest"] == positions.find_nearest_pair(50, 24).distance
    assert found["residue"] < 1e-12
    assert order.view(Order()).values["gap"] < 1e-12 < 0.1 < order.view(Order(causal=True)).values["gap"]
    for bad in (Order(d=33), Order(d=0), Order(T=1), Order(d=10**6)):
        with pytest.raises(UserError):
            order.view(bad)


@pytest.mark.parametrize(
    ("T", "d", "words"),
    [(64, 32, "any two neighbours"), (2, 32, "0 and 1"), (100, 2, "any two that are 44 apart"), (45, 2, "0 and 44")],
)
def test_of_tied_pairs_none_is_called_the_nearest(T: int, d: int, words: str) -> None:
    pair = positions.find_nearest_pair(T, d)
    apart = positions.embedding_distance(np.arange(1, T), d)
    tied = [(s, t) for t in range(T) for s in range(t) if apart[t - s - 1] == apart.min()]
    assert pair.ties == len(tied)
    assert pair.exact == apart.min()
    assert order.describe_nearest(pair, T).endswith(words)
    assert any(
        b.rows[-1].label.endswith(words) for b in order.view(Order(T=T, d=d)).blocks if isinstance(b, Quantities)
    )


def test_the_model_s_view_shows_its_own_attention(run: Path) -> None:
    model, tokenizer = open_model(run)
    s = Trained("The state of the Union", layer=1, head=1, row=3, off=((0, 1),))
    view = trained.view(run, s)
    ids = model_view.read_prompt(s.prompt, tokenizer, model).ids
    seen, whole = model_view.trace(model, ids, s.off), model_view.trace(model, ids)
    assert view.values["loss"] == pytest.approx(seen.loss)
    assert view.values["loss_change"] == pytest.approx(seen.loss - whole.loss)
    assert abs(view.values["loss_change"]) > 1e-3
    (table,) = [b for b in view.blocks if isinstance(b, Table)]
    weights = seen.maps[1, 1, 3]
    best = int(weights.argmax())
    assert table.rows[0][1] == f"{weights[best]:.4f}"
    assert (table.caption, table.token) == ("Layer 2, head 2: where token 4 looks", "␣the")
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
        assert torch.equal(model.embeddings.weight, open_model(tmp_path)[0].embeddings.weight)


BAD_NAMES = ["\0", "x" * 5000, "/dev/null", "\udc80", "~nobody-of-this-name/x", "."]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_folder_with_an_impossible_name_gets_a_message(name: str) -> None:
    """D6: the page shows its own message, whatever is typed."""
    with pytest.raises(UserError) as caught:
        trained.view(Path(name), Trained())
    assert caught.value.code == errors.CHECKPOINT
    assert len(caught.value.what) < 500
    message(caught.value).encode()  # a lone surrogate cannot be sent


@pytest.mark.parametrize("config", ["[" * 100_000, '{"a":' * 100_000, '{"a": "' + "x" * 20_000_000 + '"}'])
def test_a_config_that_is_a_bomb_gets_a_message(config: str, tmp_path: Path) -> None:
    """D6."""
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError) as caught:
        trained.view(tmp_path, Trained())
    assert caught.value.code == errors.CHECKPOINT


def test_weights_that_overflow_get_a_message(run: Path, tmp_path: Path) -> None:
    """D6: the numbers are finite in the file, and not in the model."""
    model, _ = open_model(run)
    with torch.no_grad():
        for p in model.parameters():
            p *= 1e30
    save_model(model, tmp_path)
    with pytest.raises(UserError, match="overflow") as caught:
        command.main(["export", "model", "--model", str(tmp_path), "--out", str(tmp_path / "a.svg")])
    assert caught.value.code == errors.DIVERGED
    assert not (tmp_path / "a.svg").exists()


def test_settings_have_ceilings() -> None:
    """D6: more keys than memory holds, and numbers beyond those that can be drawn."""
    for change, told in (
        ({"n": 10**9}, "512"),
        ({"beta": 1e308}, "500"),
        ({"alpha": 501.0}, "500"),
        ({"spread": 1e9}, "500"),
    ):
        with pytest.raises(UserError) as caught:
            by_hand.view(replace(ByHand(), **change))
        assert told in caught.value.fix
    for change in ({"n": by_hand.MOST_KEYS}, {"beta": by_hand.LARGEST, "alpha": by_hand.LARGEST}, {"beta": -500.0}):
        assert export(by_hand.view(replace(ByHand("copy"), **change)), ".svg")


def test_a_fault_of_a_page_is_told_by_a_number(capfd: pytest.CaptureFixture[str]) -> None:
    """K11: the browser gets neither path nor traceback, the terminal gets both."""
    controls = pytest.importorskip("hectogpt.explore.pages.controls")
    html = controls.explain(ValueError("/home/user/secret")).text
    assert "secret" not in html
    told = capfd.readouterr().err
    assert "secret" in told
    assert re.search(r"error [0-9a-f]{8}", html).group() in told


def test_large_maps_are_pooled_to_their_largest_weights() -> None:
    values = np.random.default_rng(0).random((150, 150))
    small = trained._pool(values, 64)
    assert small.shape == (50, 50)
    assert small[3, 7] == values[9:12, 21:24].max()
    assert trained._pool(values, 200) is values


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
    pixels = read_png(drawing.encode_png(values))
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
        (["attention", "--out", "\0.svg"], errors.STORAGE),
        (["attention", "--out", "a.html", "--n", "1000000000"], errors.USAGE),  # D6
        (["model", "--out", "a.html", "--model", "\0"], errors.CHECKPOINT),
        (["model", "--out", "a.html", "--model", str(run), "--off", "1-2"], errors.USAGE),
    ):
        with pytest.raises(UserError) as caught:
            command.main(["export", *arguments])
        assert caught.value.code == code
        assert caught.value.why or caught.value.fix


def test_numbers_are_one_json_object(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from hectogpt.explore import numbers

    monkeypatch.setattr(numbers, "numbers", numbers._compute_average)
    command.main(["numbers", "--json"])
    assert json.loads(capsys.readouterr().out) == numbers._compute_average()


def test_messages_are_escaped() -> None:
    html = message(UserError(SCRIPT, why=SCRIPT, fix=SCRIPT))
    assert "<script" not in html
    assert 'role="alert"' in html
