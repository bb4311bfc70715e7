from dataclasses import dataclass, replace

import torch
from torch import nn

from hectogpt import InputPart, Run, shift


@dataclass(frozen=True)
class RecentMean(InputPart):
    """A learned share of the mean of the last embeddings: the first layer sees a topic at once."""

    tokens: int = 8

    def build(self, d_model, vocab_size, norm):
        return RecentMeanLayer(d_model, self.tokens)


class RecentMeanLayer(nn.Module):
    def __init__(self, d_model, tokens):
        super().__init__()
        self.tokens = tokens
        self.share = nn.Parameter(torch.full((d_model,), 0.1))

    def forward(self, x, ids, cache=None):
        """Earlier tokens come through `shift` alone, which asks the cache while a text is continued."""
        mean = sum(shift(x, back, (self, back), cache) for back in range(1, self.tokens + 1)) / self.tokens
        return x + self.share * mean


def recent_mean(run: Run) -> Run:
    """A learned share of the mean of the last eight embeddings is added to each.

    Source: the continuous bag of words, Mikolov et al. 2013, 1301.3781, as an input.
    Claim: none for transformers.
    Expected: tie.
    """
    return replace(run, model=replace(run.model, inputs=(*run.model.inputs, RecentMean())))
