import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from hectogpt import (
    AttentionPart,
    NoPositions,
    Positions,
    Rotary,
    Run,
    ScoreBias,
)


def _instead_of_rotary(run: Run, *parts: AttentionPart, positions: Positions | None = None) -> Run:
    kept = tuple(part for part in run.model.attention_parts if not isinstance(part, Rotary))
    model = replace(run.model, attention_parts=(*kept, *parts), positions=positions or NoPositions())
    return replace(run, model=model)


@dataclass(frozen=True)
class RelativeBias(ScoreBias):
    """A learned number for each head and each bucket of distances: 16 exact ones, 16 logarithmic ones up to 128."""

    buckets: int = 32
    farthest: int = 128

    def build(self, n_heads, d_head):
        return RelativeBiasLayer(n_heads, self.buckets, self.farthest)


class RelativeBiasLayer(nn.Module):
    def __init__(self, n_heads, buckets, farthest):
        super().__init__()
        self.exact = buckets // 2
        self.farthest = farthest
        self.bias = nn.Parameter(torch.zeros(n_heads, buckets))

    def forward(self, query_positions, key_positions):
        distance = (query_positions - key_positions).clamp(min=0)
        share = (distance.clamp(min=self.exact) / self.exact).log() / math.log(self.farthest / self.exact)
        far = (self.exact + share * self.exact).long().clamp(max=2 * self.exact - 1)
        bucket = torch.where(distance < self.exact, distance, far)[:, 0]
        return self.bias[:, bucket].transpose(0, 1)


def relative_bias(run: Run) -> Run:
    """T5's positions: a learned bias for each head and bucket of distances.

    Source: Raffel et al. 2019, 1910.10683.
    Claim: tie; about as good as rotary positions in Su et al. and later comparisons.
    Expected: worse, 0.01.
    """
    return _instead_of_rotary(run, RelativeBias())
