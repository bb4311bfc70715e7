"""Idea: each head subtracts a learned multiple of log(1 + distance) from its scores (KERPLE, 2205.09921).

Expected: little at the top, where heads have rotary positions and the input mixes in the last tokens; more without.
"""

from dataclasses import dataclass

import torch
from torch import nn

from hectogpt import Run, ScoreBias, replace


@dataclass(frozen=True)
class LogDistance(ScoreBias):
    """What the config holds: numbers only. `build` makes the module of one layer."""

    start: float = 0.0  # 0: the model begins as it was

    def build(self, n_heads: int, d_head: int) -> nn.Module:
        return LogDistanceLayer(n_heads, self.start)


class LogDistanceLayer(nn.Module):
    def __init__(self, n_heads: int, start: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((n_heads, 1, 1), start))

    def forward(self, query_positions: torch.Tensor, key_positions: torch.Tensor) -> torch.Tensor:
        """[rows, 1, time, 1] and [rows, 1, 1, slots] -> [rows, heads, time, slots], added to q.k before the softmax."""
        distance = (query_positions - key_positions).clamp(min=0)  # the causal mask is applied anyway
        return -self.slope * torch.log1p(distance.to(self.slope.dtype))


def idea(run: Run) -> Run:
    parts = (*run.model.attention_parts, LogDistance())
    return replace(run, model=replace(run.model, attention_parts=parts))
