"""Departures from GPT-2, each a frozen description with a `build` that makes the module.

They know sizes and nothing else: no run, no step, no optimizer. Attention parts are called with (q, k, positions) and
compose in the order given; input parts are called with the embedded tokens before the first block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hectogpt.errors import UserError
from hectogpt.values import Value


@runtime_checkable
class Past(Protocol):
    """What a part that looks back may ask of a cache while tokens are decoded one by one."""

    def shifted(self, key: object, x: Tensor, n: int) -> Tensor:
        """Rows of x [batch, time, ...] moved `n` later in time; rows of earlier calls under this key move in, zeros
        where the text starts (padding is not text)."""
        ...


# --- norms ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norm(Value):
    """A normalisation over the last axis."""

    eps: float = 1e-5

    def build(self, size: int) -> nn.Module:
        raise TypeError("choose LayerNorm or RMSNorm")


@dataclass(frozen=True)
class LayerNorm(Norm):
    """GPT-2's: subtract the mean, divide by the standard deviation, learned gain and bias."""

    def build(self, size: int) -> nn.Module:
        return nn.LayerNorm(size, eps=self.eps)


@dataclass(frozen=True)
class RMSNorm(Norm):
    """Divide by the root mean square (1910.07467); the gain is left out unless asked for."""

    gain: bool = False

    def build(self, size: int) -> nn.Module:
        return nn.RMSNorm(size, eps=self.eps, elementwise_affine=self.gain)


# --- the MLP's activation ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation(Value):
    """The non-linearity between the MLP's two matrices."""

    def build(self) -> nn.Module:
        raise TypeError("choose GELU or ReLU2")


@dataclass(frozen=True)
class GELU(Activation):
    """GPT-2's: the tanh form of the Gaussian error linear unit (1606.08415)."""

    def build(self) -> nn.Module:
        return nn.GELU(approximate="tanh")


@dataclass(frozen=True)
class ReLU2(Activation):
    """The squared rectifier (2109.08668)."""

    def build(self) -> nn.Module:
        return SquaredReLU()


class SquaredReLU(nn.Module):
    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.relu(x).square()


# --- positions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Positions(Value):
    """How a token's place enters the embedding."""

    def build(self, context_length: int, d_model: int) -> nn.Module | None:
        raise TypeError("choose Learned, Sinusoidal or NoPositions")


@dataclass(frozen=True)
class NoPositions(Positions):
    """Nothing is added to the embedding: order comes from rotary parts or from the causal mask alone."""

    def build(self, context_length: int, d_model: int) -> None:
        return None


@dataclass(frozen=True)
class Learned(Positions):
    """GPT-2's: one learned vector per position, added to the token's."""

    def build(self, context_length: int, d_model: int) -> nn.Module:
        return nn.Embedding(context_length, d_model)


@dataclass(frozen=True)
class Sinusoidal(Positions):
    """Fixed sines on even and cosines on odd dimensions, frequency base^(-2i/d) (1706.03762, section 3.5)."""

    base: float = 10000.0

    def build(self, context_length: int, d_model: int) -> nn.Module:
        if d_model % 2:
            raise UserError(
                f"sinusoidal positions with model.d_model = {d_model}",
                why="sines and cosines come in pairs, so d_model must be even",
                fix=f"--model.d-model {d_model + 1}",
            )
        return SinusoidalTable(context_length, d_model, self.base)


class SinusoidalTable(nn.Module):
    table: Tensor

    def __init__(self, context_length: int, d_model: int, base: float) -> None:
        super().__init__()
        angle = _angles(torch.arange(context_length, dtype=torch.float64), d_model, base)
        table = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)
        self.register_buffer("table", table.float(), persistent=False)

    def forward(self, positions: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        return self.table[positions]


def _angles(positions: Tensor, size: int, base: float) -> Tensor:
    """[..., T] positions -> [..., T, size / 2] angles t * base^(-2i / size), in float64."""
    frequency = base ** (-torch.arange(0, size, 2, dtype=torch.float64, device=positions.device) / size)
    return positions.double()[..., None] * frequency


# --- attention parts: (q, k, positions) -> (q, k) ---------------------------------------------------------------------


@dataclass(frozen=True)
class HeadPart(Value):
    """A change of queries and keys, [batch, head, time, d_head] each, before their dot product."""

    def build(self, n_heads: int, d_head: int) -> nn.Module:
        raise TypeError("choose Rotary, QKNorm or KeyOffset")


@dataclass(frozen=True)
class Rotary(HeadPart):
    """Rotate pairs of dimensions by an angle proportional to the position (2104.09864).

    `fraction` is the share of dimensions that turn: at .5 the lower half of the frequencies is set to zero, which
    leaves half of each head free of positions, as modded-nanogpt does.
    """

    base: float = 10000.0
    fraction: float = 1.0

    def build(self, n_heads: int, d_head: int) -> nn.Module:
        return RotaryEmbedding(d_head, self.base, self.fraction)


class RotaryEmbedding(nn.Module):
    frequency: Tensor

    def __init__(self, d_head: int, base: float, fraction: float) -> None:
        super().__init__()
        turning = round(d_head // 2 * fraction)
        frequency = base ** (-torch.arange(turning, dtype=torch.float64) / max(turning, 1))
        self.register_buffer("frequency", frequency, persistent=False)
        self.turning = turning

    def forward(
        self,
        q: Float[Tensor, "batch head time d_head"],
        k: Float[Tensor, "batch head time d_head"],
        positions: Int[Tensor, "rows time"],
    ) -> tuple[Float[Tensor, "batch head time d_head"], Float[Tensor, "batch head time d_head"]]:
        # Angles in float64: at position 1023 a float32 angle is already off by 6e-5.
        angle = positions[:, None, :, None].double() * self.frequency
        cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
        return self._turn(q, cos, sin), self._turn(k, cos, sin)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n = self.turning
        a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
        return torch.cat((a * cos - b * sin, a * sin + b * cos, rest), dim=-1)


@dataclass(frozen=True)
class QKNorm(HeadPart):
    """Divide each query and key by its root mean square (2010.04245), so that scores cannot grow without bound."""

    eps: float = 1e-6

    def build(self, n_heads: int, d_head: int) -> nn.Module:
        return QueryKeyNorm(self.eps)


class QueryKeyNorm(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(
        self,
        q: Float[Tensor, "batch head time d_head"],
        k: Float[Tensor, "batch head time d_head"],
        positions: Int[Tensor, "rows time"],
    ) -> tuple[Float[Tensor, "batch head time d_head"], Float[Tensor, "batch head time d_head"]]:
        size = (q.shape[-1],)
        return F.rms_norm(q, size, eps=self.eps), F.rms_norm(k, size, eps=self.eps)


# --- input parts: (x, ids, past) -> x, between the embedding and the first block --------------------------------------


@dataclass(frozen=True)
class InputPart(Value):
    """A change of the embedded tokens [batch, time, d] that may look at earlier tokens."""

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        raise TypeError("choose EmbeddingNorm, Smear or NgramHash")


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
    """Add a vector looked up by a hash of the last `order` tokens, zero at the start (modded-nanogpt, record 62)."""

    order: int = 2
    rows: int = 65536

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return HashedNgrams(self.order, self.rows, d_model)


class HashedNgrams(nn.Module):
    def __init__(self, order: int, rows: int, d_model: int) -> None:
        super().__init__()
        self.order, self.rows = order, rows
        self.table = nn.Embedding(rows, d_model)
        nn.init.zeros_(self.table.weight)

    def forward(
        self, x: Float[Tensor, "batch time d"], ids: Int[Tensor, "batch time"], past: Past | None = None
    ) -> Float[Tensor, "batch time d"]:
        mixed = ids + 1
        for back in range(1, self.order):
            previous = shifted(ids + 1, back, (self, back), past)  # 0 where there is no earlier token
            # Odd multipliers spread the tuples over the rows; the mask keeps the product positive.
            mixed = (mixed * 0x9E3779B1 + previous * (0x85EBCA77 + 2 * back)) & 0x7FFFFFFFFFFF
        return x + self.table((mixed ^ (mixed >> 17)) % self.rows)


# --- the loss head's options ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The vocabulary head: soft_cap bounds logits z by cap * tanh(z / cap) (2408.00118); bias adds one learned number
    per token, outside the cap; tied shares the embedding's matrix.

    `shared` gives the words that never occur in the training text one learned logit between them, so that cost follows
    the words in use, of which there are `used` (0: counted when training starts). Probabilities still sum to 1 over the
    whole vocabulary.
    """

    bias: bool = False
    soft_cap: float | None = None
    tied: bool = False
    shared: bool = False
    used: int = 0

    def __post_init__(self) -> None:
        if self.soft_cap is not None and not (self.soft_cap > 0 and math.isfinite(self.soft_cap)):
            raise UserError(f"model.head.soft_cap = {self.soft_cap}", why="it must be positive and finite")
        if self.shared and self.tied:
            raise UserError(
                "model.head.shared with model.head.tied",
                why="a tied head has a row for every word, a shared one only for those in use",
                fix="one of the two",
            )

    def cap(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)
