"""Claims from papers, as ideas for the judge: each docstring says what is claimed ("better" or "worse"), and where.

`python -m tools.judge_proof judged` has them judged against `small` and compares the signs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from hectogpt import (
    Activation,
    Attention,
    Block,
    CausalAttention,
    Constant,
    DecoderBlock,
    LearnedPositions,
    Loss,
    Predictions,
    QKNorm,
    Run,
    SOAPMuon,
    recipe,
)
from hectogpt.model import ModelConfig
from hectogpt.model.attention import AttentionView
from hectogpt.model.inputs import LayerCache


def small(run: Run) -> Run:
    """The base: half_minute with half of its rows, in a third of its time."""
    run = recipe("half_minute")
    return replace(run, data=replace(run.data, batch_size=8))


# --- the loss ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoAhead(Loss):
    """The token after the next counts half."""

    def total(self, predictions: Predictions) -> Tensor:
        return predictions.cross_entropy() + 0.5 * predictions.cross_entropy(ahead=1)


def two_ahead(run: Run) -> Run:
    """Worse: predicting several tokens makes small models worse at the next one (2404.19737, figure 3)."""
    return replace(run, loss=TwoAhead())


# --- the block --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dropout(Block):
    """A tenth of what attention and MLP add is dropped."""

    def build(self, layer: int, config: ModelConfig) -> nn.Module:
        return DropoutBlock(layer, config)


class DropoutBlock(DecoderBlock):
    def forward(
        self, x: Tensor, view: AttentionView, cache: LayerCache | None = None, ve: Tensor | None = None
    ) -> Tensor:
        x = x + F.dropout(self.attention(self.pre_layer_norm(x), view, cache, ve), 0.1, self.training)
        return x + F.dropout(self.mlp(self.post_layer_norm(x)), 0.1, self.training)


@dataclass(frozen=True)
class ReluSquared(Activation):
    """max(x, 0)^2."""

    def build(self) -> nn.Module:
        return ReluSquaredLayer()


class ReluSquaredLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().square()


def dropout(run: Run) -> Run:
    """Worse: dropout makes training on text that is read once worse (2505.24788)."""
    return replace(run, model=replace(run.model, block=Dropout()))


def relu_squared(run: Run) -> Run:
    """Better: the square of ReLU is better than GELU (2109.08668)."""
    return replace(run, model=replace(run.model, activation=ReluSquared()))


# --- attention --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exclusive(Attention):
    """What is attended to, without its part along the token's own value."""

    def build(self, layer: int, config: ModelConfig) -> nn.Module:
        return ExclusiveAttention(layer, config)


class ExclusiveAttention(CausalAttention):
    def forward(
        self, x: Tensor, view: AttentionView, cache: LayerCache | None = None, ve: Tensor | None = None
    ) -> Tensor:
        q, k, own = self.qkv(x, view, ve)
        k, v = (k, own) if cache is None else cache.update(k, own)
        attended = self.attend(q, k, v, self.mask(view, q.dtype), cache is None)
        direction = F.normalize(own, dim=-1)
        attended = attended - (attended * direction).sum(-1, keepdim=True) * direction
        return self.W_o(attended.transpose(1, 2).flatten(-2))


@dataclass(frozen=True)
class Gated(Attention):
    """A gate for each head: a number between 0 and 2 that a token's input decides."""

    def build(self, layer: int, config: ModelConfig) -> nn.Module:
        return GatedAttention(layer, config)


class GatedAttention(CausalAttention):
    def __init__(self, layer: int, config: ModelConfig) -> None:
        super().__init__(layer, config)
        self.gate = nn.Linear(config.d_model, config.n_heads)

    def forward(
        self, x: Tensor, view: AttentionView, cache: LayerCache | None = None, ve: Tensor | None = None
    ) -> Tensor:
        q, k, v = self.qkv(x, view, ve)
        k, v = (k, v) if cache is None else cache.update(k, v)
        attended = self.attend(q, k, v, self.mask(view, q.dtype), cache is None).transpose(1, 2)
        return self.W_o((2 * self.gate(x).sigmoid()[..., None] * attended).flatten(-2))


def exclusive_attention(run: Run) -> Run:
    """Better: attention without the part along the own value is better (2603.09078)."""
    return replace(run, model=replace(run.model, attention=Exclusive()))


def gated_attention(run: Run) -> Run:
    """Better: a gate on each head's output is better (2505.06708)."""
    return replace(run, model=replace(run.model, attention=Gated()))


def learned_positions(run: Run) -> Run:
    """Worse: a learned table of positions is worse than rotation (2104.09864)."""
    parts = tuple(part for part in run.model.attention_parts if isinstance(part, QKNorm))
    return replace(run, model=replace(run.model, positions=LearnedPositions(), attention_parts=parts))


# --- the training -----------------------------------------------------------------------------------------------------


def constant_rate(run: Run) -> Run:
    """Worse: a learning rate that does not fall is worse than one that falls to zero (2502.15938)."""
    return replace(run, schedule=Constant())


def adamw(run: Run) -> Run:
    """Worse: AdamW for the hidden matrices too is worse than orthogonalised momentum (2502.16982)."""
    assert isinstance(run.optim, SOAPMuon)
    return replace(run, optim=run.optim.rest)


def short_rows(run: Run) -> Run:
    """Worse: as many tokens in rows of 64 are worse than in rows of 512 (2001.08361, figure 20)."""
    return replace(run, data=replace(run.data, batch_size=8 * run.data.batch_size, seq_len=64))
