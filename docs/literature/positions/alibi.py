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
class Slopes(ScoreBias):
    """Scores fall in proportion to the distance, by a slope for each head."""

    def build(self, n_heads, d_head):
        return SlopesLayer(n_heads)


class SlopesLayer(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        slopes = 2.0 ** (-8.0 * torch.arange(1, n_heads + 1, device="cpu") / n_heads)
        self.register_buffer("slopes", slopes[:, None, None], persistent=False)

    def forward(self, query_positions, key_positions):
        return -self.slopes * (query_positions - key_positions)


def alibi(run: Run) -> Run:
    """Scores fall linearly with distance, at a fixed slope for each head; nothing rotates.

    Source: Press et al. 2021, 2108.12409.
    Claim: tie with rotary positions on the trained length; better on longer texts (WikiText-103).
    Expected: worse, 0.01; with two heads there are two slopes.
    """
    return _instead_of_rotary(run, Slopes())
