"""Keys and values of earlier tokens, and the continuation of texts with them: one pass for the prompts, then one token
per row and pass.

Prompts of unequal length are padded on the left: the last column is every row's newest token. Padding has no place in
any text: it is never attended to, takes no position, and parts that look back see nothing there. Knows sizes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# The first slots of a buffer that are attended to, in steps of this many: few shapes, little waste.
SLOTS_STEP = 64
# Sizes of the buffers, in coarser steps: compiled code is kept per size.
CAPACITY_STEP = 256


class LayerCache(NamedTuple):
    """One layer's keys and values, [batch, head, slot, d_head], and this call's view of them.

    slots [time]: where this call's own go. mask [batch, 1, time, slot]: which slots each query sees; None: causal, from
    slot 0 on, nothing padded.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor
    mask: Tensor | None

    def extend(
        self, k: Float[Tensor, "batch head time d_head"], v: Float[Tensor, "batch head time d_head"]
    ) -> tuple[Float[Tensor, "batch head slot d_head"], Float[Tensor, "batch head slot d_head"]]:
        """Write k and v into their slots; return all keys and all values in view."""
        return self.keys.index_copy_(2, self.slots, k), self.values.index_copy_(2, self.slots, v)


class KVCache:
    """Buffers for all layers, allocated once. Row b's text starts at slot `starts[b]`."""

    def __init__(
        self,
        layers: int,
        heads: int,
        d_head: int,
        starts: Int[Tensor, " batch"],
        capacity: int,
        context_length: int,
        dtype: torch.dtype,
    ) -> None:
        shape = (starts.shape[0], heads, capacity, d_head)
        # Zeros, not garbage: a masked slot has weight 0, and 0 times a NaN is NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=starts.device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=starts.device) for _ in range(layers)]
        self.starts, self.capacity, self.context_length = starts, capacity, context_length
        self.padded = bool((starts > 0).any())
        self.length = 0
        self.past: dict[object, Tensor] = {}

    def begin(self, time: int) -> Int[Tensor, "batch time"]:
        """Open the next `time` slots for one call of the model; return the positions of their tokens."""
        self.slots = torch.arange(self.length, self.length + time, device=self.starts.device)
        first, self.length = self.length == 0, self.length + time
        self.end = self.length if first else min(-(-self.length // SLOTS_STEP) * SLOTS_STEP, self.capacity)
        self.mask = None if first and not self.padded else self._mask()
        # Padding gets position 0; a row past the context length is recomputed elsewhere and ignored here.
        return (self.slots - self.starts[:, None]).clamp(0, self.context_length - 1)

    def _mask(self) -> Bool[Tensor, "batch 1 time slot"]:
        every = torch.arange(self.end, device=self.starts.device)
        seen = (every <= self.slots[:, None]) & (every >= self.starts[:, None, None])
        # A query in the padding sees itself: a row of the softmax must not be empty.
        return (seen | (every == self.slots[:, None]))[:, None]

    def layer(self, index: int) -> LayerCache:
        """What layer `index` needs during this call."""
        keys, values = (buffers[index].narrow(2, 0, self.end) for buffers in (self.keys, self.values))
        return LayerCache(keys, values, self.slots, self.mask)

    def shifted(self, key: object, x: Tensor, n: int) -> Tensor:
        """Rows of x [batch, time, ...] moved `n` later, after the rows that earlier calls left under this key."""
        text = self.slots >= self.starts[:, None]
        x = x * text.reshape(*text.shape, *(1,) * (x.dim() - 2)).to(x.dtype)
        before = self.past[key] if key in self.past else x.new_zeros(x.shape[0], n, *x.shape[2:])
        joined = torch.cat((before, x), dim=1)
        self.past[key] = joined[:, -n:]
        return joined[:, : x.shape[1]]

    def grown(self, key: object, x: Tensor) -> Tensor:
        """Rows of x [batch, time, ...] after all rows of earlier calls under this key: one for every slot so far."""
        self.past[key] = torch.cat((self.past[key], x), dim=1) if key in self.past else x
        return self.past[key]

    def seen(self) -> Bool[Tensor, "batch time slot"]:
        """Which of the slots so far each of this call's tokens may look at."""
        return self._mask()[:, 0, :, : self.length]

    def repeat(self, copies: int) -> None:
        """Every row `copies` times, neighbours."""
        self.keys = [k.repeat_interleave(copies, 0) for k in self.keys]
        self.values = [v.repeat_interleave(copies, 0) for v in self.values]
        self.past = {key: rows.repeat_interleave(copies, 0) for key, rows in self.past.items()}
        self.starts = self.starts.repeat_interleave(copies)


@runtime_checkable
class CachedModel(Protocol):
    """What is asked of a model."""

    config: Any
    embeddings: Any

    def next_logits(self, ids: Tensor, positions: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """[batch, time] -> [batch, vocab], after the last position."""
        ...


class Continuation:
    """Next-token logits of growing texts, one row each.

    The rule past the context length L: each new token is conditioned on exactly the last L tokens of its row. Positions
    then move with every token, so such a row is computed afresh from its last L tokens; rows still inside the context
    go on with the cache. `copies` continues every prompt that many times, as neighbouring rows.
    """

    def __init__(self, model: CachedModel, prompts: Sequence[Sequence[int]], new_tokens: int, copies: int = 1) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise ValueError("every text needs at least one token to start from")
        self.model, self.copies, self.limit = model, copies, model.config.context_length
        self.device = model.embeddings.weight.device
        cropped = [list(prompt[-self.limit :]) for prompt in prompts]
        width = max(map(len, cropped))
        starts = [width - len(text) for text in cropped]
        self.cache = KVCache(
            model.config.n_layers,
            model.config.n_heads,
            model.config.d_attention,
            torch.tensor(starts, device=self.device),
            min(-(-(width + new_tokens) // CAPACITY_STEP) * CAPACITY_STEP, max(starts) + self.limit),
            self.limit,
            model.embeddings.weight.dtype,
        )
        self.prompts = torch.tensor(
            [[0] * s + text for s, text in zip(starts, cropped, strict=True)], device=self.device
        )
        self.texts = [list(text) for text in cropped for _ in range(copies)]

    @torch.no_grad()
    def first(self) -> Float[Tensor, "rows vocab"]:
        """Logits after the prompts: one pass over all of them."""
        positions = self.cache.begin(self.prompts.shape[1])
        logits = self.model.next_logits(self.prompts, positions, self.cache)
        if self.copies > 1:
            self.cache.repeat(self.copies)
            logits = logits.repeat_interleave(self.copies, 0)
        return logits

    @torch.no_grad()
    def next(self, tokens: Sequence[int]) -> Float[Tensor, "rows vocab"]:
        """Append one token to each row; return the logits after them."""
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)
        past = [row for row, text in enumerate(self.texts) if len(text) > self.limit]
        logits = None
        if len(past) < len(self.texts):
            ids = torch.tensor(tokens, device=self.device)[:, None]
            logits = self.model.next_logits(ids, self.cache.begin(1), self.cache)
        if past:
            window = torch.tensor([self.texts[row][-self.limit :] for row in past], device=self.device)
            afresh = self.model.next_logits(window)
            if logits is None:
                return afresh
            logits[past] = afresh
        assert logits is not None
        return logits
