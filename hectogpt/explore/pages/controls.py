"""The app's controls, the settings that their values stand for, and a view as marimo shows it, with its downloads."""

from __future__ import annotations

import secrets
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import marimo as mo

from hectogpt.errors import UserError
from hectogpt.explore.pages import by_hand as hand
from hectogpt.explore.pages import drawing
from hectogpt.explore.pages.view import STYLE, View, export, fragment, message

BY_HAND, ORDER, TRAINED = "Attention by hand", "Positions", "A trained model"
PAGES = {
    BY_HAND: "Keys, values and a query in two dimensions: what a head can copy or average, and what noise does.",
    ORDER: "What attention knows of the order of tokens, and what sinusoids add.",
    TRAINED: "What every head of a trained model looks at in your text, and what happens without it.",
}
APP_STYLE = """
.hecto-bar{display:flex;flex-wrap:wrap;gap:.5rem 1.6rem;align-items:center}
.hecto-bar>*{max-width:100%}
.hecto-bar>.hecto-prompt{flex:1 0 100%}
.hecto-title{color:var(--ink);font-size:1.4rem;margin:0 3rem 0 0}
.hecto-save{margin-top:1rem}
"""
HEAD = (
    f"<style>{drawing.css('.hecto', '.dark')}{STYLE}{APP_STYLE}</style>"
    '<h1 class="hecto hecto-title">hectoGPT: attention and positions</h1>'
)
NO_RUN = (
    '<div class="hecto hecto-error" role="status"><b>No trained model yet</b><div>Train one with '
    "<code>hectogpt train</code> (it writes a folder below runs), or enter a folder above: a run's, or one in Hugging "
    "Face's GPT-2 layout.</div></div>"
)
ALPHAS = [0.0, *(10.0**e for e in range(-6, 0)), 0.3]
SHORT_QUERY: dict[str, hand.Query] = {
    "copy one value": "copy",
    "average, one head": "average",
    "average, two heads": "heads",
}


@dataclass(frozen=True)
class Asked:
    """What `hectogpt explore` was started with: a model's folder, and the user's own files that may be imported."""

    model: str | None = None
    ideas: tuple[Path, ...] = ()


asked = Asked()  # set by the server before the first page opens


def lay_out(controls: Any) -> mo.Html:
    """Controls side by side, wrapping on narrow screens."""
    parts = "".join(
        f'<div class="hecto-{name}">{mo.as_html(element).text}</div>' for name, element in controls.elements.items()
    )
    return mo.Html(f'<div class="hecto-bar" role="group" aria-label="Controls">{parts}</div>')


def make_slider(label: str, start: float, stop: float, value: float, step: float = 1) -> Any:
    """A slider that shows its value."""
    return mo.ui.slider(start, stop, step, value, label=label, show_value=True)


def make_by_hand(settings: hand.ByHand) -> Any:
    """Controls of the page "Attention by hand"."""
    chosen = next(words for words, query in SHORT_QUERY.items() if query == settings.query)
    return mo.ui.dictionary(
        {
            "query": mo.ui.radio(list(SHORT_QUERY), value=chosen, label="goal", inline=True),
            "beta": make_slider("β, scale of the query", 0, 60, settings.beta, 0.5),
            "alpha": mo.ui.slider(steps=ALPHAS, value=settings.alpha, label="α, variance of keys", show_value=True),
            "spread": make_slider("variance of ka along μa", 0, 2, settings.spread, 0.05),
            "n": make_slider("n, number of keys", 2, 64, settings.n),
            "sample": make_slider("draw of the keys", 0, 99, settings.sample),
            "normalised": mo.ui.checkbox(value=settings.normalised, label="layer-normalised keys"),
        }
    )


def read_by_hand(values: dict[str, Any]) -> hand.ByHand:
    """Settings from the controls' values."""
    return hand.ByHand(**(values | {"query": SHORT_QUERY[values["query"]]}))


def make_order(settings: Any) -> Any:
    """Controls of the page "Positions". d is a text field, so that an odd d gets its message."""
    return mo.ui.dictionary(
        {
            "causal": mo.ui.checkbox(value=settings.causal, label="causal mask"),
            "positions": mo.ui.checkbox(value=settings.positions, label="add sinusoids"),
            "T": make_slider("T, positions", 4, 256, settings.T, 4),
            "d": mo.ui.text(value=str(settings.d), label="d, dimensions"),
            "distance": make_slider("distance", 0, 400, settings.distance),
        }
    )


def read_order(values: dict[str, Any]) -> Any:
    """Settings from the controls' values. Raises UserError if d is not a whole number."""
    from hectogpt.explore.pages.order import Order

    typed = values["d"].strip()
    if not (typed.isascii() and typed.isdigit() and len(typed) < 10):
        raise UserError(f"d = {typed[:40]}", why="dimensions are counted", fix="type an even number, such as 32")
    return Order(**(values | {"d": int(typed)}))


def make_folder(chosen: Path | None) -> Any:
    """The text field for the model's folder."""
    text = "" if chosen is None else str(chosen)
    return mo.ui.text(value=text, label="folder of the model", placeholder="runs/NAME", full_width=True)


def make_trained(settings: Any, layers: int, heads: int, longest: int) -> Any:
    """Controls of the page "A trained model"; longest: the most tokens that the model reads here."""
    names = [f"layer {i + 1} head {j + 1}" for i in range(layers) for j in range(heads)]
    return mo.ui.dictionary(
        {
            "prompt": mo.ui.text_area(value=settings.prompt, label="prompt", rows=2, full_width=True, debounce=400),
            "layer": make_slider("layer", 1, max(1, layers), 1),
            "head": make_slider("head", 1, heads, 1),
            "row": make_slider("token to follow (0: the last)", 0, longest, 0),
            "off": mo.ui.multiselect(names, label="heads switched off"),
            "every_head": mo.ui.checkbox(label="loss change of every head alone (one pass each)"),
        }
    )


def read_trained(values: dict[str, Any]) -> Any:
    """Settings from the controls' values; the controls count from 1."""
    from hectogpt.explore.pages.trained import Trained

    off = tuple((int(words[1]) - 1, int(words[3]) - 1) for words in (name.split() for name in values["off"]))
    return Trained(
        prompt=values["prompt"],
        layer=int(values["layer"]) - 1,
        head=int(values["head"]) - 1,
        row=int(values["row"]) - 1,
        off=off,
        every_head=values["every_head"],
    )


def explain(error: Exception) -> mo.Html:
    """An error's message. One that nobody foresaw is told by a number; its traceback goes to the terminal."""
    if not isinstance(error, UserError):
        number = secrets.token_hex(4)
        text = "".join(traceback.format_exception(error))
        print(f"error {number} in a page\n{text}", file=sys.__stderr__)  # sys.stderr is the browser's console
        error = UserError("the page could not be made", why=f"error {number}, which the terminal tells in full")
    return mo.Html(message(error))


def show_view(make: Callable[[], View], name: str) -> mo.Html:
    """The view with its downloads, or the message of the error that `make` raises."""
    try:
        view = make()
    except Exception as error:
        return explain(error)
    kinds = {".html": "text/html", ".svg": "image/svg+xml", ".png": "image/png"}
    downloads = [
        mo.download(
            lambda suffix=suffix: export(view, suffix), f"{name}{suffix}", kind, label=f"Save {suffix[1:].upper()}"
        )
        for suffix, kind in kinds.items()
    ]
    buttons = "".join(mo.as_html(button).text for button in downloads)
    return mo.Html(f'{fragment(view)}<div class="hecto-bar hecto-save">{buttons}</div>')
