"""Norms, activations, positions and attention parts.

Each is a frozen config whose `build` makes an nn.Module: a config `X` builds an `XLayer`, or
torch's own module. Configs know only sizes, not the run, the step or the optimizer. Modules that
change the embedded tokens are in inputs.py.

A module that draws random initial weights does so in a method `init_weights(generator)`. The model
calls it after its own draws, so a seed always gives the same weights.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hectogpt.errors import Setting, SetTo, UserError
from hectogpt.kernels import native
from hectogpt.serialization import Value

# Shapes that many signatures share. `rows` is 1 or the number of texts.
Ids = Int[Tensor, "batch time"]
Places = Int[Tensor, "rows time"]  # positions of tokens in their texts
Vectors = Float[Tensor, "batch time d"]
Heads = Float[Tensor, "batch head time d_head"]
Keys = Float[Tensor, "batch kv_head time d_head"]
Slots = Float[Tensor, "batch head slot d_head"]

# --- norms


@dataclass(frozen=True)
class Norm(Value):
    """A normalisation over the last axis."""

    eps: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf:
            raise UserError(
                Setting("model.norm.eps", self.eps), why="it must be finite and not negative"
            )

    @abstractmethod
    def build(self, size: int) -> nn.Module:
        """Build a module [..., size] -> [..., size]."""


@dataclass(frozen=True)
class LayerNorm(Norm):
    """GPT-2's norm: subtract the mean, divide by the standard deviation, apply gain and bias."""

    def build(self, size: int) -> nn.Module:
        return nn.LayerNorm(size, eps=self.eps)


@dataclass(frozen=True)
class RMSNorm(Norm):
    """Divide by the root mean square (1910.07467). `gain` adds a learned factor per dimension."""

    gain: bool = False

    def build(self, size: int) -> nn.Module:
        return nn.RMSNorm(size, eps=self.eps, elementwise_affine=self.gain)


# --- the MLP's activation


@dataclass(frozen=True)
class Activation(Value):
    """The non-linear function between the MLP's two matrices."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Build a module that acts on each element."""


@dataclass(frozen=True)
class GELU(Activation):
    """GPT-2's activation: the Gaussian error linear unit in its tanh form (1606.08415)."""

    def build(self) -> nn.Module:
        return GELULayer(approximate="tanh")


class GELULayer(nn.GELU):
    """torch's GELU, or our own kernel in training if `kernels` is set."""

    kernels = False

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if native.wanted(self) and native.gelu_fits(input):
            return native.gelu(input)
        return super().forward(input)


@dataclass(frozen=True)
class ReLU2(Activation):
    """The squared rectifier, max(x, 0)^2 (2109.08668)."""

    def build(self) -> nn.Module:
        return ReLU2Layer()


class ReLU2Layer(nn.Module):
    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.relu(x).square()


# --- positions and the causal mask


def visible_keys(
    query_positions: Int[Tensor, "*rows time"], key_positions: Int[Tensor, "*rows slot"]
) -> Bool[Tensor, "*rows time slot"]:
    """The causal mask: True for keys at the query's own position or an earlier one."""
    return key_positions[..., None, :] <= query_positions[..., :, None]


@dataclass(frozen=True)
class Positions(Value):
    """A vector that is added to each token's embedding, depending on its position."""

    @abstractmethod
    def build(self, context_length: int, d_model: int) -> nn.Module | None:
        """Build a module int [...] -> [..., d_model], or return None to add nothing."""


@dataclass(frozen=True)
class NoPositions(Positions):
    """Add nothing: order comes from rotary positions, or only from the causal mask."""

    def build(self, context_length: int, d_model: int) -> None:
        return None


@dataclass(frozen=True)
class LearnedPositions(Positions):
    """GPT-2's positions: a learned vector for each position."""

    def build(self, context_length: int, d_model: int) -> nn.Module:
        return nn.Embedding(context_length, d_model)


@dataclass(frozen=True)
class SinusoidalPositions(Positions):
    """Fixed sines on even and cosines on odd dimensions, with frequencies base^(-2i/d).

    Source: 1706.03762, section 3.5.
    """

    base: float = 10000.0

    def build(self, context_length: int, d_model: int) -> nn.Module:
        if d_model % 2:
            raise UserError(
                ("sinusoidal positions with ", Setting("model.d_model", d_model)),
                why="sines and cosines come in pairs, so d_model must be even",
                fix=SetTo("model.d_model", d_model + 1),
            )
        return SinusoidalPositionsLayer(d_model, self.base)


class SinusoidalPositionsLayer(nn.Module):
    def __init__(self, d_model: int, base: float) -> None:
        super().__init__()
        self.d_model = d_model
        self.base = base

    def forward(self, positions: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        # In float64, because at position 1023 a float32 angle is already off by 6e-5.
        even = torch.arange(0, self.d_model, 2, dtype=torch.float64, device=positions.device)
        angle = positions[..., None] * self.base ** (-even / self.d_model)
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2).float()


# --- attention parts


@dataclass(frozen=True)
class AttentionPart(Value):
    """A change to attention: a QKPart or a ScoreBias. Parts apply in the order of the config."""

    @abstractmethod
    def build(self, n_heads: int, d_head: int) -> nn.Module:
        """Build the module for one layer.

        If a class's `build` has a third parameter, `layer: int = 0`, it gets the 0-based number
        of the layer and may build different modules for different layers.
        """


@dataclass(frozen=True)
class QKPart(AttentionPart):
    """A change to queries and keys before their dot product.

    The module is called with (q, k, positions) and returns the new q and k. q and k have the shape
    [batch, head, time, d_head], and positions have the shape [rows, time], where rows is 1 or the
    batch size. If the module has a method `prepare(positions)`, that is called once per forward
    pass, and its result is passed instead of the positions.
    """


@dataclass(frozen=True)
class ScoreBias(AttentionPart):
    """A number added to the score q.k of each pair of positions, before the softmax.

    The module is called with (query positions [rows, 1, time, 1], key positions [rows, 1, 1,
    slot]) and returns a tensor that broadcasts to [rows, head, time, slot].
    """


@dataclass(frozen=True)
class Rotary(QKPart):
    """Rotary positions: rotate pairs of dimensions by an angle proportional to the position.

    Source: 2104.09864. `fraction` is the share of dimensions that rotate. With 0.5, the lower half
    of the frequencies is zero, so half of each head is free of positions, as in modded-nanogpt.
    """

    base: float = 10000.0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise UserError(
                Setting("Rotary.fraction", self.fraction),
                why="it must lie between 0 and 1",
            )

    def build(self, n_heads: int, d_head: int) -> nn.Module:
        return RotaryLayer(d_head, self.base, self.fraction)


class RotaryLayer(nn.Module):
    frequency: Tensor

    def __init__(self, d_head: int, base: float, fraction: float) -> None:
        super().__init__()
        self.pairs = round(d_head // 2 * fraction)
        # float32, like the weights: model.to(torch.float32) would round a float64 buffer, so
        # the model would compute a different function after saving and loading.
        frequency = base ** (
            -torch.arange(self.pairs, dtype=torch.float64, device="cpu") / max(self.pairs, 1)
        )
        self.register_buffer("frequency", frequency.float(), persistent=False)

    def prepare(self, positions: Places) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the angles, [rows, 1, time, pairs], in the widest dtype."""
        angle = positions[:, None, :, None].to(torch.float64) * self.frequency
        return angle.cos(), angle.sin()

    def forward(self, q: Heads, k: Keys, prepared: tuple[Tensor, Tensor]) -> tuple[Heads, Keys]:
        cos, sin = (table.to(q.dtype) for table in prepared)
        return self._rotate(q, cos, sin), self._rotate(k, cos, sin)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n = self.pairs
        a = x[..., :n]
        b = x[..., n : 2 * n]
        rest = x[..., 2 * n :]
        return torch.cat((a * cos - b * sin, a * sin + b * cos, rest), dim=-1)


@dataclass(frozen=True)
class QKNorm(QKPart):
    """Bound the scores: divide each query and key by its root mean square (2010.04245)."""

    eps: float = 1e-6

    def build(self, n_heads: int, d_head: int) -> nn.Module:
        return QKNormLayer(self.eps)


class QKNormLayer(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, q: Heads, k: Keys, positions: Any) -> tuple[Heads, Keys]:
        size = (q.shape[-1],)
        return F.rms_norm(q, size, eps=self.eps), F.rms_norm(k, size, eps=self.eps)
