"""Idea: add to every token's embedding a learned share of the mean of the last eight embeddings.

Expected: a small gain. The first layer sees a topic at once, which attention would have to learn to collect first.
"""

from dataclasses import dataclass

import torch
from torch import nn

from hectogpt import InputPart, Norm, Run, replace, shift


@dataclass(frozen=True)
class RecentMean(InputPart):
    tokens: int = 8

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return RecentMeanLayer(d_model, self.tokens)


class RecentMeanLayer(nn.Module):
    def __init__(self, d_model: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.share = nn.Parameter(torch.zeros(d_model))  # 0: the model begins as it was

    def forward(self, x, ids, cache=None):
        """x [batch, time, d_model] and the ids [batch, time] -> the new x. Earlier tokens come through `shift` alone,
        which asks the cache while a text is continued token by token."""
        mean = sum(shift(x, back, (self, back), cache) for back in range(1, self.tokens + 1)) / self.tokens
        return x + self.share * mean


def idea(run: Run) -> Run:
    return replace(run, model=replace(run.model, inputs=(*run.model.inputs, RecentMean())))
