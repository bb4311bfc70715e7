from dataclasses import dataclass, replace

from hectogpt import Block, DecoderBlock, Run


@dataclass(frozen=True)
class Parallel(Block):
    """Attention and MLP read the same input, each through its own norm."""

    def build(self, layer, config):
        return ParallelBlock(layer, config)


class ParallelBlock(DecoderBlock):
    def forward(self, x, view, cache=None, ve=None):
        return x + self.attention(self.pre_layer_norm(x), view, cache, ve) + self.mlp(self.post_layer_norm(x))


def parallel(run: Run) -> Run:
    """The MLP reads what attention reads instead of what attention has written.

    Source: GPT-J (2021); Chowdhery et al. 2022 (PaLM), 2204.02311.
    Claim: worse; slightly at 8B, not at 62B, and faster.
    Expected: worse, 0.01; of two layers in a row it makes two in all.
    """
    return replace(run, model=replace(run.model, block=Parallel()))
