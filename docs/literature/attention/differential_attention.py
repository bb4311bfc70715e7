from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from hectogpt import Attention, CausalAttention, Run


@dataclass(frozen=True)
class Differential(Attention):
    """The difference of two softmaxes, each over half of a head's dimensions; `share` of the second at the start."""

    share: float = 0.2

    def build(self, layer, config):
        return DifferentialAttention(layer, config, self.share)


class DifferentialAttention(CausalAttention):
    def __init__(self, layer, config, share):
        super().__init__(layer, config)
        self.start = share
        self.share = nn.Parameter(torch.full((config.n_heads, 1, 1), share))

    def attend(self, q, k, v, mask, whole):
        # Even and odd dimensions: each half keeps half of the dimensions that rotate.
        first, second = (
            F.scaled_dot_product_attention(
                q[..., part::2], k[..., part::2], v, mask, is_causal=mask is None, scale=2 * self.scale
            )
            for part in (0, 1)
        )
        difference = first - self.share.to(v.dtype) * second
        return (1 - self.start) * F.rms_norm(difference, v.shape[-1:])


def differential_attention(run: Run) -> Run:
    """Each head subtracts a second attention map from its first, which cancels what both attend to.

    Source: Ye et al. 2024, 2410.05258.
    Claim: better; the loss of a transformer with two thirds of the parameters or tokens (3B).
    Expected: worse, 0.005.
    """
    return replace(run, model=replace(run.model, attention=Differential()))
