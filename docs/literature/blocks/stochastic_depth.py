from dataclasses import dataclass, replace

import torch

from hectogpt import Block, DecoderBlock, Run


@dataclass(frozen=True)
class StochasticDepth(Block):
    """While it trains, each row of the batch leaves out a layer with some probability."""

    share: float = 0.1

    def build(self, layer, config):
        return StochasticDepthBlock(layer, config, self.share)


class StochasticDepthBlock(DecoderBlock):
    def __init__(self, layer, config, share):
        super().__init__(layer, config)
        self.share = share

    def forward(self, x, view, cache=None, ve=None):
        added = super().forward(x, view, cache, ve) - x
        if not self.training:
            return x + added
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.share
        return x + added * kept / (1 - self.share)


def stochastic_depth(run: Run) -> Run:
    """A row of the batch skips a layer with probability 0.1.

    Source: Huang et al. 2016, 1603.09382.
    Claim: better; lower test errors of deep residual networks (CIFAR), which read their data many times.
    Expected: worse, 0.01.
    """
    return replace(run, model=replace(run.model, block=StochasticDepth()))
