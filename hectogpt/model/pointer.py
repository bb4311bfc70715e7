"""A second way to predict: copy an earlier token of the text, chosen by attention.

The copy is a distribution over tokens: a token gets the sum of the attention weights at its places
in the text. It is mixed with the softmax: p = (1 - w) softmax + w copy. The copy needs no trained
weights for a token, so from the first step it can predict tokens whose rows have never been
trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hectogpt.model.fused_ce import Mixture
from hectogpt.model.inputs import Cache
from hectogpt.model.parts import Ids, Vectors, visible_keys
from hectogpt.serialization import Value

DISTANCES = 10  # buckets of distance; the last one starts 511 tokens back


@dataclass(frozen=True)
class PointerHead(Value):
    """A neural cache (arXiv:1612.04426), trained with the model and mixed in by a gate
    (arXiv:1609.07843).

    It attends to earlier tokens. The query is the final hidden state times a learned vector, which
    starts at `query_scale`. The key of the token at position s is the hidden state at s - 1.
    Scores are divided by sqrt(d). The idea: similar hidden states tend to precede the same token.
    The gate w = sigmoid(linear(hidden)) starts at sigmoid(`gate`).

    With `score_biases`, two learned numbers that start at zero are added to a score: one for the
    token, and one for its distance in tokens: 0, 1 to 2, 3 to 6, 7 to 14 and so on (buckets that
    double, as in T5, 1910.10683).
    """

    query_scale: float = 1.0
    gate: float = -3.0
    score_biases: bool = False

    def build(self, d_model: int, vocab_size: int) -> PointerHeadLayer:
        return PointerHeadLayer(
            d_model, self.query_scale, self.gate, vocab_size if self.score_biases else 0
        )


class PointerHeadLayer(nn.Module):
    """Pointer attention and its mixing gate, applied to the output of the final norm.

    `biased_tokens` is the number of tokens with a bias of their own; 0 disables all biases.
    """

    def __init__(
        self, d_model: int, query_scale: float, gate: float, biased_tokens: int = 0
    ) -> None:
        super().__init__()
        self.query_scale = nn.Parameter(torch.full((d_model,), query_scale))
        self.gate = nn.Parameter(torch.zeros(d_model))
        self.gate_bias = nn.Parameter(torch.tensor([gate]))
        self.distance_bias = None
        self.token_bias = None
        if biased_tokens:
            self.distance_bias = nn.Parameter(torch.zeros(DISTANCES))
            self.token_bias = nn.Embedding(biased_tokens, 1)
            nn.init.zeros_(self.token_bias.weight)

    def weight(self, hidden: Vectors) -> Float[Tensor, "batch time"]:
        """The weight w of the copy in the mixture."""
        return torch.sigmoid(hidden @ self.gate + self.gate_bias)

    def attention(
        self, hidden: Vectors, ids: Ids, cache: Cache | None = None
    ) -> tuple[Float[Tensor, "batch time slot"], Int[Tensor, "batch slot"]]:
        """Compute the attention from each position to the tokens up to and including its own.

        Returns the weights and the tokens' ids.
        """
        if cache is None:
            keys = F.pad(hidden, (0, 0, 1, 0))[:, :-1]
            tokens = ids
        else:
            keys = cache.append((self, "keys"), cache.shift(self, hidden, 1))
            tokens = cache.append((self, "tokens"), ids)
        slots = torch.arange(keys.shape[1], device=ids.device)
        own = slots[-ids.shape[1] :]
        scores = (hidden * self.query_scale) @ keys.transpose(1, 2) * hidden.shape[-1] ** -0.5
        if self.distance_bias is not None and self.token_bias is not None:
            back = (own[:, None] - slots).clamp_min(0)
            bucket = (back + 1).log2().long().clamp_max(DISTANCES - 1)
            # The biases are looked up in a table, because the gradient of an indexed vector is
            # summed in no fixed order.
            scores = scores + F.embedding(bucket, self.distance_bias[:, None])[..., 0]
            scores = scores + self.token_bias(tokens)[..., 0][:, None]
        return scores.masked_fill(~visible_keys(own, slots), float("-inf")).softmax(dim=-1), tokens

    def mixture(self, hidden: Vectors, ids: Ids, targets: Ids) -> Mixture:
        """The values that the loss needs: the copy's probability of each target, and w."""
        weights, tokens = self.attention(hidden, ids)
        hit = tokens[:, None, :] == targets[:, :, None]
        return Mixture((weights * hit).sum(dim=-1), self.weight(hidden))

    def mix_log_probs(
        self,
        logits: Float[Tensor, "batch rows vocab"],
        hidden: Vectors,
        ids: Ids,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch rows vocab"]:
        """Log-probabilities of the mixture at the last `rows` positions.

        `logits` are the head's, before the softmax.
        """
        rows = logits.shape[1]
        weights, tokens = self.attention(hidden, ids, cache)
        places = tokens[:, None].expand(-1, rows, -1)
        weights = weights[:, -rows:].to(logits.dtype)
        w = self.weight(hidden[:, -rows:])[..., None]
        tiny = torch.finfo(logits.dtype).tiny  # keeps logarithms of zero, and gradients, finite
        mixed = (logits.log_softmax(dim=-1) + torch.log1p(-w)).clamp_min(math.log(tiny))
        # Only tokens of the text can be copied; all others keep (1 - w) softmax.
        copied = torch.zeros_like(logits).scatter_add_(2, places, weights).gather(2, places)
        own = mixed.gather(2, places)
        gain = torch.logaddexp(own, (w * copied).clamp_min(tiny).log()) - own
        # The places of a token that occurs several times share its gain.
        return mixed.scatter_add(2, places, gain * weights / copied.clamp_min(tiny))
