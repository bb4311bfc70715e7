"""Keys and values of earlier tokens, and what other parts of a model remember, while texts are decoded.

Prompts of unequal length are padded on the left, so that the last column is every row's newest token. Padding is masked
in attention, has no position, and reads as zeros to parts that look at earlier tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hectogpt.model.attention import LayerCache
from hectogpt.model.parts import visible_keys

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
        layers: int,
        heads: int,
        d_head: int,
        starts: Int[Tensor, " batch"],
        capacity: int,
        context_length: int,
        dtype: torch.dtype,
    ) -> None:
        shape = (starts.shape[0], heads, capacity, d_head)
        buffers = [zeros(shape, dtype, starts.device) for _ in range(2 * layers)]
        self.keys, self.values = buffers[:layers], buffers[layers:]
        self.starts, self.capacity, self.context_length = starts, capacity, context_length
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
