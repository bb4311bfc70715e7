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

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from hectogpt.errors import UserError
from hectogpt.model.inputs import Cache
from hectogpt.model.transformer import DecoderBlock, Transformer


class Decoder:
    """The continuation of several texts, one row each.

    Past the context length L each new token is conditioned on exactly the last L tokens of its row. Positions then move
    with every token, so such a row is computed anew from its last L tokens; rows still inside the context use the
    cache.
    """

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise ValueError("every text needs at least one token to start from")
        self.model, self.limit = model, model.config.context_length
        self.device = model.embeddings.weight.device
        cropped = [list(prompt[-self.limit :]) for prompt in prompts]
        width = max(map(len, cropped))
        starts = [width - len(text) for text in cropped]
        capacity = min(width + new_tokens, max(starts) + self.limit)
        attentions = [block.attention for block in cast(Iterable[DecoderBlock], model.backbone)]
        heads, dtype = [(a.kv_heads, a.d_key) for a in attentions], model.embeddings.weight.dtype
        places = torch.tensor(starts, device=self.device)
        self.cache = Cache(places, capacity, self.limit, heads, model.config.d_attention, dtype)
        padded = [[0] * start + text for start, text in zip(starts, cropped, strict=True)]
        self.prompts = torch.tensor(padded, device=self.device)
        self.lengths = list(map(len, cropped))
        self.newest = self.prompts  # of each row its last tokens, up to L of them

    @torch.no_grad()
    def prefill(self) -> Float[Tensor, "rows vocab"]:
        """Logits after the prompts: one pass over all of them."""
        positions = self.cache.advance(self.prompts.shape[1])
        return self.model.next_logits(self.prompts, positions, self.cache)

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
    logits: Float[Tensor, "rows vocab"], sampling: Sampling, generators: Sequence[torch.Generator]
) -> Int[Tensor, " rows"]:
    """One id per row: the likeliest token, or the one at which the cumulative probability passes a uniform number drawn
    from the row's generator."""
    if sampling.greedy:
        return logits.argmax(dim=-1)
    total = probabilities(logits, sampling).cumsum(dim=-1)
    draw = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators]).to(logits.device)
    # Scaled by the sum as added up, so that the last token with mass is reached; `right` skips tokens without mass.
    return torch.searchsorted(total, (draw[:, None] * total[:, -1:]), right=True)[:, 0].clamp(max=logits.shape[1] - 1)


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
