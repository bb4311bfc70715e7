import math
from dataclasses import dataclass, replace

from torch import nn

from hectogpt import InputPart, Run


@dataclass(frozen=True)
class Scaled(InputPart):
    """Embeddings times the root of d_model."""

    def build(self, d_model, vocab_size, norm):
        return ScaledLayer(math.sqrt(d_model))


class ScaledLayer(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, ids, cache=None):
        return self.factor * x


def scaled_embeddings(run: Run) -> Run:
    """Embeddings times the root of d_model, here 8, at the beginning of the network.

    Source: Vaswani et al. 2017, 1706.03762; Takase et al. 2023, 2312.16903.
    Claim: better; more stable, and a slightly lower loss at 1.7B.
    Expected: worse, 0.01; the learning rates of the tables are tuned without it.
    """
    return replace(run, model=replace(run.model, inputs=(*run.model.inputs, Scaled())))
