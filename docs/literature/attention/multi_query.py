from dataclasses import dataclass, replace

from torch import nn

from hectogpt import Attention, CausalAttention, Run


@dataclass(frozen=True)
class Grouped(Attention):
    """Several heads share keys and values, and the cache is smaller by as much."""

    kv_heads: int = 1

    def build(self, layer, config):
        return GroupedAttention(layer, config, self.kv_heads)


class GroupedAttention(CausalAttention):
    def __init__(self, layer, config, kv_heads):
        super().__init__(layer, config)
        self.kv_heads = kv_heads
        self.group = config.n_heads // kv_heads
        del self.W_qkv
        self.W_q = nn.Linear(config.d_model, config.d_model, bias=config.biases)
        self.W_kv = nn.Linear(config.d_model, 2 * kv_heads * config.d_attention, bias=config.biases)

    def qkv(self, x, view, ve=None):
        q = self.W_q(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        k, v = self.W_kv(x).unflatten(-1, (2 * self.kv_heads, -1)).transpose(1, 2).chunk(2, dim=1)
        if ve is not None:
            v = v + self.ve_scale * ve.unflatten(-1, (self.kv_heads, self.group, -1)).mean(-2).transpose(1, 2)
        for part, prepared in zip(self.qk_parts, view.prepared, strict=True):
            q, k = part(q, k, prepared)
        return q, k, v

    def change(self, q, k, v, mask, view):
        return q, *(t.repeat_interleave(self.group, dim=1) for t in (k, v)), mask


def multi_query(run: Run) -> Run:
    """All heads share one head of keys and values.

    Source: Shazeer 2019, 1911.02150.
    Claim: worse; the loss rises slightly (translation), for a much smaller cache.
    Expected: worse, 0.005.
    """
    return replace(run, model=replace(run.model, attention=Grouped()))
