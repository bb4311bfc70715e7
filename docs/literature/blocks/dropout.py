from dataclasses import dataclass, replace

from torch import nn

from hectogpt import Block, DecoderBlock, Run


@dataclass(frozen=True)
class Dropped(Block):
    """Dropout on what attention and MLP add."""

    share: float = 0.1

    def build(self, layer, config):
        return DroppedBlock(layer, config, self.share)


class DroppedBlock(DecoderBlock):
    def __init__(self, layer, config, share):
        super().__init__(layer, config)
        self.dropout = nn.Dropout(share)

    def forward(self, x, view, cache=None, ve=None):
        x = x + self.dropout(self.attention(self.pre_layer_norm(x), view, cache, ve))
        return x + self.dropout(self.mlp(self.post_layer_norm(x)))


def dropout(run: Run) -> Run:
    """Dropout of 0.1 on what attention and MLP add.

    Source: Srivastava et al. 2014; GPT-2. One pass over the text: Liu et al. 2025, 2505.24788.
    Claim: worse; without a second pass over the text it raises the loss.
    Expected: worse, 0.01.
    """
    return replace(run, model=replace(run.model, block=Dropped()))
