"""Modules applied to the token embeddings before the first block: each a frozen config whose `build` makes the module.

A module is called with (x, ids, cache) and returns the new x. It looks at earlier tokens only through `shift`, which
asks the cache while tokens are decoded one by one. A model's `value_embeddings` are modules of the same kind.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hectogpt.errors import UserError
from hectogpt.kernels.dtypes import widest_dtype
from hectogpt.model.parts import Norm
from hectogpt.serialization import Value


@runtime_checkable
class Cache(Protocol):
    """What the model asks of a cache while tokens are decoded; hectogpt.generation.decode has the implementation."""

    key_positions: Int[Tensor, "rows slot"]
    visible: Bool[Tensor, "rows 1 time slot"] | None

    def layer(self, index: int) -> Any:
        """The LayerCache of layer `index` for this call."""
        ...

    def shift(self, key: object, x: Tensor, n: int) -> Tensor:
        """Rows of x [batch, time, ...] moved `n` later in time. The last rows of earlier calls under this key move in,
        zeros where the text starts (padding is not text)."""
        ...

    def append(self, key: object, x: Tensor) -> Tensor:
        """Rows of x [batch, time, ...] after all rows of earlier calls under this key: one for each slot so far."""
        ...

    def visible_so_far(self) -> Bool[Tensor, "batch time slot"]:
        """Which of the slots so far each token of this call may look at."""
        ...


def shift(x: Tensor, n: int, key: object, cache: Cache | None) -> Tensor:
    """Rows of x [batch, time, ...] moved `n` later in time; zeros, or the cache's rows under `key`, move in."""
    if cache is not None:
        return cache.shift(key, x, n)
    return torch.cat((x.new_zeros(x.shape[0], n, *x.shape[2:]), x), dim=1)[:, : x.shape[1]]


@dataclass(frozen=True)
class InputPart(Value):
    """A change of the embedded tokens [batch, time, d] that may look at earlier tokens."""

    @abstractmethod
    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        """The module; `norm` is the model's."""


@dataclass(frozen=True)
class EmbeddingNorm(InputPart):
    """The model's norm, applied to the embeddings."""

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return EmbeddingNormLayer(norm.build(d_model))


class EmbeddingNormLayer(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(
        self, x: Float[Tensor, "batch time d"], ids: Int[Tensor, "batch time"], cache: Cache | None = None
    ) -> Float[Tensor, "batch time d"]:
        return self.norm(x)


@dataclass(frozen=True)
class Smear(InputPart):
    """Add the embeddings of earlier tokens, each with a learned factor per dimension.

    The n-th of `shares` is the first value of the factor for the token n places back. With one share this is the smear
    of modded-nanogpt (record 34), with three the causal depthwise convolution over four tokens of Canon layers
    (2512.17351), at the input alone.
    """

    shares: tuple[float, ...] = (0.3,)

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return SmearLayer(d_model, self.shares)


class SmearLayer(nn.Module):
    def __init__(self, d_model: int, shares: tuple[float, ...]) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.tensor(shares)[:, None].repeat(1, d_model))

    def forward(
        self, x: Float[Tensor, "batch time d"], ids: Int[Tensor, "batch time"], cache: Cache | None = None
    ) -> Float[Tensor, "batch time d"]:
        y = x
        for back, share in enumerate(self.shares, start=1):
            y = y + share * shift(x, back, (self, back), cache)
        return y


@dataclass(frozen=True)
class TokenTable(InputPart):
    """Add a learned vector per token, zero at the start.

    As a model's `value_embeddings` it gives a value embedding (2410.17897 mixes values across layers; modded-nanogpt,
    record 14, looks them up).
    """

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return TokenTableLayer(vocab_size, d_model)


class TokenTableLayer(nn.Module):
    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, d_model)
        nn.init.zeros_(self.table.weight)

    def forward(
        self, x: Float[Tensor, "batch time d"], ids: Int[Tensor, "batch time"], cache: Cache | None = None
    ) -> Float[Tensor, "batch time d"]:
        return x + self.table(ids)


@dataclass(frozen=True)
class NgramHash(InputPart):
    """Add a learned vector per n-gram, zero at the start: the row of a table that a hash of the last `order` tokens
    selects (modded-nanogpt, record 62).

    With `common` only n-grams of common tokens have a vector: those whose ids, counted from 1, have a geometric mean of
    at most `common`. Byte-pair encoding numbers its tokens as it merges them (GPT-2's first 256 are bytes), so a small
    id is often a frequent token. N-grams of rare tokens then do not share rows with those of frequent ones.
    """

    order: int = 2
    rows: int = 65536
    common: int | None = None

    def __post_init__(self) -> None:
        for name, value, most in (("order", self.order, 64), ("rows", self.rows, 2**31)):
            if not 1 <= value <= most:
                raise UserError(f"NgramHash.{name} = {value}", why=f"it must lie between 1 and {most:,}")

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return NgramHashLayer(self.order, self.rows, d_model, self.common)


class NgramHashLayer(nn.Module):
    def __init__(self, order: int, rows: int, d_model: int, common: int | None) -> None:
        super().__init__()
        self.order, self.rows, self.common = order, rows, common
        self.table = nn.Embedding(rows, d_model)
        nn.init.zeros_(self.table.weight)

    def forward(
        self, x: Float[Tensor, "batch time d"], ids: Int[Tensor, "batch time"], cache: Cache | None = None
    ) -> Float[Tensor, "batch time d"]:
        mixed = ids + 1
        ranks = mixed.to(widest_dtype(ids.device))
        for back in range(1, self.order):
            previous = shift(ids + 1, back, (self, back), cache)  # 0 where there is no earlier token
            # Odd multipliers spread the n-grams over the rows; the mask keeps the product positive.
            mixed = (mixed * 0x9E3779B1 + previous * (0x85EBCA77 + 2 * back)) & 0x7FFFFFFFFFFF
            ranks = ranks * previous.clamp(min=1)
        vectors = self.table((mixed ^ (mixed >> 17)) % self.rows)
        if self.common is not None:
            vectors = vectors * (ranks <= float(self.common) ** self.order)[..., None]
        return x + vectors
