from dataclasses import dataclass, replace

import torch
from torch import nn

from hectogpt import Block, DecoderBlock, Run


@dataclass(frozen=True)
class Sandwich(Block):
    """A norm after attention and MLP as well, and a learned share of each."""

    share: float = 0.5

    def build(self, layer, config):
        return SandwichBlock(layer, config, self.share)


class SandwichBlock(DecoderBlock):
    def __init__(self, layer, config, share):
        super().__init__(layer, config)
        self.norms = nn.ModuleList(config.norm.build(config.d_model) for _ in range(2))
        self.shares = nn.Parameter(torch.full((2, config.d_model), share))

    def forward(self, x, view, cache=None, ve=None):
        x = x + self.shares[0] * self.norms[0](self.attention(self.pre_layer_norm(x), view, cache, ve))
        return x + self.shares[1] * self.norms[1](self.mlp(self.post_layer_norm(x)))


def sandwich(run: Run) -> Run:
    """Norms before and after attention and MLP.

    Source: Ding et al. 2021, 2105.13290; peri-LN, Kim et al. 2025, 2502.02732.
    Claim: better; more stable, and a lower loss.
    Expected: tie.
    """
    return replace(run, model=replace(run.model, block=Sandwich()))
