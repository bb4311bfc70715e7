"""A second way to predict: point at a place of the text so far and repeat the token that stands there.

The distribution is mixed with the softmax's, p = (1 - w) softmax + w copy, so it needs no vocabulary and works from the
first step for words that the weights have never met. Knows sizes only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hectogpt.model.cache import KVCache
from hectogpt.model.head import Mixture
from hectogpt.values import Value


@dataclass(frozen=True)
class Copying(Value):
    """A neural cache (1612.04426) trained with the model, mixed in by a gate as pointer networks do (1609.07843).

    A token is pointed at in proportion to exp(q.k / sqrt(d)): q is the last layer's output here times a learned vector
    that starts at `sharpness`, k the output just before that token. Contexts that lead to similar predictions are taken
    to go on alike. The gate w = sigmoid(linear(output)) starts at sigmoid(`gate`).
    """

    sharpness: float = 1.0
    gate: float = -3.0

    def build(self, d_model: int) -> CopyPath:
        return CopyPath(d_model, self.sharpness, self.gate)


class CopyPath(nn.Module):
    """Where to point, and how much to trust it. Its rows are those of the last layer's normalised output."""

    def __init__(self, d_model: int, sharpness: float, gate: float) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.full((d_model,), sharpness))
        self.gate = nn.Parameter(torch.zeros(d_model))
        self.gate_bias = nn.Parameter(torch.tensor([gate]))

    def weight(self, hidden: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time"]:
        """The copy's weight in the mixture."""
        return torch.sigmoid(hidden @ self.gate + self.gate_bias)

    def pointers(
        self,
        hidden: Float[Tensor, "batch time d"],
        ids: Int[Tensor, "batch time"],
        cache: KVCache | None = None,
    ) -> tuple[Float[Tensor, "batch time slot"], Int[Tensor, "batch slot"]]:
        """Attention from every position to each token up to it, itself included, and those tokens' ids."""
        if cache is None:
            keys, tokens = F.pad(hidden, (0, 0, 1, 0))[:, :-1], ids
            seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        else:
            keys = cache.grown((self, "keys"), cache.shifted(self, hidden, 1))
            tokens, seen = cache.grown((self, "tokens"), ids), cache.seen()
        scores = (hidden * self.sharpness) @ keys.transpose(1, 2) * hidden.shape[-1] ** -0.5
        return scores.masked_fill(~seen, float("-inf")).softmax(dim=-1), tokens

    def mixture(
        self,
        hidden: Float[Tensor, "batch time d"],
        ids: Int[Tensor, "batch time"],
        targets: Int[Tensor, "batch time"],
    ) -> Mixture:
        """What the loss needs: the probability of each target, and the weight."""
        weights, tokens = self.pointers(hidden, ids)
        hit = tokens[:, None, :] == targets[:, :, None]
        return Mixture((weights * hit).sum(dim=-1), self.weight(hidden))

    def mix(
        self,
        logits: Float[Tensor, "batch rows vocab"],
        hidden: Float[Tensor, "batch time d"],
        ids: Int[Tensor, "batch time"],
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch rows vocab"]:
        """Log-probabilities of the mixture, from the softmax's logits at the last `rows` positions."""
        rows = logits.shape[1]
        weights, tokens = self.pointers(hidden, ids, cache)
        places = tokens[:, None].expand(-1, rows, -1)
        copied = torch.zeros_like(logits).scatter_add_(2, places, weights[:, -rows:].to(logits.dtype))
        w = self.weight(hidden[:, -rows:])[..., None]
        # The clamp keeps the gradient of log(0), for all the words that cannot be copied, from being infinite.
        copied = (w * copied).clamp_min(torch.finfo(logits.dtype).tiny).log()
        return torch.logaddexp(logits.log_softmax(dim=-1) + torch.log1p(-w), copied)
