"""Modules applied to the token embeddings before the first block, and the cache for decoding.

Each has a frozen config, whose `build` makes the module. The module is called with (x, ids, cache)
and returns the new x. When tokens are decoded one by one, it gets the rows of earlier tokens from
the cache, through `shift` or `Cache.append`. A model's `value_embeddings` are modules of the same
kind.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hectogpt.errors import Setting, UserError
from hectogpt.model.parts import Heads, Ids, Norm, Places, Vectors
from hectogpt.serialization import Value

DISTANCES = 12  # buckets of distance to a match: 1, 2 to 3, 4 to 7, ..., and no match


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
        """Build the module; `norm` is the model's norm."""


def _check(part: InputPart, **limits: int) -> None:
    """Raise UserError unless each of these fields lies between 1 and its limit."""
    for name, most in limits.items():
        value = getattr(part, name)
        if not 1 <= value <= most:
            raise UserError(
                Setting(f"{type(part).__name__}.{name}", value),
                why=f"it must lie between 1 and {most:,}",
            )


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
    four tokens that Canon layers use (2512.17351), but only at the input.
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
    """Add a learned vector per token. All vectors start at zero.

    In a model's `value_embeddings` it is a value embedding, looked up by token as in record 14 of
    modded-nanogpt (2410.17897 mixes values across layers instead).
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
class Spelling(InputPart):
    """Add learned vectors for the spelling of each token. All vectors start at zero.

    Tokens that differ only in capitals or in the space before them share a vector; so do tokens
    with the same last three letters, with the same first five, and with the same length and kinds
    of characters. A hash of the feature selects a row of a table, as for the subwords of
    fastText (1607.04606). The rare features of each kind share one row; rare means one token for
    the first kind, and one or two tokens for the others. The head's embedding map reads these
    vectors too. The vectors are multiplied by `scale`. The steps of an optimizer such as Adam do
    not depend on `scale`, so a smaller `scale` makes the vectors change more slowly.
    """

    rows: int = 8192
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self, rows=2**31)

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return SpellingLayer(vocab_size, self.rows, d_model, self.scale)


class SpellingLayer(nn.Module):
    """After `spell`, `rows_of_token` [vocab, 4] holds the table rows of each token's features."""

    rows_of_token: Tensor

    def __init__(self, vocab_size: int, rows: int, d_model: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("rows_of_token", torch.zeros(vocab_size, 4, dtype=torch.long))
        self.table = nn.Embedding(rows, d_model)
        nn.init.zeros_(self.table.weight)

    def spell(self, texts: Sequence[str]) -> None:
        """Set the table rows of all tokens, given the text of each token."""
        words = [text.strip().lower() for text in texts]
        features: tuple[tuple[int, Sequence[object]], ...] = (
            (2, words),
            (3, [(text[:1] == " ", word[-3:]) for text, word in zip(texts, words, strict=True)]),
            (3, [word[:5] for word in words]),
            (3, [_shape(text) for text in texts]),
        )
        for column, (least, values) in enumerate(features):
            count = Counter(values)
            keys = {v: f"{column} {v if n >= least else None}".encode() for v, n in count.items()}
            row_of = {v: zlib.crc32(key) % self.table.num_embeddings for v, key in keys.items()}
            self.rows_of_token[: len(values), column] = torch.tensor([row_of[v] for v in values])

    def vectors(self) -> Float[Tensor, "vocab d"]:
        """The vector of each token, without a gradient."""
        rows = F.embedding_bag(self.rows_of_token, self.table.weight.detach(), mode="sum")
        return self.scale * rows

    def forward(self, x: Vectors, ids: Ids, cache: Cache | None = None) -> Vectors:
        return x + self.scale * self.table(self.rows_of_token[ids]).sum(dim=2)


def _shape(text: str) -> tuple[int, ...]:
    """The kinds of a token's characters, and its length up to 12."""
    word = text.strip()
    first = word[:1]
    capitals = (first.isupper(), word.isupper() and len(word) > 1)
    kinds = (text[:1] == " ", first.isalnum(), word.isalpha(), word.isdigit())
    return *kinds, *capitals, min(len(word), 12)


@dataclass(frozen=True)
class NgramHash(InputPart):
    """Add a learned vector per n-gram. All vectors start at zero.

    The vector is the row of a table that a hash of the last `order` tokens selects
    (modded-nanogpt, record 62). With `common`, only n-grams of common tokens have a vector: those
    whose ids, counted from 1, have a geometric mean of at most `common`. Byte-pair encoding
    numbers its tokens in the order of merging (GPT-2's first 256 are bytes), so a small id often
    means a frequent token. With `common`, n-grams of rare tokens therefore do not share rows with
    those of frequent ones.
    """

    order: int = 2
    rows: int = 65536
    common: int | None = None

    def __post_init__(self) -> None:
        _check(self, order=64, rows=2**31)
        if self.common is not None:  # a float64 holds common^order
            _check(self, common=10 ** min(300 // self.order, 7))

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


@dataclass(frozen=True)
class Induction(InputPart):
    """Add the vector of the token after the last earlier occurrence of the latest tokens.

    For each n from 1 to `orders`, find the last earlier occurrence of the latest n tokens. Add the
    vector of the token after it, times a learned factor per dimension that starts at `share`, and
    a learned vector for the distance to it. This is the pattern of an induction head (2209.11895),
    but built in instead of learned. The match model of a compressor such as paq8 looks up the same
    occurrence.
    """

    orders: int = 2
    share: float = 0.1

    def __post_init__(self) -> None:
        _check(self, orders=64)

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return InductionLayer(d_model, vocab_size, self.orders, self.share)


class InductionLayer(nn.Module):
    def __init__(self, d_model: int, vocab_size: int, orders: int, share: float) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.shares = nn.Parameter(torch.full((orders, d_model), share))
        self.distances = nn.ModuleList(nn.Embedding(DISTANCES, d_model) for _ in range(orders))
        for table in self.distances:
            nn.init.zeros_(cast(nn.Embedding, table).weight)

    def forward(self, x: Vectors, ids: Ids, cache: Cache | None = None) -> Vectors:
        tokens = ids if cache is None else cache.append((self, "tokens"), ids)
        vectors = x if cache is None else cache.append((self, "vectors"), x)
        time = tokens.shape[1]
        slots = torch.arange(time, device=ids.device)
        start = torch.arange(len(ids), device=ids.device)[:, None] * time
        before = torch.zeros_like(tokens)  # a number for each different context of a token
        y = x
        for share, distances in zip(self.shares, self.distances, strict=True):
            numbers, last = _last_equal(before * self.vocab_size + tokens)
            before = F.pad(numbers[:, :-1], (1, 0), value=-1)
            last = last[:, -ids.shape[1] :]
            found = last >= 0
            # The vectors are looked up as in a table, because the gradient of `gather` is slower.
            followed = F.embedding(start + (last + 1) * found, vectors.flatten(0, 1))
            back = (slots[-ids.shape[1] :] - last).log2().long().clamp_max(DISTANCES - 2)
            y = y + share * followed * found[..., None]
            y = y + distances(torch.where(found, back, DISTANCES - 1))
        return y


def _last_equal(
    keys: Int[Tensor, "batch time"],
) -> tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]:
    """Number the different keys of each row, and find the last earlier place of each key.

    Returns the number of every key and that place, which is -1 if the key has not occurred before.
    """
    ordered, places = keys.sort(dim=1, stable=True)
    same = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    earlier = torch.where(same, places.roll(1, dims=1), -1)
    numbers = (~same).cumsum(dim=1)
    empty = torch.empty_like(keys)
    return empty.scatter(1, places, numbers), empty.scatter(1, places, earlier)


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

    It holds the keys and values of every layer, in buffers that are allocated once, and the
    rows that other parts store. A slot is one place on the buffers' time axis; its index is also
    the position of its tokens. Every call of the model starts with `advance`, which sets `slots`
    [time], the slots for the call's own keys and values.

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
