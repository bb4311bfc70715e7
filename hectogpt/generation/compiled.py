"""Parts of a block whose work is done by compiled code: torch.compile's for the step of one token, or our own."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hectogpt.generation import native
from hectogpt.model.attention import AttentionView, CausalAttention, LayerCache
from hectogpt.model.inputs import Cache
from hectogpt.model.transformer import DecoderBlock

# Up to this many rows the generated product reads each weight once and keeps one sum per row in registers.
FEW_ROWS = 2


class CompiledDecodeBlock(nn.Module):
    """A block whose calls for one token run as generated code; the layers of a model share it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        assert isinstance(block, DecoderBlock)
        self.block = block
        self.one_token = torch.compile(block)

    @property
    def attention(self) -> CausalAttention:
        """The block's attention, which makes the view of a forward pass."""
        return self.block.attention

    def forward(
        self,
        x: Float[Tensor, "batch time d"],
        view: AttentionView,
        cache: LayerCache | None = None,
        ve: Float[Tensor, "batch time d"] | None = None,
    ) -> Float[Tensor, "batch time d"]:
        one = x.shape[1] == 1 and x.shape[0] <= FEW_ROWS and cache is not None
        return (self.one_token if one else self.block)(x, view, cache, ve)


class OwnAttention(nn.Module):
    """Attention that reads a cache by our own code where that can: in float32, without a bias of the scores."""

    def __init__(self, attention: CausalAttention) -> None:
        super().__init__()
        self.attention = attention
        self.fits = attention.causal and not len(attention.score_biases)

    def view(self, positions: Int[Tensor, "rows time"], cache: Cache | None = None) -> AttentionView:
        """The attention's view of a forward pass."""
        return self.attention.view(positions, cache)

    def forward(
        self,
        x: Float[Tensor, "batch time d"],
        view: AttentionView,
        cache: LayerCache | None = None,
        ve: Float[Tensor, "batch time d"] | None = None,
    ) -> Float[Tensor, "batch time d"]:
        if cache is None or not self.fits or cache.keys.dtype != torch.float32:
            return self.attention(x, view, cache, ve)
        q, k, v = self.attention.qkv(x, view, ve)
        k, v = cache.update(k, v)
        starts = view.key_positions[:, 0].neg()
        return self.attention.W_o(native.attend(q, k, v, starts, int(cache.slots[0]), self.attention.scale))
