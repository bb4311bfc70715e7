"""What a trained model does with a prompt: its tokens, attention maps, losses and next tokens, with heads switched off.

Maps and losses come from one pass of the model itself. A head is switched off exactly: its part of the input of the
layer's output projection becomes zero, and everything downstream is computed anew. Reads local folders only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hectogpt import errors
from hectogpt.data import Tokenizer
from hectogpt.errors import UserError
from hectogpt.interop import open_model as open_model  # for callers of model_view.open_model
from hectogpt.model.transformer import CausalAttention, DecoderBlock, Transformer

HeadName = tuple[int, int]  # layer and head, both from 0


class Seen(NamedTuple):
    """One pass over a prompt of T tokens.

    maps[layer, head, t, s]: weight that position t gives to position s. losses[t - 1]: nats of token t given those
    before it (T - 1 of them). next_probabilities[vocab]: the distribution after the last token.
    """

    maps: Float[np.ndarray, "layers heads time time"]
    losses: Float[np.ndarray, " predicted"]
    next_probabilities: Float[np.ndarray, " vocab"]

    @property
    def loss(self) -> float:
        """Mean nats per predicted token; nan for a prompt of one token, which predicts nothing."""
        return float(self.losses.mean()) if self.losses.size else float("nan")


class Prompt(NamedTuple):
    """A prompt as the model reads it: the last `ids` of the text, and how many tokens before them were cut."""

    ids: Int[np.ndarray, " time"]
    cut: int


def newest_run(root: Path) -> Path | None:
    """The run folder under `root` that finished last (its summary.json is written at the end), or None."""
    finished = [p for p in root.glob("*/summary.json") if (p.parent / "model.safetensors").is_file()]
    return max(finished, key=lambda p: p.stat().st_mtime).parent if finished else None


def read_prompt(text: str, tokenizer: Tokenizer, model: Transformer, longest: int = 0) -> Prompt:
    """Tokenize; keep the end if the text is longer than the context (or than `longest` tokens, if given).

    Raises UserError for an empty prompt, text that is not Unicode, and ids that the model does not have.
    """
    ids = tokenizer.encode(text).astype(np.int64)
    if not len(ids):
        raise UserError("the prompt is empty", why="a map needs at least one token", fix="type a few words")
    if ids.max() >= model.config.vocab_size:
        raise UserError(
            f"token {int(ids.max())} is not in the model's vocabulary of {model.config.vocab_size}",
            fix="use the tokenizer that the model was trained with",
            code=errors.DATA,
        )
    room = min(model.config.context_length, longest or len(ids))
    return Prompt(ids[-room:], max(0, len(ids) - room))


def need_head(model: Transformer, head: HeadName) -> None:
    """Refuse a head that the model does not have."""
    layers, heads = model.config.n_layers, model.config.n_heads
    if not (0 <= head[0] < layers and 0 <= head[1] < heads):
        raise UserError(
            f"layer {head[0] + 1}, head {head[1] + 1}", why=f"the model has {layers} layers of {heads} heads"
        )


def attentions(model: Transformer) -> list[CausalAttention]:
    """The attention modules, first layer first."""
    blocks = [block for block in model.backbone if isinstance(block, DecoderBlock)]
    return [block.attention for block in blocks]


@contextmanager
def heads_off(model: Transformer, off: Collection[HeadName]) -> Iterator[None]:
    """Within the context, the listed heads add nothing: their slice of each W_o's input is zero. W_o's bias stays."""
    width = model.config.d_attention
    layers: dict[int, list[int]] = {}
    for layer, head in off:
        need_head(model, (layer, head))
        layers.setdefault(layer, []).append(head)
    modules = attentions(model)
    handles = []
    try:
        for layer, heads in layers.items():
            mask = torch.ones(model.config.d_model)
            for head in heads:
                mask[head * width : (head + 1) * width] = 0

            def silence(module: nn.Module, inputs: tuple[Tensor], mask: Tensor = mask) -> tuple[Tensor]:
                return (inputs[0] * mask.to(inputs[0]),)

            handles.append(modules[layer].W_o.register_forward_pre_hook(silence))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def look(model: Transformer, ids: Int[np.ndarray, " time"], off: Collection[HeadName] = ()) -> Seen:
    """Run the model over 1 to context_length tokens and keep what it attended to and predicted."""
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, CausalAttention)
        maps.append(module.weights(inputs[0], inputs[1])[0])

    handles = [module.register_forward_pre_hook(keep) for module in attentions(model)]
    try:
        with heads_off(model, off):
            logits = model(torch.from_numpy(ids)[None])[0]
    finally:
        for handle in handles:
            handle.remove()
    logs = logits.double().log_softmax(dim=-1)
    losses = -logs[:-1].gather(1, torch.from_numpy(ids[1:, None]))[:, 0]
    shape = (model.config.n_layers, model.config.n_heads, len(ids), len(ids))
    stacked = torch.stack(maps).numpy() if maps else np.zeros(shape)
    return Seen(stacked, losses.numpy(), logs[-1].exp().numpy())


@torch.no_grad()
def loss_changes(model: Transformer, ids: Int[np.ndarray, " time"]) -> Float[np.ndarray, "layers heads"]:
    """Change of the mean loss (nats per token) when each head alone is switched off: one pass a head, exact."""
    if len(ids) < 2:
        raise UserError("a loss needs two tokens", why=f"the prompt has {len(ids)}", fix="type a longer prompt")
    whole = look(model, ids).loss
    layers, heads = model.config.n_layers, model.config.n_heads
    return np.array([[look(model, ids, [(i, j)]).loss - whole for j in range(heads)] for i in range(layers)])


def most_likely(seen: Seen, n: int = 10) -> list[tuple[int, float]]:
    """The n likeliest next tokens with their probabilities, likeliest first; ties by id."""
    order = np.argsort(-seen.next_probabilities, kind="stable")[:n]
    return [(int(i), float(seen.next_probabilities[i])) for i in order]


def visible(piece: bytes) -> str:
    """A token's bytes as text that shows everything: space as ␣, line feed as ↵, tab as ⇥, other controls and
    unprintable characters as \\u{...}, and bytes that are not a whole UTF-8 character as \\xNN."""
    shown = {" ": "␣", "\n": "↵", "\t": "⇥", "\\": "\\\\"}
    parts = []
    for char in piece.decode("utf-8", errors="surrogateescape"):
        if "\udc80" <= char <= "\udcff":
            parts.append(f"\\x{ord(char) - 0xDC00:02x}")
        else:
            parts.append(shown.get(char) or (char if char.isprintable() else f"\\u{{{ord(char):x}}}"))
    return "".join(parts)


def names_of(ids: Int[np.ndarray, " time"], tokenizer: Tokenizer) -> list[str]:
    """Each token made visible; ids beyond the tokenizer's (a padded vocabulary) are named by number."""
    return [visible(tokenizer.decode_bytes([i])) if i < tokenizer.n_vocab else f"id {i}" for i in ids.tolist()]
