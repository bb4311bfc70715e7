from dataclasses import dataclass, replace

import torch
from torch import nn

from hectogpt import QKPart, Run


@dataclass(frozen=True)
class HeadScale(QKPart):
    """A learned factor of the scores for each head, 1 at the start."""

    def build(self, n_heads, d_head):
        return HeadScaleLayer(n_heads)


class HeadScaleLayer(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(n_heads, 1, 1))

    def forward(self, q, k, positions):
        return q * self.factor.to(q.dtype), k


def head_scale(run: Run) -> Run:
    """Normalised queries and keys with a learned factor for each head, instead of a fixed one.

    Source: Henry et al. 2020, 2010.04245.
    Claim: better; a part of QK-norm (translation of small corpora).
    Expected: tie.
    """
    return replace(run, model=replace(run.model, attention_parts=(*run.model.attention_parts, HeadScale())))
