from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from hectogpt import Attention, CausalAttention, Run


@dataclass(frozen=True)
class Sinks(Attention):
    """Each head has a learned score for attending to nothing."""

    def build(self, layer, config):
        return SinksAttention(layer, config)


class SinksAttention(CausalAttention):
    def __init__(self, layer, config):
        super().__init__(layer, config)
        self.sinks = nn.Parameter(torch.zeros(config.n_heads))

    def change(self, q, k, v, mask, view):
        mask = self.whole_mask(view, q.dtype)
        sinks = self.sinks[:, None, None].to(q.dtype).expand(len(q), -1, q.shape[2], 1)
        mask = torch.cat((sinks, mask.expand(len(q), self.n_heads, -1, -1)), dim=-1)
        return q, F.pad(k, (0, 0, 1, 0)), F.pad(v, (0, 0, 1, 0)), mask


def sinks(run: Run) -> Run:
    """A head may attend to nothing: the softmax has one more score, which is learned.

    Source: gpt-oss, 2508.10925; Xiao et al. 2023, 2309.17453.
    Claim: tie; it is for long texts and quantisation rather than for the loss.
    Expected: tie.
    """
    return replace(run, model=replace(run.model, attention=Sinks()))
