"""The page of a trained model: tokens, attention maps, losses, next tokens, and exact effects of heads, from Python."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hectogpt.data import Tokenizer
from hectogpt.explore import model_view
from hectogpt.explore.model_view import HeadName
from hectogpt.interop import open_model
from hectogpt.model.transformer import Transformer
from hectogpt.web.page import fill

LONGEST = 64  # tokens that the page shows maps of
WINDOWS, WINDOW = 8, 512  # of held-out text, on which effects of heads are measured
MOST_HEADS = 64  # of which effects are measured one by one
PROMPT = "The state of the Union is strong because the people of the Union are strong."


def model_page(
    folder: Path | str,
    prompt: str,
    held_out: np.ndarray | None,
    ideas: Sequence[Path] = (),
    step: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> str:
    """The page as HTML. held_out: token ids on which effects of heads are measured; None: on the prompt. step, note: as
    for `open_model`.

    Raises UserError for a bad folder or prompt, and for a file that is not in `ideas`.
    """
    model, tokenizer = open_model(folder, step=step, idea=ideas, note=note)
    read = model_view.read_prompt(prompt, tokenizer, model, LONGEST)
    seen = model_view.trace(model, read.ids)
    best = model_view.most_likely_tokens(seen)
    config = model.config
    data: dict[str, Any] = {
        "name": str(folder) if step is None else f"{folder}, step {step}",
        "about": f"{config.n_layers} layers of {config.n_heads} heads, {config.d_model} dimensions, context "
        f"{config.context_length:,}, {sum(p.numel() for p in model.parameters()):,} parameters.",
        "cut": read.cut,
        "tokens": model_view.name_tokens(read.ids, tokenizer),
        "losses": [round(float(loss), 4) for loss in seen.losses],
        "maps": packed(seen.maps),
        "shape": list(seen.maps.shape[:3]),
        "next": [[model_view.name_tokens(np.array([i]), tokenizer)[0], round(p, 5)] for i, p in best],
        "effects": effects(model, read.ids if held_out is None else held_out, tokenizer),
        "text": "the prompt" if held_out is None else "held-out text of the run's corpus",
    }
    return fill("model", data)


def packed(maps: np.ndarray) -> str:
    """Weights as unsigned 16-bit numbers in base64: 65,535 is 1."""
    return base64.b64encode(np.round(maps * 65535).astype("<u2").tobytes()).decode()


def effects(model: Transformer, tokens: np.ndarray, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """How much the loss rises without each head, and without each pair of the four heads that matter most.

    A row has heads, mode ("zero" or "mean"), delta in nats per token, and se, its standard error over windows (nan for
    one window). [] for a model of more than MOST_HEADS heads, or for one token.
    """
    config = model.config
    heads = [(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    if not 0 < len(heads) <= MOST_HEADS or len(tokens) < 2:
        return []
    windows = cut_windows(tokens.astype(np.int64), min(WINDOW, config.context_length))
    whole, means = measure(model, windows), mean_outputs(model, windows)
    found = [difference([head], mode, model, windows, whole, means) for mode in ("zero", "mean") for head in heads]
    best = sorted((row for row in found if row["mode"] == "zero"), key=lambda row: -row["delta"])[:4]
    first: list[HeadName] = [(row["heads"][0][0], row["heads"][0][1]) for row in best]
    pairs = [[a, b] for i, a in enumerate(first) for b in first[i + 1 :]]
    return found + [difference(pair, "zero", model, windows, whole, means) for pair in pairs]


def cut_windows(tokens: np.ndarray, length: int) -> list[Tensor]:
    """Up to WINDOWS rows of the text that do not overlap, each int64 [1, at most length + 1]."""
    starts = range(0, max(len(tokens) - 1, 1), length)
    rows = [torch.from_numpy(tokens[at : at + length + 1])[None] for at in starts]
    return [row for row in rows if row.shape[1] > 1][:WINDOWS]


@torch.no_grad()
def measure(model: Transformer, windows: list[Tensor]) -> np.ndarray:
    """The sum of the losses of each window, float64 [windows]."""
    return np.array([model.loss(row[:, :-1], row[:, 1:], reduction="sum").item() for row in windows])


@torch.no_grad()
def mean_outputs(model: Transformer, windows: list[Tensor]) -> list[Tensor]:
    """For each layer, the mean over the windows' tokens of what enters the output projection, [d_model]."""
    modules = model_view.attention_modules(model)
    sums = [torch.zeros(model.config.d_model, dtype=torch.float64) for _ in modules]

    def keep(module: nn.Module, inputs: tuple[Tensor], total: Tensor) -> None:
        total += inputs[0].double().sum(dim=(0, 1))

    handles = [m.W_o.register_forward_pre_hook(partial(keep, total=t)) for m, t in zip(modules, sums, strict=True)]
    try:
        measure(model, windows)
    finally:
        for handle in handles:
            handle.remove()
    return [(total / sum(row.shape[1] - 1 for row in windows)).float() for total in sums]


def difference(
    off: Collection[HeadName],
    mode: str,
    model: Transformer,
    windows: list[Tensor],
    whole: np.ndarray,
    means: list[Tensor],
) -> dict[str, Any]:
    """The row of `effects` for heads that are off together."""
    d, handles = model.config.d_attention, []
    for layer in {layer for layer, _ in off}:
        gone = [head for at, head in off if at == layer]

        def replace(module: nn.Module, inputs: tuple[Tensor], layer: int = layer, gone: Any = gone) -> tuple[Tensor]:
            x = inputs[0].clone()
            for head in gone:
                part = slice(head * d, (head + 1) * d)
                x[..., part] = means[layer][part].to(x.dtype) if mode == "mean" else 0
            return (x,)

        handles.append(model_view.attention_modules(model)[layer].W_o.register_forward_pre_hook(replace))
    try:
        sums = measure(model, windows) - whole
    finally:
        for handle in handles:
            handle.remove()
    sizes = np.array([row.shape[1] - 1 for row in windows])
    delta, n = sums.sum() / sizes.sum(), len(windows)
    spread = np.sqrt(((sums - delta * sizes) ** 2).sum() * n / (n - 1)) / sizes.sum() if n > 1 else None
    se = None if spread is None else float(spread)
    return {"heads": [list(head) for head in off], "mode": mode, "delta": float(delta), "se": se}
