from dataclasses import dataclass, replace

import torch
from torch import nn

from hectogpt import Block, DecoderBlock, Run


@dataclass(frozen=True)
class DenseFormer(Block):
    """What a layer reads is a learned weighted sum of what all earlier layers read and wrote."""

    def build(self, layer, config):
        return DenseFormerBlock(layer, config)


class DenseFormerBlock(DecoderBlock):
    def __init__(self, layer, config):
        super().__init__(layer, config)
        weights = torch.zeros(layer + 1)
        weights[-1] = 1.0
        self.mixture = nn.Parameter(weights)

    def forward(self, x, view, cache=None, ve=None):
        mixed = sum(weight * entered for weight, entered in zip(self.mixture, view.entered, strict=True))
        return super().forward(mixed, view, cache, ve)


def dense_former(run: Run) -> Run:
    """Each layer reads a learned mixture of the inputs of all layers up to it. A small form of hyper-connections.

    Source: Pagliardini et al. 2024, 2402.02622; hyper-connections, Zhu et al. 2024, 2409.19606.
    Claim: better; perplexity of a deeper model, at 48 layers and more.
    Expected: tie; there are two layers.
    """
    return replace(run, model=replace(run.model, block=DenseFormer()))
