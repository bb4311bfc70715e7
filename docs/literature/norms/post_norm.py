from dataclasses import dataclass, replace

from hectogpt import Block, DecoderBlock, Run


@dataclass(frozen=True)
class PostNorm(Block):
    """The norm after the sum, as in the first transformer."""

    def build(self, layer, config):
        return PostNormBlock(layer, config)


class PostNormBlock(DecoderBlock):
    def forward(self, x, view, cache=None, ve=None):
        x = self.pre_layer_norm(x + self.attention(x, view, cache, ve))
        return self.post_layer_norm(x + self.mlp(x))


def post_norm(run: Run) -> Run:
    """Norms after the residual sums instead of before attention and MLP.

    Source: Vaswani et al. 2017, 1706.03762; against pre-norm Xiong et al. 2020, 2002.04745.
    Claim: worse; it needs a warm-up and smaller learning rates.
    Expected: worse, 0.01; there are only two layers.
    """
    return replace(run, model=replace(run.model, block=PostNorm()))
