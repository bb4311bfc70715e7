"""Modules applied to the token embeddings before the first block, and the cache for decoding.

Each has a frozen config, whose `build` makes the module. The module is called with (x, ids, cache)
and returns the new x. It reads earlier tokens only through `shift`, which asks the cache when
tokens are decoded one by one. A model's `value_embeddings` are modules of the same kind.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hectogpt.errors import Setting, UserError
from hectogpt.model.parts import Heads, Ids, Norm, Places, Vectors
from hectogpt.serialization import Value


def shift(x: Tensor, n: int, key: object, cache: Cache | None) -> Tensor:
    """Move the rows of x [batch, time, ...] `n` places later in time.

    The first rows become zeros, or the rows that the cache has stored under `key`.
    """
    if cache is not None:
        return cache.shift(key, x, n)
    return torch.cat((x.new_zeros(x.shape[0], n, *x.shape[2:]), x), dim=1)[:, : x.shape[1]]


@dataclass(frozen=True)
class InputPart(Value):
    """A change to the embedded tokens [batch, time, d] that may read earlier tokens."""

    @abstractmethod
    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        """Build the module; `norm` is the model's."""


@dataclass(frozen=True)
class EmbeddingNorm(InputPart):
    """The model's norm, applied to the embeddings."""

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return EmbeddingNormLayer(norm.build(d_model))


class EmbeddingNormLayer(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Vectors, ids: Ids, cache: Cache | None = None) -> Vectors:
        return self.norm(x)


@dataclass(frozen=True)
class Smear(InputPart):
    """Add the embeddings of earlier tokens, each with a learned factor per dimension.

    The n-th of `shares` is the initial factor for the token n places back. With one share this is
    the smear of modded-nanogpt (record 34); with three it is the causal depthwise convolution over
    four tokens of Canon layers (2512.17351), at the input only.
    """

    shares: tuple[float, ...] = (0.3,)

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return SmearLayer(d_model, self.shares)


class SmearLayer(nn.Module):
    def __init__(self, d_model: int, shares: tuple[float, ...]) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.tensor([[share] * d_model for share in shares]))

    def forward(self, x: Vectors, ids: Ids, cache: Cache | None = None) -> Vectors:
        y = x
        for back, share in enumerate(self.shares, start=1):
            y = y + share * shift(x, back, (self, back), cache)
        return y


@dataclass(frozen=True)
class TokenTable(InputPart):
    """Add a learned vector per token, zero at the start.

    In a model's `value_embeddings` it is a value embedding (2410.17897 mixes values across layers;
    modded-nanogpt, record 14, looks them up).
    """

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return TokenTableLayer(vocab_size, d_model)


class TokenTableLayer(nn.Module):
    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, d_model)
        nn.init.zeros_(self.table.weight)

    def forward(self, x: Vectors, ids: Ids, cache: Cache | None = None) -> Vectors:
        return x + self.table(ids)


@dataclass(frozen=True)
class NgramHash(InputPart):
    """Add a learned vector per n-gram, zero at the start.

    The vector is the row of a table that a hash of the last `order` tokens selects
    (modded-nanogpt, record 62). With `common`, only n-grams of common tokens have a vector: those
    whose ids, counted from 1, have a geometric mean of at most `common`. Byte-pair encoding
    numbers its tokens in the order of merging (GPT-2's first 256 are bytes), so a small id often
    means a frequent token. N-grams of rare tokens then do not share rows with those of frequent
    ones.
    """

    order: int = 2
    rows: int = 65536
    common: int | None = None

    def __post_init__(self) -> None:
        for name, value, most in (("order", self.order, 64), ("rows", self.rows, 2**31)):
            if not 1 <= value <= most:
                raise UserError(
                    Setting(f"NgramHash.{name}", value), why=f"it must lie between 1 and {most:,}"
                )

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return NgramHashLayer(self.order, self.rows, d_model, self.common)


class NgramHashLayer(nn.Module):
    def __init__(self, order: int, rows: int, d_model: int, common: int | None) -> None:
        super().__init__()
        self.order = order
        self.rows = rows
        self.common = common
        self.table = nn.Embedding(rows, d_model)
        nn.init.zeros_(self.table.weight)

    def forward(self, x: Vectors, ids: Ids, cache: Cache | None = None) -> Vectors:
        mixed = ids + 1
        ranks = mixed.double()
        for back in range(1, self.order):
            previous = shift(ids + 1, back, (self, back), cache)  # 0 if there is no earlier token
            # Odd multipliers spread the n-grams over the rows; the mask keeps the product
            # positive.
            mixed = (mixed * 0x9E3779B1 + previous * (0x85EBCA77 + 2 * back)) & 0x7FFFFFFFFFFF
            ranks = ranks * previous.clamp(min=1)
        vectors = self.table((mixed ^ (mixed >> 17)) % self.rows)
        if self.common is not None:
            vectors = vectors * (ranks <= float(self.common) ** self.order)[..., None]
        return x + vectors


# --- the memory of earlier tokens while decoding


class LayerCache(NamedTuple):
    """One layer's cached keys and values, [batch, head, slot, d_head].

    `slots` [time] are the slots of the current call's own tokens.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor

    def update(
        self, k: Float[Tensor, "batch head time d_key"], v: Heads
    ) -> tuple[Float[Tensor, "batch head slot d_key"], Float[Tensor, "batch head slot d_head"]]:
        """Write k and v into their slots and return all keys and all values."""
        return self.keys.index_copy_(2, self.slots, k), self.values.index_copy_(2, self.slots, v)


class Cache:
    """The memory of earlier tokens while texts of equal length are decoded.

    It holds the keys and values of every layer, in buffers that are allocated once, and what other
    parts store. A slot is one place on the buffers' time axis; its index is also its tokens'
    position. Every call of the model starts with `advance`, which sets `slots` [time], where the
    call's keys and values go.

    Args:
        rows: number of texts.
        capacity: number of slots.
        heads: for each layer, the number of heads and the dimensions of a key.
        d_value: the dimensions of a value.
        like: a tensor with the dtype and device of the buffers.
    """

    def __init__(
        self,
        rows: int,
        capacity: int,
        heads: Sequence[tuple[int, int]],
        d_value: int,
        like: Tensor,
    ) -> None:
        self.keys = [like.new_empty(rows, n, capacity, d_key) for n, d_key in heads]
        self.values = [like.new_empty(rows, n, capacity, d_value) for n, _ in heads]
        self.capacity = capacity
        self.length = 0
        self.slots = torch.arange(0, device=like.device)
        self.remembered: dict[object, Tensor] = {}
        self.appended: dict[object, Tensor] = {}

    def advance(self, time: int) -> Places:
        """Open the next `time` slots for one call; return their positions, [1, time]."""
        self.slots = torch.arange(self.length, self.length + time, device=self.slots.device)
        self.length += time
        return self.slots[None]

    def layer(self, index: int) -> LayerCache:
        """The keys, values and slots of layer `index` during this call."""
        keys, values = (
            buffers[index].narrow(2, 0, self.length) for buffers in (self.keys, self.values)
        )
        return LayerCache(keys, values, self.slots)

    def shift(self, key: object, x: Tensor, n: int) -> Tensor:
        """Move the rows of x [batch, time, ...] `n` places later in time.

        The first rows are the last ones of the previous call with this key, or zeros at the start
        of the text.
        """
        before = (
            self.remembered[key]
            if key in self.remembered
            else x.new_zeros(x.shape[0], n, *x.shape[2:])
        )
        joined = torch.cat((before, x), dim=1)
        self.remembered[key] = joined[:, -n:]
        return joined[:, : x.shape[1]]

    def append(self, key: object, x: Tensor) -> Tensor:
        """Store the rows of x [batch, time, ...] after all earlier rows with this key.

        Returns all of them: one row for each slot so far.
        """
        if key not in self.appended:
            self.appended[key] = x.new_empty(x.shape[0], self.capacity, *x.shape[2:])
        so_far = self.appended[key][:, : self.length]
        so_far[:, self.length - x.shape[1] :] = x
        return so_far
