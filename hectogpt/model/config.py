"""A transformer's settings: its sizes, departures from GPT-2, and initial standard deviations."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import nn

from hectogpt.errors import Setting, UserError
from hectogpt.model.inputs import InputPart
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import (
    GELU,
    Activation,
    AttentionPart,
    LayerNorm,
    LearnedPositions,
    Norm,
    Positions,
)
from hectogpt.model.pointer import PointerHead
from hectogpt.serialization import Value

# Larger models are refused before anything is built, so that a damaged file does not cost minutes
# or terabytes.
LARGEST = {
    "d_model": 10**5,
    "n_heads": 10**4,
    "n_layers": 500,
    "context_length": 10**6,
    "vocab_size": 10**7,
}


@dataclass(frozen=True)
class Block(Value):
    """The layout of a layer: where norms and gates are, and what is added to what."""

    @abstractmethod
    def build(self, layer: int, config: ModelConfig) -> nn.Module:
        """A DecoderBlock, or an instance of a derived class, for 0-based `layer`."""


@dataclass(frozen=True)
class Attention(Value):
    """The attention of a layer."""

    @abstractmethod
    def build(self, layer: int, config: ModelConfig) -> nn.Module:
        """A CausalAttention, or an instance of a derived class, for 0-based `layer`."""


@dataclass(frozen=True)
class MLP(Value):
    """The part of a layer that acts on each position separately."""

    @abstractmethod
    def build(self, layer: int, config: ModelConfig) -> nn.Module:
        """A module [batch, time, d] -> [batch, time, d] for 0-based `layer`.

        Linear maps named `fc1` and `fc2` are initialised as in GPT-2; others keep the weights that
        they were built with.
        """


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a transformer, in the textbook's order, then departures from GPT-2 (default: none).

    d_model must be divisible by n_heads.

    Attributes:
        inputs: modules applied to the embedded tokens, in order.
        value_embeddings: modules of the same kind, applied to zeros. Every layer adds the result,
            times a learned factor, to the values of its attention.
        attention_parts: changes to queries and keys, and biases of the scores, in every layer.
        attention_scale: the factor of q.k; None means 1 / sqrt(d_model / n_heads).
        block, attention, mlp: the parts of every layer; None uses GPT-2's.
        biases: True if the linear maps of the blocks have biases.
        pointer: a second distribution that copies earlier tokens, mixed with the softmax.
        d_input: the width of the embeddings, of `inputs` and of `value_embeddings`. None or a
            larger width means d_model. Narrower vectors are padded with zeros before the first
            block reads them, and before they are added to the values.
        document_start: the id of the token before each document of a text. If it is given,
            attention looks back no further than the last such token.
    """

    d_model: int
    n_heads: int
    n_layers: int
    context_length: int
    vocab_size: int
    norm: Norm = field(default_factory=LayerNorm)
    activation: Activation = field(default_factory=GELU)
    positions: Positions = field(default_factory=LearnedPositions)
    inputs: tuple[InputPart, ...] = ()
    value_embeddings: tuple[InputPart, ...] = ()
    attention_parts: tuple[AttentionPart, ...] = ()
    attention_scale: float | None = None
    biases: bool = True
    lm_head: LMHeadConfig = field(default_factory=LMHeadConfig)
    pointer: PointerHead | None = None
    block: Block | None = None
    attention: Attention | None = None
    mlp: MLP | None = None
    document_start: int | None = None
    d_input: int | None = None

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            value = getattr(self, name)
            least = 0 if name == "n_layers" else 1
            if not least <= value <= most:
                raise UserError(
                    Setting(f"model.{name}", _shown(value)),
                    why=f"it must lie between {least} and {most:,}",
                )
        least = self.d_model if self.lm_head.tied else 1
        if self.d_input is not None and self.d_input < least:
            raise UserError(
                Setting("model.d_input", _shown(self.d_input)),
                why=f"it must be at least {least:,}" + ", as the head is tied" * self.lm_head.tied,
            )
        if self.document_start is not None and not 0 <= self.document_start < self.vocab_size:
            raise UserError(
                Setting("model.document_start", _shown(self.document_start)),
                why=f"token ids run from 0 to {self.vocab_size - 1:,}",
                fix="an id, or None",
            )
        if self.d_model % self.n_heads:
            divisors = [n for n in range(1, min(self.d_model, 1024) + 1) if self.d_model % n == 0]
            raise UserError(
                (
                    Setting("model.d_model", self.d_model),
                    " with ",
                    Setting("model.n_heads", self.n_heads),
                ),
                why="every head gets d_model / n_heads dimensions, which must be a whole number",
                fix=f"n_heads: one of {', '.join(map(str, divisors[:12]))}; or another d_model",
            )

    @property
    def d_attention(self) -> int:
        """Dimensions of one head."""
        return self.d_model // self.n_heads

    @property
    def input_width(self) -> int:
        """Width of the embeddings, which fill the first dimensions of the residual stream."""
        return min(self.d_input or self.d_model, self.d_model)

    def min_parameters(self) -> int:
        """Number of parameters of a GPT-2 of these sizes, without biases and norms.

        It is a lower bound that needs no memory to compute.
        """
        head = 0 if self.lm_head.tied else self.vocab_size * self.d_model
        inputs = (self.vocab_size + self.context_length) * self.input_width
        return head + inputs + self.n_layers * 12 * self.d_model**2


SIZES: dict[str, ModelConfig] = {
    "tiny": ModelConfig(33, 3, 3, 512, 50257),  # the assignment's
    "gpt2": ModelConfig(768, 12, 12, 1024, 50257),
    "gpt2-medium": ModelConfig(1024, 16, 24, 1024, 50257),
    "gpt2-large": ModelConfig(1280, 20, 36, 1024, 50257),
    "gpt2-xl": ModelConfig(1600, 25, 48, 1024, 50257),
}


@dataclass(frozen=True)
class Init(Value):
    """Standard deviations of the initial weights. Biases start at 0 and norm gains at 1.

    `residual` is for the two projections that write into the residual stream; None means GPT-2's
    rule, linear / sqrt(2 n_layers). The assignment's starter is meant to apply that rule but never
    does; `residual=0.02` does as it does. A head with a compact vocabulary starts at zero,
    regardless of `head`.
    """

    embedding: float = 0.02
    position: float = 0.02
    linear: float = 0.02
    residual: float | None = None
    head: float = 0.02

    def __post_init__(self) -> None:
        for name in ("embedding", "position", "linear", "residual", "head"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:  # NaN compares as false
                raise UserError(
                    Setting(f"init.{name}", value),
                    why="a standard deviation is finite and not negative",
                )

    def draw(
        self, name: str, shape: torch.Size, std: float, generator: torch.Generator
    ) -> torch.Tensor:
        """Draw the initial values of the weight that is saved as `name`, on the CPU.

        Drawing on the CPU makes a seed mean the same weights on every device. A derived class may
        replace the normal distribution.
        """
        return torch.empty(shape).normal_(0, std, generator=generator)


def _shown(value: int) -> str:
    return f"{value:,}" if value < 10**15 else f"a number of {value.bit_length()} bits"
