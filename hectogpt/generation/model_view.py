"""Inspect a model on one prompt: attention maps, losses, next tokens, and effects of heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hectogpt import errors
from hectogpt.data import Tokenizer
from hectogpt.data.tokenizer import check_ids
from hectogpt.errors import UserError
from hectogpt.model.attention import CausalAttention
from hectogpt.model.transformer import DecoderBlock, Transformer

HeadName = tuple[int, int]  # layer and head, both from 0
TOKENS = 4096  # tokens of text on which effects of heads are measured
WINDOW = 512  # tokens of one row of that text
MOST_HEADS = 64  # no effects are measured for a model with more heads
MOST_PAIRED = 9  # up to this many heads, all pairs are measured


class Trace(NamedTuple):
    """The results of one forward pass over a prompt of T tokens.

    Attributes:
        maps: [layer, head, t, s], the weight that position t gives to position s.
        losses: [T - 1], the loss in nats of each token after the first, given those before it.
        next_probabilities: [vocab], the distribution after the last token.
    """

    maps: Float[np.ndarray, "layers heads time time"]
    losses: Float[np.ndarray, " predicted"]
    next_probabilities: Float[np.ndarray, " vocab"]


def read_prompt(
    text: str, tokenizer: Tokenizer, model: Transformer, longest: int = 0
) -> Int[np.ndarray, " time"]:
    """Return the tokens of a prompt; if it is too long, only the last ones.

    Args:
        text: the prompt.
        tokenizer: the model's tokenizer.
        model: the model, whose context length is the limit.
        longest: a limit below the context length, in tokens; 0 means none.

    Raises UserError for an empty prompt, for text that is not Unicode, and for ids that the model
    does not have.
    """
    ids = tokenizer.encode(text)
    if not len(ids):
        raise UserError(
            "the prompt is empty", why="a map needs at least one token", fix="type a few words"
        )
    check_ids(ids, model.config.vocab_size, "the prompt")
    return ids[-min(model.config.context_length, longest or len(ids)) :]


def attention_modules(model: Transformer) -> list[CausalAttention]:
    """The attention of every layer, in order."""
    return [block.attention for block in model.backbone if isinstance(block, DecoderBlock)]


@torch.no_grad()
def trace(model: Transformer, ids: Int[np.ndarray, " time"]) -> Trace:
    """Run the model on 1 to context_length tokens.

    Raises UserError (DIVERGED) if the model's values overflow.
    """
    maps: list[Tensor] = []

    def keep_map(layer: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, CausalAttention)
        maps.append(module.weights(inputs[0], inputs[1])[0])

    with hooked(attention_modules(model), keep_map):
        logits = model(torch.from_numpy(ids)[None])[0]
    if not all(numbers.isfinite().all() for numbers in (logits, *maps)):
        raise UserError(
            "the model's values overflow",
            why="its attention maps or logits for this prompt are not finite",
            fix="use a model whose training went well",
            code=errors.DIVERGED,
        )
    log_probabilities = logits.double().log_softmax(dim=-1)
    losses = -log_probabilities[:-1].gather(1, torch.from_numpy(ids[1:, None]))[:, 0]
    shape = (model.config.n_layers, model.config.n_heads, len(ids), len(ids))
    stacked = torch.stack(maps).numpy() if maps else np.zeros(shape)
    return Trace(stacked, losses.numpy(), log_probabilities[-1].exp().numpy())


def spell_out(piece: bytes) -> str:
    """Spell out a token's bytes, with visible symbols for invisible characters.

    Space becomes ␣, line feed ↵, tab ⇥. Other unprintable characters become \\u{...}, and bytes
    that are not a complete UTF-8 character become \\xNN.
    """
    symbols = {" ": "␣", "\n": "↵", "\t": "⇥", "\\": "\\\\"}
    parts = []
    for char in piece.decode("utf-8", errors="surrogateescape"):
        if "\udc80" <= char <= "\udcff":
            parts.append(f"\\x{ord(char) - 0xDC00:02x}")
        else:
            parts.append(
                symbols.get(char) or (char if char.isprintable() else f"\\u{{{ord(char):x}}}")
            )
    return "".join(parts)


def name_tokens(ids: Int[np.ndarray, " time"], tokenizer: Tokenizer) -> list[str]:
    """Each token, spelled out."""
    return [spell_out(tokenizer.decode_bytes([i])) for i in ids.tolist()]


# --- the effects of heads


def effects(
    model: Transformer, tokens: np.ndarray, all_of_them: bool = True
) -> list[dict[str, Any]]:
    """Measure how much the loss rises without a head; return a dict for each measurement.

    The output of each head is replaced by zeros. With `all_of_them`, it is also replaced by its
    mean, and the outputs of pairs of heads are replaced by zeros. In a model with more than
    MOST_PAIRED heads, only pairs among the four heads that matter most are measured.

    A dict has `heads`, `mode` ("zero" or "mean"), `delta` in nats per token, and `se`, the
    standard error of `delta` over windows (None for one window). For a pair, `beyond` has the
    delta and se of the effect beyond the sum of the two single effects.

    Returns [] for a model with more than MOST_HEADS heads, and for a text of one token.
    """
    config = model.config
    heads = [(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    if not 0 < len(heads) <= MOST_HEADS or len(tokens) < 2:
        return []
    windows = cut_windows(tokens.astype(np.int64), min(WINDOW, config.context_length))
    sizes = np.array([row.shape[1] - 1 for row in windows])
    whole = measure(model, windows)

    def mean(sums: np.ndarray) -> dict[str, float | None]:
        delta = float(sums.sum() / sizes.sum())
        n = len(sums)
        squares = ((sums - delta * sizes) ** 2).sum()
        return {
            "delta": delta,
            "se": float(np.sqrt(squares * n / (n - 1)) / sizes.sum()) if n > 1 else None,
        }

    alone = {head: measure(model, windows, [head]) - whole for head in heads}
    found: list[dict[str, Any]] = [
        {"heads": [head], "mode": "zero", **mean(alone[head])} for head in heads
    ]
    if not all_of_them:
        return found
    means = mean_outputs(model, windows)
    for head in heads:
        found.append(
            {
                "heads": [head],
                "mode": "mean",
                **mean(measure(model, windows, [head], means) - whole),
            }
        )
    best = sorted(heads, key=lambda head: -alone[head].sum())
    for a, b in combinations(heads if len(heads) <= MOST_PAIRED else sorted(best[:4]), 2):
        sums = measure(model, windows, [a, b]) - whole
        found.append(
            {
                "heads": [a, b],
                "mode": "zero",
                **mean(sums),
                "beyond": mean(sums - alone[a] - alone[b]),
            }
        )
    return found


def cut_windows(tokens: np.ndarray, length: int) -> list[Tensor]:
    """Cut the text into rows that do not overlap, with up to TOKENS targets in total.

    Each is int64 [1, at most length + 1].
    """
    starts = range(0, max(len(tokens) - 1, 1), length)
    rows = [torch.from_numpy(tokens[at : at + length + 1])[None] for at in starts]
    return [row for row in rows if row.shape[1] > 1][: max(TOKENS // length, 8)]


@torch.no_grad()
def measure(
    model: Transformer,
    windows: list[Tensor],
    off: Sequence[HeadName] = (),
    instead: Tensor | None = None,
) -> np.ndarray:
    """Return the sum of losses of each window, float64 [windows], with some heads replaced.

    Args:
        model: the model.
        windows: rows of tokens.
        off: the heads whose output is replaced before the output projection.
        instead: the replacement, [layers, d_model]; None means zeros.
    """
    d = model.config.d_attention

    def replace(layer: int, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        x = inputs[0].clone()
        for part in (slice(head * d, (head + 1) * d) for at, head in off if at == layer):
            x[..., part] = instead[layer, part].to(x.dtype) if instead is not None else 0
        return (x,)

    with hooked([module.W_o for module in attention_modules(model)], replace):
        return np.array(
            [model.loss(row[:, :-1], row[:, 1:], reduction="sum").item() for row in windows]
        )


def mean_outputs(model: Transformer, windows: list[Tensor]) -> Tensor:
    """Mean input of each layer's output projection over the windows, [layers, d_model]."""
    sums = torch.zeros(model.config.n_layers, model.config.d_model, dtype=torch.float64)

    def keep(layer: int, module: nn.Module, inputs: tuple[Tensor]) -> None:
        sums[layer] += inputs[0].double().sum(dim=(0, 1))

    with hooked([module.W_o for module in attention_modules(model)], keep):
        measure(model, windows)
    return (sums / sum(row.shape[1] - 1 for row in windows)).float()


@contextmanager
def hooked(
    modules: Sequence[nn.Module], hook: Callable[..., tuple[Tensor] | None]
) -> Iterator[None]:
    """Context manager: call hook(layer, module, inputs) before each of these modules.

    There is one module per layer. The hook may return a replacement for the input.
    """
    handles = [
        module.register_forward_pre_hook(partial(hook, layer))
        for layer, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
