"""Departures from GPT-2, each a frozen description with a `build` that makes the module.

They know sizes and nothing else: no run, no step, no optimizer. Attention parts are called with (q, k, positions) and
compose in the order given. Parts that change the embedded tokens are in inputs.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hectogpt.errors import UserError
from hectogpt.values import Value

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
        raise TypeError("choose Rotary or QKNorm")


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


# --- the loss head's options ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The vocabulary head: soft_cap bounds logits z by cap * tanh(z / cap) (2408.00118); bias adds one learned number
    per token, outside the cap; tied shares the embedding's matrix.

    `shared` gives the words that never occur in the training text one learned logit between them, so that cost follows
    the words in use, of which there are `used` (0: counted when training starts). Probabilities still sum to 1 over the
    whole vocabulary.

    `joint` = s other than 0 adds s E B^T to the head's matrix, E its words' embeddings, B a learned d x d matrix from
    zero: words that are alike as inputs become alike as outputs (a linear form of 1808.10681). E gets no gradient here,
    or every word's embedding would move at every step.
    """

    bias: bool = False
    soft_cap: float | None = None
    tied: bool = False
    shared: bool = False
    used: int = 0
    joint: float = 0.0

    def __post_init__(self) -> None:
        if self.soft_cap is not None and not (self.soft_cap > 0 and math.isfinite(self.soft_cap)):
            raise UserError(f"model.head.soft_cap = {self.soft_cap}", why="it must be positive and finite")
        if not math.isfinite(self.joint):
            raise UserError(f"model.head.joint = {self.joint}", why="it multiplies weights, so it must be finite")
        if self.joint and self.tied:
            raise UserError(
                "model.head.joint with model.head.tied",
                why="a tied head is the embeddings already",
                fix="one of the two",
            )
        if self.shared and self.tied:
            raise UserError(
                "model.head.shared with model.head.tied",
                why="a tied head has a row for every word, a shared one only for those in use",
                fix="one of the two",
            )

    def cap(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)
