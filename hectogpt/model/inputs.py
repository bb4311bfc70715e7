"""What may happen to the embedded tokens before the first block: frozen descriptions whose `build` makes the module.

Input parts are called with (x, ids, past) and look back only through `shifted`, which asks the cache while decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hectogpt.model.parts import Norm
from hectogpt.values import Value


@runtime_checkable
class Past(Protocol):
    """What a part that looks back may ask of a cache while tokens are decoded one by one."""

    def shifted(self, key: object, x: Tensor, n: int) -> Tensor:
        """Rows of x [batch, time, ...] moved `n` later in time; rows of earlier calls under this key move in, zeros
        where the text starts (padding is not text)."""
        ...


@dataclass(frozen=True)
class InputPart(Value):
    """A change of the embedded tokens [batch, time, d] that may look at earlier tokens."""

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        raise TypeError("choose EmbeddingNorm, Smear, TokenTable or NgramHash")


@dataclass(frozen=True)
class EmbeddingNorm(InputPart):
    """The model's norm, applied to the embedding itself."""

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return NormedInput(norm.build(d_model))


class NormedInput(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(
        self, x: Float[Tensor, "batch time d"], ids: Int[Tensor, "batch time"], past: Past | None = None
    ) -> Float[Tensor, "batch time d"]:
        return self.norm(x)


def shifted(x: Tensor, n: int, key: object, past: Past | None) -> Tensor:
    """Rows of x [batch, time, ...] moved `n` later in time, zeros (or the cache's rows) moving in."""
    if past is not None:
        return past.shifted(key, x, n)
    return torch.cat((x.new_zeros(x.shape[0], n, *x.shape[2:]), x), dim=1)[:, : x.shape[1]]


@dataclass(frozen=True)
class Smear(InputPart):
    """Add learned shares of the embeddings of earlier tokens, per dimension: the n-th of `shares` is the start for the
    token n places back. With one it is the smear of modded-nanogpt (record 34), with three the causal depthwise
    convolution over four tokens of Canon layers (2512.17351), at the input alone."""

    shares: tuple[float, ...] = (0.3,)

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return PreviousTokens(d_model, self.shares)


class PreviousTokens(nn.Module):
    def __init__(self, d_model: int, shares: tuple[float, ...]) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.tensor(shares)[:, None].repeat(1, d_model))

    def forward(
        self, x: Float[Tensor, "batch time d"], ids: Int[Tensor, "batch time"], past: Past | None = None
    ) -> Float[Tensor, "batch time d"]:
        y = x
        for back, share in enumerate(self.shares, start=1):
            y = y + share * shifted(x, back, (self, back), past)
        return y


@dataclass(frozen=True)
class TokenTable(InputPart):
    """Add a vector looked up by the token, zero at the start: among a model's `values`, a value embedding (2410.17897
    mixes values across layers; modded-nanogpt, record 14, looks them up)."""

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return LookedUpTokens(vocab_size, d_model)


class LookedUpTokens(nn.Module):
    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, d_model)
        nn.init.zeros_(self.table.weight)

    def forward(
        self, x: Float[Tensor, "batch time d"], ids: Int[Tensor, "batch time"], past: Past | None = None
    ) -> Float[Tensor, "batch time d"]:
        return x + self.table(ids)


@dataclass(frozen=True)
class NgramHash(InputPart):
    """Add a vector looked up by a hash of the last `order` tokens, zero at the start (modded-nanogpt, record 62).

    With `common` only tuples of common tokens have a vector: those whose ids, counted from 1, have a geometric mean of
    at most this. Byte-pair encoding numbers its tokens as it merges them, the most frequent first, so an id is a rank
    in the text that the tokenizer was made from. Tuples that will not come again leave their rows to those that do.
    """

    order: int = 2
    rows: int = 65536
    common: int | None = None

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return HashedNgrams(self.order, self.rows, d_model, self.common)


class HashedNgrams(nn.Module):
    def __init__(self, order: int, rows: int, d_model: int, common: int | None) -> None:
        super().__init__()
        self.order, self.rows, self.common = order, rows, common
        self.table = nn.Embedding(rows, d_model)
        nn.init.zeros_(self.table.weight)

    def forward(
        self, x: Float[Tensor, "batch time d"], ids: Int[Tensor, "batch time"], past: Past | None = None
    ) -> Float[Tensor, "batch time d"]:
        mixed = ids + 1
        ranks = mixed.double()
        for back in range(1, self.order):
            previous = shifted(ids + 1, back, (self, back), past)  # 0 where there is no earlier token
            # Odd multipliers spread the tuples over the rows; the mask keeps the product positive.
            mixed = (mixed * 0x9E3779B1 + previous * (0x85EBCA77 + 2 * back)) & 0x7FFFFFFFFFFF
            ranks = ranks * previous.clamp(min=1)
        vectors = self.table((mixed ^ (mixed >> 17)) % self.rows)
        if self.common is not None:
            vectors = vectors * (ranks <= float(self.common) ** self.order)[..., None]
        return x + vectors
