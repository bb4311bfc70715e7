from dataclasses import dataclass, replace

import torch.nn.functional as F

from hectogpt import Attention, CausalAttention, Run


@dataclass(frozen=True)
class Exclusive(Attention):
    """The direction of a token's own value is removed from what attention returns."""

    def build(self, layer, config):
        return ExclusiveAttention(layer, config)


class ExclusiveAttention(CausalAttention):
    def attend(self, q, k, v, mask, whole):
        attended = super().attend(q, k, v, mask, whole)
        own = F.normalize(v[:, :, -q.shape[2] :], dim=-1)
        return attended - (attended * own).sum(-1, keepdim=True) * own


def exclusive_attention(run: Run) -> Run:
    """Attention returns only what is orthogonal to the token's own value.

    Source: Zhai 2026, 2603.09078.
    Claim: better; at all sizes up to 2.7B, more on longer rows. 0.011 at step 250 of modded-nanogpt.
    Expected: tie.
    """
    return replace(run, model=replace(run.model, attention=Exclusive()))
