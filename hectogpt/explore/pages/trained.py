"""The page "A trained model": tokens, all attention maps, one map in full, losses, next tokens, heads switched off."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hectogpt import errors
from hectogpt.data import Tokenizer
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.explore import model_view
from hectogpt.explore.model_view import HeadName, Prompt, Trace
from hectogpt.explore.pages.chart import SIZE, Panel
from hectogpt.explore.pages.drawing import Box, Drawing, Image, Line, Role, Text
from hectogpt.explore.pages.view import Block, Note, Quantities, Quantity, Table, Tokens, View
from hectogpt.interop import open_model
from hectogpt.model.transformer import Transformer

LONGEST = 256  # tokens that the page reads: all maps of a longer prompt would take gigabytes for a large model
LABELLED = 40  # the most tokens that get a label each on an axis
PROMPT = "The state of the Union is strong because the people of the Union are strong."


@dataclass(frozen=True)
class Trained:
    """Settings of the page. layer, head and row (index of a token among those read; -1: the last) count from 0."""

    prompt: str = PROMPT
    layer: int = 0
    head: int = 0
    row: int = -1
    off: tuple[HeadName, ...] = ()
    every_head: bool = False


@functools.lru_cache(maxsize=2)
def _open(folder: Path, changed: float, ideas: tuple[Path, ...]) -> tuple[Transformer, Tokenizer]:
    return open_model(folder, idea=ideas)


def load(folder: Path, ideas: Sequence[Path] = ()) -> tuple[Transformer, Tokenizer]:
    """The model of a folder and its tokenizer, kept until the file changes. ideas: the user's own files that may be
    imported for it. Raises UserError, for a name that no folder can have too."""
    weights = folder / "model.safetensors"
    try:
        place, changed = folder.resolve(), weights.stat().st_mtime if weights.is_file() else 0.0
    except (OSError, RuntimeError, ValueError) as error:  # too long, a circle of links, or with a null character
        raise UserError(
            f"no model in {str(folder)[:80]}",
            why=getattr(error, "strerror", None) or str(error),
            code=errors.CHECKPOINT,
        ) from None
    return _open(place, changed, tuple(ideas))


@functools.lru_cache(maxsize=4)
def _trace(model: Transformer, ids: tuple[int, ...], off: tuple[HeadName, ...]) -> Trace:
    """A forward pass, kept because choosing another map or token needs no new one."""
    return model_view.trace(model, np.array(ids, dtype=np.int64), off)


def choose(asked: object, root: Path) -> Path | None:
    """The folder that was asked for, or the run below `root` that finished last, or None."""
    return Path(asked) if isinstance(asked, str) and asked else model_view.find_newest_run(root)


def view(folder: Path, settings: Trained, ideas: Sequence[Path] = ()) -> View:
    """The page's contents. Raises UserError for a bad folder, prompt or head, and for a file that is not in `ideas`."""
    model, tokenizer = load(folder, ideas)
    prompt = model_view.read_prompt(settings.prompt, tokenizer, model, LONGEST)
    model_view.require_head(model, (settings.layer, settings.head))
    whole, current = (_trace(model, tuple(prompt.ids.tolist()), off) for off in ((), settings.off))
    names = model_view.name_tokens(prompt.ids, tokenizer)
    row = settings.row if 0 <= settings.row < len(names) else len(names) - 1
    blocks: list[Block] = [
        _describe_model(folder, model, prompt, settings),
        Tokens("Tokens, with their loss in nats", names, [None, *map(float, current.losses)]),
        _draw_all_maps(current, settings),
        _draw_map(current, names, row, settings),
        _draw_losses(current, whole, names, settings),
        _draw_next(current, whole, tokenizer, settings),
        _list_losses(current, whole, settings),
        _list_weights(current, names, row, settings),
    ]
    if settings.every_head and len(names) > 1:
        blocks.append(_list_ablations(model, prompt))
    return View("A trained model's attention", tuple(blocks))


def _describe_model(folder: Path, model: Transformer, prompt: Prompt, settings: Trained) -> Note:
    config = model.config
    text = (
        f"{printable(str(folder))}: {config.n_layers} layers of {config.n_heads} heads, {config.d_model} dimensions, "
    )
    text += f"context {config.context_length}. "
    text += (
        f"{len(prompt.ids)} tokens read. In the maps, a row looks at its columns; the shade is the root of the weight."
    )
    if prompt.cut:
        limit = f"{len(prompt.ids)} tokens fit " + (
            "the model's context" if config.context_length <= LONGEST else "on this page"
        )
        text += f" The first {prompt.cut} tokens of the prompt were cut: {limit}."
    if settings.off:
        text += f" Switched off: {', '.join(f'layer {i + 1} head {j + 1}' for i, j in settings.off)}."
    return Note(text)


def _pool(values: np.ndarray, most: int) -> np.ndarray:
    """The map; if it has more than `most` rows, the largest weight of each square of it."""
    size = len(values)
    if size <= most:
        return values
    step = -(-size // most)
    padded = np.zeros((most * step, most * step), dtype=values.dtype)
    padded[:size, :size] = values
    cells = -(-size // step)
    return padded.reshape(most, step, most, step).max(axis=(1, 3))[:cells, :cells]


def _draw_all_maps(current: Trace, settings: Trained) -> Drawing:
    layers, heads = current.maps.shape[:2]
    cell = min(104.0, (2 * SIZE - 30) / heads)
    left, top = 24.0, 44.0
    alt = (
        f"Attention maps of {layers} layers, top to bottom, and {heads} heads, left to right; position t is a row, the "
        f"position it looks at a column. Chosen: layer {settings.layer + 1}, head {settings.head + 1}."
    )
    sheet = Drawing(max(left + heads * cell + 4, 240), top + layers * cell + 4, alt)
    sheet.add(Text(4, 18, "Every head's map", bold=True, size=14))
    for j in range(heads):
        sheet.add(Text(left + (j + 0.5) * cell, top - 6, str(j + 1), "muted", 12, "middle"))
    for i in range(layers):
        sheet.add(Text(left - 8, top + (i + 0.5) * cell + 4, str(i + 1), "muted", 12, "end"))
        for j in range(heads):
            x, y, side = left + j * cell + 2, top + i * cell + 2, cell - 4
            frame = [(x, y), (x + side, y), (x + side, y + side), (x, y + side), (x, y)]
            sheet.add(Image(x, y, side, side, np.sqrt(_pool(current.maps[i, j], 64))))
            chosen = (i, j) == (settings.layer, settings.head)
            sheet.add(Line(frame, "orange" if chosen else "grid", 2.5 if chosen else 1))
            if (i, j) in settings.off:
                sheet.add(Line([frame[0], frame[2]], "orange", 2), Line([frame[1], frame[3]], "orange", 2))
    return sheet


def _draw_map(current: Trace, names: list[str], row: int, settings: Trained) -> Drawing:
    weights = current.maps[settings.layer, settings.head]
    size = len(weights)
    best = int(weights[row].argmax())
    alt = (
        f"Attention of layer {settings.layer + 1}, head {settings.head + 1}, over {size} tokens. "
        f"Token {row + 1}, “{names[row]}”, looks most at token {best + 1}, “{names[best]}”: "
        f"weight {weights[row, best]:.3f}. On average a token gives "
        f"{float(np.trace(weights)) / size:.3f} to itself and {float(weights[:, 0].mean()):.3f} to the first."
    )
    labelled = size <= LABELLED
    edge = 92.0 if labelled else 34.0
    frame = SIZE - 100 if size <= 18 else SIZE + 60
    sheet = Drawing(edge + frame + 6, edge + frame + 36, alt)
    top = 30.0
    sheet.add(Text(4, 18, f"Layer {settings.layer + 1}, head {settings.head + 1}", bold=True, size=14))
    step = frame / size
    if labelled:
        letters = min(12.0, max(8.0, step * 0.75))
        for i, name in enumerate(names):
            short = name if len(name) <= 12 else name[:11] + "…"
            middle = (i + 0.5) * step + letters / 3
            role: Role = "orange" if i == row else "muted"
            sheet.add(Text(edge - 5, top + middle, short, role, letters, "end", bold=i == row))
            sheet.add(Text(edge + middle - 2, top + frame + 8, short, "muted", letters, "start", turn=60))
    sheet.add(Image(edge, top, frame, frame, np.sqrt(_pool(weights, 256))))
    if labelled:
        for t in range(size):
            for i in range(t + 1):
                title = f"{names[t]} (token {t + 1}) looks at {names[i]} (token {i + 1}): {weights[t, i]:.4f}"
                sheet.add(Box(edge + i * step, top + t * step, step, step, "ink", 0, title))
    y0, y1, right = top + row * step, top + (row + 1) * step, edge + frame
    sheet.add(Line([(edge, top), (right, top), (right, top + frame), (edge, top + frame), (edge, top)], "grid", 1))
    sheet.add(Line([(edge, y0), (right, y0), (right, y1), (edge, y1), (edge, y0)], "orange", 1.5))
    return sheet


def _draw_losses(current: Trace, whole: Trace, names: list[str], settings: Trained) -> Drawing:
    size = len(current.losses)
    if not size:
        return Drawing(
            SIZE, 24, "No loss: one token predicts nothing in the prompt.", [Text(4, 18, "One token, no loss")]
        )
    worst = int(current.losses.argmax())
    alt = (
        f"Loss of each token given those before it: mean {current.loss:.2f} nats, "
        f"highest {current.losses[worst]:.2f} for token {worst + 2}, {names[worst + 1]}."
    )
    top = 1.08 * float(max(current.losses.max(), whole.losses.max(), 1e-3))
    labelled = size < LABELLED
    marks = [(i + 0.5, "") for i in range(size)] if labelled else None
    panel = Panel(
        "Loss per token, nats",
        alt,
        (0, size),
        (0, top),
        x="" if labelled else "token",
        height=340 if labelled else 300,
        bottom=92 if labelled else 42,
        width=2 * SIZE if size > 16 else SIZE,
        xticks=marks,
        legend=[("blue", "as chosen"), ("orange", "all heads on")] if settings.off else (),
    )
    for i, loss in enumerate(current.losses):
        x, y = panel.to_sheet(i + 0.12, float(loss))
        right = panel.to_sheet(i + 0.88, 0)[0]
        panel.drawing.add(Box(x, y, right - x, panel.bottom - y, "blue", 0.85, f"{names[i + 1]}: {loss:.4f} nats"))
        if settings.off:
            level = panel.to_sheet(0, float(whole.losses[i]))[1]
            panel.drawing.add(Line([(x - 2, level), (right + 2, level)], "orange", 2.5))
        if labelled:
            name = names[i + 1] if len(names[i + 1]) <= 12 else names[i + 1][:11] + "…"
            panel.drawing.add(Text((x + right) / 2 - 3, panel.bottom + 12, name, "muted", 11, turn=60))
    return panel.drawing


def _draw_next(current: Trace, whole: Trace, tokenizer: Tokenizer, settings: Trained) -> Drawing:
    best = model_view.most_likely_tokens(current)
    names = model_view.name_tokens(np.array([i for i, _ in best]), tokenizer)
    alt = "Likeliest next tokens: " + ", ".join(f"{n} {p:.3f}" for n, (_, p) in zip(names, best, strict=True)) + "."
    sheet = Drawing(SIZE, 44 + 26 * len(best), alt)
    sheet.add(Text(4, 18, "Next token, probability", bold=True, size=14))
    widest = max(p for _, p in best)
    room = 110 if settings.off else 170
    for k, ((i, p), name) in enumerate(zip(best, names, strict=True)):
        y = 38 + 26 * k
        short = name if len(name) <= 16 else name[:15] + "…"
        sheet.add(Text(118, y + 13, short, "ink", 13, "end"))
        sheet.add(Box(126, y, room * p / widest, 17, "blue", 0.85, f"{name}: {p:.5f}"))
        change = f" (was {whole.next_probabilities[i]:.3g})" if settings.off else ""
        sheet.add(Text(126 + room * p / widest + 6, y + 13, f"{p:.3g}{change}", "muted", 12))
    return sheet


def _list_losses(current: Trace, whole: Trace, settings: Trained) -> Quantities:
    tokens = Quantity("tokens", "tokens read", float(len(current.losses) + 1), ".0f")
    if not current.losses.size:
        return Quantities("Loss of the prompt: one token predicts nothing in it", (tokens,))
    rows = [
        Quantity("loss", "mean loss, nats per token", current.loss),
        Quantity("loss_whole", "  with all heads on", whole.loss),
        Quantity("loss_change", "  change by the heads that are off", current.loss - whole.loss, "+.4f"),
        tokens,
    ]
    return Quantities("Loss of the prompt", tuple(rows))


def _list_weights(current: Trace, names: list[str], row: int, settings: Trained) -> Table:
    weights = current.maps[settings.layer, settings.head, row]
    order = np.argsort(-weights[: row + 1], kind="stable")[:8]
    rows = tuple((f"{i + 1}. {names[i]}", f"{weights[i]:.4f}") for i in order.tolist())
    caption = f"Layer {settings.layer + 1}, head {settings.head + 1}: where token {row + 1} looks"
    return Table(caption, ("token", "weight"), rows, token=names[row])


def _list_ablations(model: Transformer, prompt: Prompt) -> Table:
    changes = model_view.ablate_each_head(model, prompt.ids)
    columns = ("layer", *(f"head {j + 1}" for j in range(changes.shape[1])))
    rows = tuple((str(i + 1), *(f"{change:+.4f}" for change in layer)) for i, layer in enumerate(changes))
    return Table("Change of the mean loss with one head off, nats per token", columns, rows)
