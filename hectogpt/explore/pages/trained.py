"""A trained model's attention: tokens, every head's map, one map in full, losses, next tokens, heads switched off."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hectogpt.data import Tokenizer
from hectogpt.explore import model_view
from hectogpt.explore.model_view import HeadName, Prompt, Seen
from hectogpt.explore.pages.chart import SIZE, Panel
from hectogpt.explore.pages.drawing import Box, Drawing, Image, Line, Role, Text
from hectogpt.explore.pages.view import Block, Note, Quantities, Quantity, Table, Tokens, View
from hectogpt.model.transformer import Transformer

LONGEST = 256  # tokens a page shows; all maps of a longer prompt would take gigabytes in a large model
LABELLED = 40  # tokens that still get a label on an axis
PROMPT = "The state of the Union is strong because the people of the Union are strong."


@dataclass(frozen=True)
class Trained:
    """What the controls set. layer, head and row (a token's place among those read) count from 0."""

    prompt: str = PROMPT
    layer: int = 0
    head: int = 0
    row: int = -1
    off: tuple[HeadName, ...] = ()
    every_head: bool = False


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, changed: float) -> tuple[Transformer, Tokenizer]:
    return model_view.open_model(folder)


def load(folder: Path) -> tuple[Transformer, Tokenizer]:
    """A model, kept until its file changes. Raises UserError."""
    weights = folder / "model.safetensors"
    return _loaded(folder.resolve(), weights.stat().st_mtime if weights.is_file() else 0.0)


@functools.lru_cache(maxsize=4)
def _seen(model: Transformer, ids: tuple[int, ...], off: tuple[HeadName, ...]) -> Seen:
    """Kept, since choosing another map of the same pass needs no new pass."""
    return model_view.look(model, np.array(ids, dtype=np.int64), off)


def choose(asked: object, root: Path) -> Path | None:
    """The folder that was asked for, or the run that finished last, or None."""
    return Path(asked) if isinstance(asked, str) and asked else model_view.newest_run(root)


def view(folder: Path, s: Trained) -> View:
    """Everything of the page. Raises UserError for a bad folder, prompt or head."""
    model, tokenizer = load(folder)
    prompt = model_view.read_prompt(s.prompt, tokenizer, model, LONGEST)
    model_view.need_head(model, (s.layer, s.head))
    whole, seen = (_seen(model, tuple(prompt.ids.tolist()), off) for off in ((), s.off))
    names = model_view.names_of(prompt.ids, tokenizer)
    row = s.row if 0 <= s.row < len(names) else len(names) - 1
    blocks: list[Block] = [
        _about(folder, model, prompt, s),
        Tokens("Tokens, with their loss in nats", names, [None, *map(float, seen.losses)]),
        _maps(seen, s),
        _map(seen, names, row, s),
        _losses(seen, whole, names, s),
        _next(seen, whole, tokenizer, s),
        _numbers(seen, whole, s),
        _row(seen, names, row, s),
    ]
    if s.every_head and len(names) > 1:
        blocks.append(_every_head(model, prompt))
    return View("A trained model's attention", tuple(blocks))


def _about(folder: Path, model: Transformer, prompt: Prompt, s: Trained) -> Note:
    c = model.config
    text = f"{folder}: {c.n_layers} layers of {c.n_heads} heads, {c.d_model} dimensions, context {c.context_length}. "
    text += (
        f"{len(prompt.ids)} tokens read. In the maps, a row looks at its columns; the shade is the root of the weight."
    )
    if prompt.cut:
        limit = f"{len(prompt.ids)} tokens fit " + (
            "the model's context" if c.context_length <= LONGEST else "on this page"
        )
        text += f" The first {prompt.cut} tokens of the prompt were cut: {limit}."
    if s.off:
        text += f" Switched off: {', '.join(f'layer {i + 1} head {j + 1}' for i, j in s.off)}."
    return Note(text)


def _pooled(values: np.ndarray, most: int) -> np.ndarray:
    """The map, or the largest weight of each square of it where it is larger than `most`."""
    size = len(values)
    if size <= most:
        return values
    step = -(-size // most)
    padded = np.zeros((most * step, most * step), dtype=values.dtype)
    padded[:size, :size] = values
    cells = -(-size // step)
    return padded.reshape(most, step, most, step).max(axis=(1, 3))[:cells, :cells]


def _maps(seen: Seen, s: Trained) -> Drawing:
    layers, heads = seen.maps.shape[:2]
    cell = min(104.0, (2 * SIZE - 30) / heads)
    left, top = 24.0, 44.0
    alt = (
        f"Attention maps of {layers} layers, top to bottom, and {heads} heads, left to right; position t is a row, the "
        f"position it looks at a column. Chosen: layer {s.layer + 1}, head {s.head + 1}."
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
            sheet.add(Image(x, y, side, side, np.sqrt(_pooled(seen.maps[i, j], 64))))
            chosen = (i, j) == (s.layer, s.head)
            sheet.add(Line(frame, "orange" if chosen else "grid", 2.5 if chosen else 1))
            if (i, j) in s.off:
                sheet.add(Line([frame[0], frame[2]], "orange", 2), Line([frame[1], frame[3]], "orange", 2))
    return sheet


def _map(seen: Seen, names: list[str], row: int, s: Trained) -> Drawing:
    weights = seen.maps[s.layer, s.head]
    size = len(weights)
    best = int(weights[row].argmax())
    alt = (
        f"Attention of layer {s.layer + 1}, head {s.head + 1}, over {size} tokens. Token {row + 1}, “{names[row]}”, "
        f"looks most at token {best + 1}, “{names[best]}”: weight {weights[row, best]:.3f}. On average a token gives "
        f"{float(np.trace(weights)) / size:.3f} to itself and {float(weights[:, 0].mean()):.3f} to the first."
    )
    labelled = size <= LABELLED
    edge = 92.0 if labelled else 34.0
    frame = SIZE - 100 if size <= 18 else SIZE + 60
    sheet = Drawing(edge + frame + 6, edge + frame + 36, alt)
    top = 30.0
    sheet.add(Text(4, 18, f"Layer {s.layer + 1}, head {s.head + 1}", bold=True, size=14))
    step = frame / size
    if labelled:
        letters = min(12.0, max(8.0, step * 0.75))
        for i, name in enumerate(names):
            short = name if len(name) <= 12 else name[:11] + "…"
            middle = (i + 0.5) * step + letters / 3
            role: Role = "orange" if i == row else "muted"
            sheet.add(Text(edge - 5, top + middle, short, role, letters, "end", bold=i == row))
            sheet.add(Text(edge + middle - 2, top + frame + 8, short, "muted", letters, "start", turn=60))
    sheet.add(Image(edge, top, frame, frame, np.sqrt(_pooled(weights, 256))))
    if labelled:
        for t in range(size):
            for i in range(t + 1):
                title = f"{names[t]} (token {t + 1}) looks at {names[i]} (token {i + 1}): {weights[t, i]:.4f}"
                sheet.add(Box(edge + i * step, top + t * step, step, step, "ink", 0, title))
    y0, y1, right = top + row * step, top + (row + 1) * step, edge + frame
    sheet.add(Line([(edge, top), (right, top), (right, top + frame), (edge, top + frame), (edge, top)], "grid", 1))
    sheet.add(Line([(edge, y0), (right, y0), (right, y1), (edge, y1), (edge, y0)], "orange", 1.5))
    return sheet


def _losses(seen: Seen, whole: Seen, names: list[str], s: Trained) -> Drawing:
    size = len(seen.losses)
    if not size:
        return Drawing(
            SIZE, 24, "No loss: one token predicts nothing in the prompt.", [Text(4, 18, "One token, no loss")]
        )
    worst = int(seen.losses.argmax())
    alt = (
        f"Loss of each token given those before it: mean {seen.loss:.2f} nats, highest {seen.losses[worst]:.2f} for "
        f"token {worst + 2}, {names[worst + 1]}."
    )
    top = 1.08 * float(max(seen.losses.max(), whole.losses.max(), 1e-3))
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
        legend=[("blue", "as chosen"), ("orange", "all heads on")] if s.off else (),
    )
    for i, loss in enumerate(seen.losses):
        x, y = panel.at(i + 0.12, float(loss))
        right = panel.at(i + 0.88, 0)[0]
        panel.drawing.add(Box(x, y, right - x, panel.bottom - y, "blue", 0.85, f"{names[i + 1]}: {loss:.4f} nats"))
        if s.off:
            level = panel.at(0, float(whole.losses[i]))[1]
            panel.drawing.add(Line([(x - 2, level), (right + 2, level)], "orange", 2.5))
        if labelled:
            name = names[i + 1] if len(names[i + 1]) <= 12 else names[i + 1][:11] + "…"
            panel.drawing.add(Text((x + right) / 2 - 3, panel.bottom + 12, name, "muted", 11, turn=60))
    return panel.drawing


def _next(seen: Seen, whole: Seen, tokenizer: Tokenizer, s: Trained) -> Drawing:
    best = model_view.most_likely(seen)
    names = model_view.names_of(np.array([i for i, _ in best]), tokenizer)
    alt = "Likeliest next tokens: " + ", ".join(f"{n} {p:.3f}" for n, (_, p) in zip(names, best, strict=True)) + "."
    sheet = Drawing(SIZE, 44 + 26 * len(best), alt)
    sheet.add(Text(4, 18, "Next token, probability", bold=True, size=14))
    widest = max(p for _, p in best)
    room = 110 if s.off else 170
    for k, ((i, p), name) in enumerate(zip(best, names, strict=True)):
        y = 38 + 26 * k
        short = name if len(name) <= 16 else name[:15] + "…"
        sheet.add(Text(118, y + 13, short, "ink", 13, "end"))
        sheet.add(Box(126, y, room * p / widest, 17, "blue", 0.85, f"{name}: {p:.5f}"))
        change = f" (was {whole.next_probabilities[i]:.3g})" if s.off else ""
        sheet.add(Text(126 + room * p / widest + 6, y + 13, f"{p:.3g}{change}", "muted", 12))
    return sheet


def _numbers(seen: Seen, whole: Seen, s: Trained) -> Quantities:
    tokens = Quantity("tokens", "tokens read", float(len(seen.losses) + 1), ".0f")
    if not seen.losses.size:
        return Quantities("Loss of the prompt: one token predicts nothing in it", (tokens,))
    rows = [
        Quantity("loss", "mean loss, nats per token", seen.loss),
        Quantity("loss_whole", "  with all heads on", whole.loss),
        Quantity("loss_change", "  change by the heads that are off", seen.loss - whole.loss, "+.4f"),
        tokens,
    ]
    return Quantities("Loss of the prompt", tuple(rows))


def _row(seen: Seen, names: list[str], row: int, s: Trained) -> Table:
    weights = seen.maps[s.layer, s.head, row]
    order = np.argsort(-weights[: row + 1], kind="stable")[:8]
    rows = tuple((f"{i + 1}. {names[i]}", f"{weights[i]:.4f}") for i in order.tolist())
    caption = f"Where token {row + 1}, “{names[row]}”, looks (layer {s.layer + 1}, head {s.head + 1})"
    return Table(caption, ("token", "weight"), rows)


def _every_head(model: Transformer, prompt: Prompt) -> Table:
    changes = model_view.loss_changes(model, prompt.ids)
    columns = ("layer", *(f"head {j + 1}" for j in range(changes.shape[1])))
    rows = tuple((str(i + 1), *(f"{change:+.4f}" for change in layer)) for i, layer in enumerate(changes))
    return Table("Change of the mean loss with one head off, nats per token", columns, rows)
