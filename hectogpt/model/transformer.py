"""GPT-2, written for speed: the same function as reference/model_solution.py, and nothing else by default.

Queries, keys and values come from one matrix, attention from scaled_dot_product_attention, the loss from the fused
head. State dicts carry the textbook's names in both directions. Departures from GPT-2 enter as the values of parts.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hectogpt.model.cache import Continuation, KVCache, LayerCache
from hectogpt.model.config import Init, ModelConfig
from hectogpt.model.head import head_loss
from hectogpt.model.shared_head import shared_head_loss


class MLP(nn.Module):
    """Two linear maps with an activation between: d -> 4d -> d, at every position alike."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, 4 * config.d_model, bias=config.biases)
        self.activation = config.activation.build()
        self.fc2 = nn.Linear(4 * config.d_model, config.d_model, bias=config.biases)

    def forward(self, x: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d"]:
        return self.fc2(self.activation(self.fc1(x)))


class CausalAttention(nn.Module):
    """Several heads of attention over the current and earlier positions.

    `W_qkv` stacks the textbook's W_q, W_k and W_v (rows in this order). State dicts hold the three apart.
    Set `causal = False` to let every position see every other.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.causal = config.n_heads, True
        self.scale = config.attention_scale or 1 / math.sqrt(config.d_attention)
        self.W_qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=config.biases)
        self.W_o = nn.Linear(config.d_model, config.d_model, bias=config.biases)
        self.parts = nn.ModuleList(part.build(config.n_heads, config.d_attention) for part in config.heads)
        self.extra_share = nn.Parameter(torch.ones(1)) if config.values else None
        self.register_state_dict_post_hook(_split_qkv)
        self.register_load_state_dict_pre_hook(_fuse_qkv)

    def qkv(
        self,
        x: Float[Tensor, "batch time d"],
        positions: Int[Tensor, "rows time"],
        extra: Float[Tensor, "batch time d"] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (ready for the dot product but for the scale), keys and values, [batch, head, time, d_head]."""
        qkv = self.W_qkv(x).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if extra is not None and self.extra_share is not None:
            v = v + self.extra_share * extra.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        for part in self.parts:
            q, k = part(q, k, positions)
        return q, k, v

    def forward(
        self,
        x: Float[Tensor, "batch time d"],
        positions: Int[Tensor, "rows time"],
        cache: LayerCache | None = None,
        extra: Float[Tensor, "batch time d"] | None = None,
    ) -> Float[Tensor, "batch time d"]:
        q, k, v = self.qkv(x, positions, extra)
        if cache is None:
            # The CPU kernel works in vectors of 16: heads of 11 dimensions take twice the time of heads of 16.
            pad = -q.shape[-1] % 16 if q.device.type == "cpu" else 0
            q, k, v = (F.pad(t, (0, pad)) for t in (q, k, v)) if pad else (q, k, v)
            c = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
            c = c[..., : c.shape[-1] - pad]
        else:
            k, v = cache.extend(k, v)
            whole = cache.mask is None
            c = F.scaled_dot_product_attention(q, k, v, cache.mask, is_causal=whole, scale=self.scale)
        return self.W_o(c.transpose(1, 2).flatten(-2))

    def weights(
        self, x: Float[Tensor, "batch time d"], positions: Int[Tensor, "rows time"]
    ) -> Float[Tensor, "batch head time time"]:
        """The attention map itself, which the fused kernel never forms: row t holds the weights of position t."""
        q, k, _ = self.qkv(x, positions)
        scores = q @ k.transpose(-2, -1) * self.scale
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        return scores.softmax(dim=-1)


_QKV = ("W_q", "W_k", "W_v")


def _split_qkv(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for kind in ("weight", "bias"):
        fused = state.pop(f"{prefix}W_qkv.{kind}", None)
        if fused is not None:
            state.update({f"{prefix}{n}.{kind}": part for n, part in zip(_QKV, fused.chunk(3), strict=True)})


def _fuse_qkv(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for kind in ("weight", "bias"):
        names = [f"{prefix}{n}.{kind}" for n in _QKV]
        if all(name in state for name in names):
            state[f"{prefix}W_qkv.{kind}"] = torch.cat([state.pop(name) for name in names])


class DecoderBlock(nn.Module):
    """Pre-norm residual block. `post_layer_norm` is the textbook's name for the norm before the MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_layer_norm = config.norm.build(config.d_model)
        self.attention = CausalAttention(config)
        self.post_layer_norm = config.norm.build(config.d_model)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Float[Tensor, "batch time d"],
        positions: Int[Tensor, "rows time"],
        cache: LayerCache | None = None,
        extra: Float[Tensor, "batch time d"] | None = None,
    ) -> Float[Tensor, "batch time d"]:
        x = x + self.attention(self.pre_layer_norm(x), positions, cache, extra)
        return x + self.mlp(self.post_layer_norm(x))


class Transformer(nn.Module):
    """Token ids to next-token logits.

    `loss_precision` is the number format of the matrix products inside the training loss's head: None is the
    parameters' own; torch.bfloat16 is faster on processors that multiply it natively (sums stay wider).
    """

    word_rows: Tensor | None

    def __init__(self, config: ModelConfig, init: Init | None = None) -> None:
        super().__init__()
        self.config = config
        self.loss_precision: torch.dtype | None = None
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embeddings = config.positions.build(config.context_length, config.d_model)
        sizes = (config.d_model, config.vocab_size, config.norm)
        self.inputs = nn.ModuleList(part.build(*sizes) for part in config.inputs)
        self.values = nn.ModuleList(part.build(*sizes) for part in config.values)
        self.backbone = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layers))
        self.final_layer_norm = config.norm.build(config.d_model)
        words = config.head.used + 1 if config.head.shared else config.vocab_size
        self.lm_head = nn.Linear(config.d_model, words, bias=config.head.bias)
        # For each word its row of a head in which unused words share the last one.
        self.register_buffer(
            "word_rows", torch.zeros(config.vocab_size, dtype=torch.int64) if config.head.shared else None
        )
        self.joint = nn.Linear(config.d_model, config.d_model, bias=False) if config.head.joint else None
        self.copying = config.copying.build(config.d_model) if config.copying else None
        if config.head.tied:
            self.lm_head.weight = self.embeddings.weight
        self.init_weights(init or Init())

    @torch.no_grad()
    def init_weights(self, init: Init, seed: int | None = None) -> None:
        """Draw the weights. With a seed the numbers equal the textbook's after torch.manual_seed(seed): the same
        generator, the same order (tables, then per layer k, q, v, o, fc1, fc2, then the head)."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                module.reset_parameters()
        for weight, std in self._initial_stds(init):
            # Drawn on the CPU, so that a seed means the same weights on every device.
            weight.copy_(torch.empty(weight.shape).normal_(0, std, generator=generator) if std else torch.tensor(0.0))

    def _initial_stds(self, init: Init) -> Iterator[tuple[Tensor, float]]:
        d = self.config.d_model
        residual = init.residual
        if residual is None:
            residual = init.linear / math.sqrt(2 * max(self.config.n_layers, 1))
        yield self.embeddings.weight, init.embedding
        if isinstance(self.position_embeddings, nn.Embedding):
            yield self.position_embeddings.weight, init.position
        for block in self.backbone:
            assert isinstance(block, DecoderBlock)
            q, k, v = block.attention.W_qkv.weight.split(d)
            yield from ((w, init.linear) for w in (k, q, v))
            yield block.attention.W_o.weight, residual
            yield block.mlp.fc1.weight, init.linear
            yield block.mlp.fc2.weight, residual
        if not self.config.head.tied:
            # One row can stand for all unused words only while they are equal, as they are and stay from zero.
            yield self.lm_head.weight, 0.0 if self.config.head.shared else init.head
        if self.joint is not None:
            yield self.joint.weight, 0.0

    def hidden(
        self,
        ids: Int[Tensor, "batch time"],
        positions: Int[Tensor, "rows time"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch time d"]:
        """The last layer's normalised output, before the vocabulary head. `positions` default to 0, 1, 2 ..."""
        if positions is None:
            if ids.shape[1] > self.config.context_length and self.position_embeddings is not None:
                raise ValueError(f"{ids.shape[1]} tokens exceed the context length {self.config.context_length}")
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.embeddings(ids)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(positions)
        for part in self.inputs:
            x = part(x, ids, cache)
        extra = torch.zeros_like(x) if self.values else None
        for part in self.values:
            extra = part(extra, ids, cache)
        for index, block in enumerate(self.backbone):
            x = block(x, positions, None if cache is None else cache.layer(index), extra)
        return self.final_layer_norm(x)

    def forward(
        self,
        ids: Int[Tensor, "batch time"],
        positions: Int[Tensor, "rows time"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Logits of the next token after each position."""
        hidden = self.hidden(ids, positions, cache)
        logits = self.logits(hidden)
        return logits if self.copying is None else self.copying.mix(logits, hidden, ids, cache)

    def next_logits(
        self,
        ids: Int[Tensor, "batch time"],
        positions: Int[Tensor, "rows time"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of the token after the last position, at the cost of one row of the head."""
        hidden = self.hidden(ids, positions, cache)
        logits = self.logits(hidden[:, -1])
        return logits if self.copying is None else self.copying.mix(logits[:, None], hidden, ids, cache)[:, 0]

    def head_weight(self) -> Float[Tensor, "words d"]:
        """The head's matrix with what the embeddings add to it; the row that unused words share gets nothing."""
        if self.joint is None:
            return self.lm_head.weight
        used, rows = self._words()
        added = self.joint(self.embeddings.weight.detach()[used]).to(self.lm_head.weight.dtype)
        return self.lm_head.weight.index_add(0, rows, added, alpha=self.config.head.joint)

    def _words(self) -> tuple[Int[Tensor, " used"], Int[Tensor, " used"]]:
        """The words that have a row of the head to themselves, and these rows."""
        if self.word_rows is None:
            every = torch.arange(self.config.vocab_size, device=self.lm_head.weight.device)
            return every, every
        used = (self.word_rows < self.lm_head.out_features - 1).nonzero().squeeze(1)
        return used, self.word_rows[used]

    def logits(self, hidden: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows vocab"]:
        """The vocabulary head. The soft cap bounds the product, the bias is added outside it, as in head_loss."""
        products = F.linear(hidden, self.lm_head.weight)
        if self.joint is not None:
            # h (E B^T)^T as (h B) E^T: for the few rows of decoding cheaper than head_weight
            used, rows = self._words()
            added = F.linear(hidden @ self.joint.weight, self.embeddings.weight.detach())[..., used]
            products = products.index_add(-1, rows, added, alpha=self.config.head.joint)
        return self.finish(products, self.lm_head.bias)

    def finish(self, products: Float[Tensor, "*rows words"], bias: Tensor | None) -> Float[Tensor, "*rows vocab"]:
        """From the head's products to logits over the whole vocabulary."""
        logits = self.config.head.cap(products)
        logits = logits if bias is None else logits + bias
        return logits if self.word_rows is None else logits[..., self.word_rows]

    def loss(
        self, ids: Int[Tensor, "batch time"], targets: Int[Tensor, "batch time"], reduction: str = "mean"
    ) -> Float[Tensor, ""]:
        """Cross entropy in nats of `targets` given the tokens up to each position, logits never formed as a whole."""
        options: dict[str, Any] = {
            "bias": self.lm_head.bias,
            "soft_cap": self.config.head.soft_cap,
            "reduction": reduction,
            "precision": self.loss_precision,
        }
        hidden = self.hidden(ids)
        if self.copying is not None:
            options["mixture"] = self.copying.mixture(hidden, ids, targets)
        if self.word_rows is not None:
            return shared_head_loss(hidden, self.head_weight(), targets, self.word_rows, **options)
        return head_loss(hidden, self.head_weight(), targets, **options)

    def get_loss_on_batch(self, input_ids: Int[Tensor, "batch time"]) -> Float[Tensor, ""]:
        """Mean cross entropy of tokens 1.. given tokens 0.., differentiable. [batch, time >= 2] -> scalar, nats."""
        return self.loss(input_ids[:, :-1], input_ids[:, 1:])

    @torch.no_grad()
    def generate(self, x: Int[Tensor, "batch time"], num_new_tokens: int) -> Int[Tensor, "batch longer"]:
        """Greedy continuation: the prompt followed by `num_new_tokens` tokens. Past the context length each token is
        conditioned on the last `context_length` ones."""
        if num_new_tokens == 0:
            return x
        text = Continuation(self, x.tolist(), num_new_tokens)
        new = [text.first().argmax(dim=-1)]
        while len(new) < num_new_tokens:
            new.append(text.next(new[-1].tolist()).argmax(dim=-1))
        return torch.cat((x, torch.stack(new, dim=1)), dim=1)
