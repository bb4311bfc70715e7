"""Next tokens of growing texts: their logits, computed with a cache, and the choice by them.

One pass goes over the prompts (prefill), then one token per row and pass (decode). A cache holds keys and values of
earlier tokens, and what other parts of a model remember. Prompts of unequal length are padded on the left, so that the
last column is every row's newest token. Padding is masked in attention, has no position, and reads as zeros to parts
that look at earlier tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from hectogpt.errors import UserError
from hectogpt.model.attention import LayerCache
from hectogpt.model.parts import visible_keys
from hectogpt.model.transformer import DecoderBlock, Transformer

# The first slots of a buffer are attended to, in steps of this many: few shapes, little waste.
SLOTS_STEP = 64


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, not garbage: a masked slot has weight 0, and 0 times a NaN is NaN. On the CPU numpy asks the system for
    them, which gives a page when it is first used, most of them never."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


class KVCache:
    """Buffers for all layers, allocated once. A slot is a column; row b's text starts at slot `starts[b]`.

    A call of the model is opened by `advance`, which sets what the call sees: slots [time], where its own keys and
    values go, key_positions [batch, slot], and visible [batch, 1, time, slot], which slots each query sees (None: the
    plain causal mask, from slot 0 on, nothing padded).
    """

    def __init__(
        self,
        model: Transformer,
        starts: Int[Tensor, " batch"],
        capacity: int,
    ) -> None:
        rows, device, dtype = len(starts), starts.device, model.embeddings.weight.dtype
        attentions = [block.attention for block in cast(Iterable[DecoderBlock], model.backbone)]
        self.keys = [zeros((rows, a.kv_heads, capacity, a.d_key), dtype, device) for a in attentions]
        d_head = model.config.d_attention
        self.values = [zeros((rows, a.kv_heads, capacity, d_head), dtype, device) for a in attentions]
        self.starts, self.capacity, self.context_length = starts, capacity, model.config.context_length
        self.padded = bool((starts > 0).any())
        self.length = 0
        self.slots = torch.arange(0, device=starts.device)
        self.key_positions: Int[Tensor, "batch slot"] = torch.empty(len(starts), 0, dtype=torch.long)
        self.visible: Bool[Tensor, "batch 1 time slot"] | None = None
        self.text: Bool[Tensor, "batch time"] | None = None  # which slots of this call are text; None: all
        self.remembered: dict[object, Tensor] = {}
        self.appended: dict[object, Tensor] = {}

    def advance(self, time: int) -> Int[Tensor, "batch time"]:
        """Open the next `time` slots for one call of the model; return the positions of their tokens."""
        device = self.starts.device
        self.slots = torch.arange(self.length, self.length + time, device=device)
        first, self.length = self.length == 0, self.length + time
        end = self.length if first else min(-(-self.length // SLOTS_STEP) * SLOTS_STEP, self.capacity)
        self.key_positions = torch.arange(end, device=device) - self.starts[:, None]
        positions = self.slots - self.starts[:, None]
        self.text = positions >= 0 if first and self.padded else None
        plain = first and not self.padded
        self.visible = None if plain else visible_keys(positions, self.key_positions)[:, None]
        # Padding gets position 0; a row past the context length is recomputed elsewhere and ignored here.
        return positions.clamp(0, self.context_length - 1)

    def layer(self, index: int) -> LayerCache:
        """What layer `index` needs during this call."""
        end = self.key_positions.shape[1]
        keys, values = (buffers[index].narrow(2, 0, end) for buffers in (self.keys, self.values))
        return LayerCache(keys, values, self.slots)

    def shift(self, key: object, x: Tensor, n: int) -> Tensor:
        """Rows of x [batch, time, ...] moved `n` later, after the rows that earlier calls left under this key."""
        if self.text is not None:
            x = x * self.text.reshape(*self.text.shape, *(1,) * (x.dim() - 2)).to(x.dtype)
        before = self.remembered[key] if key in self.remembered else x.new_zeros(x.shape[0], n, *x.shape[2:])
        joined = torch.cat((before, x), dim=1)
        self.remembered[key] = joined[:, -n:]
        return joined[:, : x.shape[1]]

    def append(self, key: object, x: Tensor) -> Tensor:
        """Rows of x [batch, time, ...] after all rows of earlier calls under this key: one for each slot so far."""
        if key not in self.appended:
            self.appended[key] = zeros((x.shape[0], self.capacity, *x.shape[2:]), x.dtype, x.device)
        so_far = self.appended[key][:, : self.length]
        so_far[:, self.length - x.shape[1] :] = x
        return so_far

    def visible_so_far(self) -> Bool[Tensor, "batch time slot"]:
        """Which of the slots so far each token of this call may look at."""
        positions = self.slots - self.starts[:, None]
        return visible_keys(positions, self.key_positions[:, : self.length])

    def repeat(self, copies: int) -> None:
        """Repeat every row `copies` times, the copies side by side."""
        self.keys = [k.repeat_interleave(copies, 0) for k in self.keys]
        self.values = [v.repeat_interleave(copies, 0) for v in self.values]
        for kept in (self.remembered, self.appended):
            kept.update({key: rows.repeat_interleave(copies, 0) for key, rows in kept.items()})
        self.starts = self.starts.repeat_interleave(copies)


class Decoder:
    """The continuation of several texts, one row each.

    Past the context length L each new token is conditioned on exactly the last L tokens of its row. Positions then move
    with every token, so such a row is computed anew from its last L tokens; rows still inside the context use the
    cache. `copies` continues every prompt that many times, as neighbouring rows.
    """

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], new_tokens: int, copies: int = 1) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise ValueError("every text needs at least one token to start from")
        self.model, self.copies, self.limit = model, copies, model.config.context_length
        self.device = model.embeddings.weight.device
        cropped = [list(prompt[-self.limit :]) for prompt in prompts]
        width = max(map(len, cropped))
        starts = [width - len(text) for text in cropped]
        capacity = min(width + new_tokens, max(starts) + self.limit)
        self.cache = KVCache(model, torch.tensor(starts, device=self.device), capacity)
        padded = [[0] * start + text for start, text in zip(starts, cropped, strict=True)]
        self.prompts = torch.tensor(padded, device=self.device)
        self.lengths = [len(text) for text in cropped for _ in range(copies)]
        self.newest = self.prompts.repeat_interleave(copies, 0)  # of each row its last tokens, up to L of them

    @torch.no_grad()
    def prefill(self) -> Float[Tensor, "rows vocab"]:
        """Logits after the prompts: one pass over all of them."""
        positions = self.cache.advance(self.prompts.shape[1])
        logits = self.model.next_logits(self.prompts, positions, self.cache)
        if self.copies > 1:
            self.cache.repeat(self.copies)
            logits = logits.repeat_interleave(self.copies, 0)
        return logits

    @torch.no_grad()
    def decode(self, tokens: Sequence[int] | Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Append one token to each row; return the logits after them. Ids in a tensor are not waited for."""
        tokens = torch.as_tensor(tokens, device=self.device)
        self.lengths = [length + 1 for length in self.lengths]
        self.newest = torch.cat((self.newest, tokens[:, None]), dim=1)[:, -self.limit :]
        long = [row for row, length in enumerate(self.lengths) if length > self.limit]
        logits = None
        if len(long) < len(self.lengths):
            logits = self.model.next_logits(tokens[:, None], self.cache.advance(1), self.cache)
        if long:
            anew = self.model.next_logits(self.newest[long])
            if logits is None:
                return anew
            logits[long] = anew
        assert logits is not None
        return logits


# --- how the next token is chosen: options with the names and defaults of transformers' `generate` --------------------


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when a text ends."""

    max_new_tokens: int = 20
    """Tokens to add at most; 0 adds none."""
    do_sample: bool = False
    """Draw from the softmax; otherwise take the likeliest token (greedy)."""
    temperature: float = 1.0
    """Divides the logits before the draw; 0 is greedy."""
    top_k: int = 50
    """Keep the k likeliest tokens, and those tied with the last of them; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose probabilities reach p, and ties with the last."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    repetition_penalty: float = 1.0
    """Logits of tokens already in the text are divided by it where positive, multiplied where negative (1909.05858)."""
    num_return_sequences: int = 1
    """Continuations of each prompt."""
    stop_strings: tuple[str, ...] = ()
    """A text ends with the token that completes one of these."""
    eos_token_id: tuple[int, ...] = ()
    """A text ends with one of these tokens."""

    def __post_init__(self) -> None:
        self._check("max_new_tokens", self.max_new_tokens >= 0, "at least 0")
        self._check("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or a positive number")
        self._check("top_k", self.top_k >= 0, "0 (off) or a positive number")
        self._check("top_p", 0 <= self.top_p <= 1, "between 0 and 1")
        self._check("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        self._check("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a positive number")
        self._check("num_return_sequences", self.num_return_sequences >= 1, "at least 1")
        self._check("stop_strings", all(map(_is_text, self.stop_strings)), "strings of Unicode that are not empty")
        if self.num_return_sequences > 1 and self.greedy:
            raise UserError(
                f"num_return_sequences = {self.num_return_sequences} without sampling",
                why="greedy continuations of one prompt are all the same",
                fix="a temperature above 0, and no greedy choice",
            )

    def _check(self, name: str, fits: bool, expected: str) -> None:
        if not fits:  # NaN fits nowhere, since it compares false with everything
            raise UserError(f"{name} = {getattr(self, name)!r}", why=f"it must be {expected}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return not self.do_sample or self.temperature == 0


def _is_text(string: str) -> bool:
    """Whether a string is not empty and has a UTF-8 form, which half of a surrogate pair has not."""
    return bool(string) and not any("\ud800" <= character <= "\udfff" for character in string)


def choose(
    logits: Float[Tensor, "rows vocab"],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    seen: Bool[Tensor, "rows vocab"] | None = None,
) -> Int[Tensor, " rows"]:
    """One id per row: the likeliest token, or the one at which the cumulative probability passes a uniform number drawn
    from the row's generator. seen: which tokens are in each row's text, for the repetition penalty."""
    if sampling.repetition_penalty != 1.0 and seen is not None:
        logits = penalise(logits, sampling.repetition_penalty, seen)
    if sampling.greedy:
        return logits.argmax(dim=-1)
    total = probabilities(logits, sampling).cumsum(dim=-1)
    draw = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators]).to(logits.device)
    # Scaled by the sum as added up, so that the last token with mass is reached; `right` skips tokens without mass.
    return torch.searchsorted(total, (draw[:, None] * total[:, -1:]), right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def penalise(
    logits: Float[Tensor, "rows vocab"], penalty: float, seen: Bool[Tensor, "rows vocab"]
) -> Float[Tensor, "rows vocab"]:
    """Make the tokens that each row has seen less likely (more, if penalty < 1)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def probabilities(logits: Float[Tensor, "rows vocab"], sampling: Sampling) -> Float64[Tensor, "rows vocab"]:
    """What the draw is made from: temperature, then top_k, top_p, min_p on what is left, in transformers' order."""
    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    logits = (logits.double() - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        last = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < last, -math.inf)
    p = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered = p.sort(dim=-1, descending=True).values
        # The set ends with the first token that brings the sum to top_p; a token is in it if the sum before is below.
        kept = ((ordered.cumsum(dim=-1) - ordered) < sampling.top_p).sum(dim=-1, keepdim=True).clamp(min=1)
        p = p.masked_fill(p < ordered.gather(1, kept - 1), 0)
        p = p / p.sum(dim=-1, keepdim=True)
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.amax(dim=-1, keepdim=True), 0)
        p = p / p.sum(dim=-1, keepdim=True)
    return p
