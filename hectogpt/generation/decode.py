"""Next-token logits of growing texts: one pass over the prompts (prefill), then one token per row and pass (decode)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hectogpt.generation.cache import KVCache
from hectogpt.model.transformer import Transformer

# Sizes of the cache's buffers, in steps: compiled code is kept per size.
CAPACITY_STEP = 256


class Decoder:
    """The continuation of several texts, one row each.

    Past the context length L each new token is conditioned on exactly the last L tokens of its row. Positions then move
    with every token, so such a row is computed anew from its last L tokens; rows still inside the context use the
    cache. `copies` continues every prompt that many times, as neighbouring rows.
    """

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], new_tokens: int, copies: int = 1) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise ValueError("every text needs at least one token to start from")
        config = model.config
        self.model, self.copies, self.limit = model, copies, config.context_length
        self.device = model.embeddings.weight.device
        cropped = [list(prompt[-self.limit :]) for prompt in prompts]
        width = max(map(len, cropped))
        starts = [width - len(text) for text in cropped]
        capacity = min(-(-(width + new_tokens) // CAPACITY_STEP) * CAPACITY_STEP, max(starts) + self.limit)
        sizes = (config.n_layers, config.n_heads, config.d_attention)
        dtype = model.embeddings.weight.dtype
        self.cache = KVCache(*sizes, torch.tensor(starts, device=self.device), capacity, self.limit, dtype)
        padded = [[0] * start + text for start, text in zip(starts, cropped, strict=True)]
        self.prompts = torch.tensor(padded, device=self.device)
        self.lengths = [len(text) for text in cropped for _ in range(copies)]
        self.newest = self.prompts.repeat_interleave(copies, 0)  # of each row its last tokens, up to L of them

    @torch.no_grad()
    def prefill(self) -> Float[Tensor, "rows vocab"]:
        """Logits after the prompts: one pass over all of them."""
        positions = self.cache.advance(self.prompts.shape[1])
        logits = self.model.next_logits(self.prompts, positions, self.cache)
        if self.copies > 1:
            self.cache.repeat(self.copies)
            logits = logits.repeat_interleave(self.copies, 0)
        return logits

    @torch.no_grad()
    def decode(self, tokens: Sequence[int] | Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Append one token to each row; return the logits after them. Ids in a tensor are not waited for."""
        tokens = torch.as_tensor(tokens, device=self.device)
        self.lengths = [length + 1 for length in self.lengths]
        self.newest = torch.cat((self.newest, tokens[:, None]), dim=1)[:, -self.limit :]
        long = [row for row, length in enumerate(self.lengths) if length > self.limit]
        logits = None
        if len(long) < len(self.lengths):
            logits = self.model.next_logits(tokens[:, None], self.cache.advance(1), self.cache)
        if long:
            anew = self.model.next_logits(self.newest[long])
            if logits is None:
                return anew
            logits[long] = anew
        assert logits is not None
        return logits
