"""A transformer that was trained with hectoGPT, in one file for the library transformers.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

It is GPT-2, with parts that config.json names: they replace GPT-2's parts or are added to them.
Modules have the names of the tensors in model.safetensors.
"""
# Copyright (c) 2026 the hectoGPT authors. SPDX-License-Identifier: MIT

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# transformers calls the cache `cache` from version 5.20 on, `past_key_values` before.
CACHE = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"


# --- the model's memory of the tokens so far


class TextCache:
    """The model's memory, one column per token; `text` [batch, column] is False for padding."""

    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        self.rows: dict[Any, Tensor] = {}  # key of a part -> its memory, [batch, time, ...]
        self.ids: Tensor | None = None
        self.text: Tensor | None = None

    def begin(self, ids: Tensor, text: Tensor | None, document_start: int | None) -> Tensor:
        """Append the tokens [batch, time] of a call and return their positions.

        Args:
            ids: the tokens.
            text: False for padding, True for tokens, in all columns so far; None: no padding.
            document_start: attention looks back no further than the last token with this id.

        Sets `visible` [batch, time, column], the causal mask, and `attended`, the part of it that
        attention sees. Padding has position -1 and no real token sees it. Padding tokens see
        padding, because a row of the softmax must not be empty.
        """
        new = torch.ones_like(ids, dtype=torch.bool) if text is None else text[:, -ids.shape[1] :]
        self.ids = ids if self.ids is None else torch.cat((self.ids, ids), dim=1)
        self.text = new if self.text is None else torch.cat((self.text, new), dim=1)
        columns = torch.where(self.text, self.text.long().cumsum(dim=1) - 1, -1)
        positions = columns[:, -ids.shape[1] :]
        q = positions[..., None]
        k = columns[:, None]
        self.visible = self.attended = ((k <= q) & (k >= 0)) | (k == q)
        if document_start is not None:
            columns = torch.arange(self.ids.shape[1], device=ids.device)
            first = (
                torch.where(self.ids == document_start, columns, 0)
                .cummax(dim=1)
                .values[:, -ids.shape[1] :]
            )
            self.attended = self.visible & (columns >= first[..., None])
        return positions.clamp(min=0)

    def append(self, key: Any, x: Tensor, dim: int = 1) -> Tensor:
        """Store x under this key after the rows of earlier calls, and return all rows.

        There is one row for each column so far.
        """
        self.rows[key] = torch.cat((self.rows[key], x), dim=dim) if key in self.rows else x
        return self.rows[key]

    def shift(self, key: Any, x: Tensor, n: int) -> Tensor:
        """Return x [batch, time, ...] delayed by `n` tokens, preceded by rows of earlier calls.

        Padding counts as zeros.
        """
        assert self.text is not None
        text = self.text[:, -x.shape[1] :]
        x = x * text.reshape(*text.shape, *(1,) * (x.dim() - 2)).to(x.dtype)
        joined = torch.cat(
            (self.rows.get(key, x.new_zeros(x.shape[0], n, *x.shape[2:])), x), dim=1
        )
        self.rows[key] = joined[:, -n:]
        return joined[:, : x.shape[1]]

    # --- the methods that `generate` of transformers calls ---

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of columns so far."""
        return 0 if self.ids is None else self.ids.shape[1]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select texts by index, for beam search; a text may be selected more than once."""
        self.rows = {key: rows[beam_idx.to(rows.device)] for key, rows in self.rows.items()}
        if self.ids is not None and self.text is not None:
            self.ids = self.ids[beam_idx]
            self.text = self.text[beam_idx]


# --- parts


def sinusoidal(positions: Tensor, d_model: int, base: float) -> Tensor:
    """Sines on even and cosines on odd dimensions, with frequencies base^(-2i/d).

    Source: 1706.03762, section 3.5.
    """
    frequency = base ** (-torch.arange(0, d_model, 2, device=positions.device).double() / d_model)
    angle = positions[..., None].double() * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2).float()


def rotate(
    q: Tensor, k: Tensor, positions: Tensor, pairs: int, base: float
) -> tuple[Tensor, Tensor]:
    """Rotate pairs of dimensions of queries and keys by an angle proportional to the position.

    Source: 2104.09864.
    """
    frequency = (
        base ** (-torch.arange(pairs, device=positions.device).double() / max(pairs, 1))
    ).float()
    angle = positions[:, None, :, None].double() * frequency
    cos = angle.cos().to(q.dtype)
    sin = angle.sin().to(q.dtype)
    sizes = (pairs, pairs, q.shape[-1] - 2 * pairs)
    a, b, rest_q = q.split(sizes, dim=-1)
    c, d, rest_k = k.split(sizes, dim=-1)
    q = torch.cat((a * cos - b * sin, a * sin + b * cos, rest_q), dim=-1)
    return q, torch.cat((c * cos - d * sin, c * sin + d * cos, rest_k), dim=-1)


def normalise(q: Tensor, k: Tensor, positions: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Divide each query and key by its root mean square (2010.04245)."""
    return F.rms_norm(q, q.shape[-1:], eps=eps), F.rms_norm(k, k.shape[-1:], eps=eps)


class ReLU2(nn.Module):
    """The squared rectifier, max(x, 0)^2 (2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class EmbeddingNorm(nn.Module):
    """The model's norm, applied to the embeddings."""

    def __init__(self, d_model: int, vocab_size: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, ids: Tensor, cache: TextCache) -> Tensor:
        return self.norm(x)


class Smear(nn.Module):
    """Add the embeddings of earlier tokens, each with a learned factor per dimension."""

    def __init__(
        self, d_model: int, vocab_size: int, norm: nn.Module, shares: list[float]
    ) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.zeros(len(shares), d_model))

    def forward(self, x: Tensor, ids: Tensor, cache: TextCache) -> Tensor:
        earlier = [cache.shift((self, back), x, back) for back in range(1, len(self.shares) + 1)]
        return x + sum(share * row for share, row in zip(self.shares, earlier, strict=True))


class TokenTable(nn.Module):
    """Add a learned vector per token."""

    def __init__(self, d_model: int, vocab_size: int, norm: nn.Module) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, d_model)

    def forward(self, x: Tensor, ids: Tensor, cache: TextCache) -> Tensor:
        return x + self.table(ids)


class Spelling(nn.Module):
    """Add learned vectors for features of a token's spelling.

    `rows_of_token`, saved with the weights, holds the table rows of each token's features.
    """

    rows_of_token: Tensor

    def __init__(
        self, d_model: int, vocab_size: int, norm: nn.Module, rows: int, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("rows_of_token", torch.zeros(vocab_size, 4, dtype=torch.long))
        self.table = nn.Embedding(rows, d_model)

    def forward(self, x: Tensor, ids: Tensor, cache: TextCache) -> Tensor:
        return x + self.scale * self.table(self.rows_of_token[ids]).sum(dim=2)


class NgramHash(nn.Module):
    """Add a learned vector per n-gram: the row of a table selected by a hash of `order` tokens.

    With `common`, an n-gram has a vector only if the geometric mean of its ids, counted from 1, is
    at most `common`.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        norm: nn.Module,
        order: int,
        rows: int,
        common: int | None = None,
    ) -> None:
        super().__init__()
        self.order = order
        self.common = common
        self.table = nn.Embedding(rows, d_model)

    def forward(self, x: Tensor, ids: Tensor, cache: TextCache) -> Tensor:
        mixed = ids + 1
        ranks = mixed.double()
        for back in range(1, self.order):
            previous = cache.shift((self, back), ids + 1, back)  # 0 if there is no earlier token
            mixed = (mixed * 0x9E3779B1 + previous * (0x85EBCA77 + 2 * back)) & 0x7FFFFFFFFFFF
            ranks = ranks * previous.clamp(min=1)
        vectors = self.table((mixed ^ (mixed >> 17)) % len(self.table.weight))
        if self.common is not None:
            vectors = vectors * (ranks <= float(self.common) ** self.order)[..., None]
        return x + vectors


class Induction(nn.Module):
    """Add the vector of the token after the last earlier occurrence of the latest tokens.

    For each n from 1 to `orders`, find the last earlier occurrence of the latest n tokens. Add the
    vector of the token after it, times a learned factor per dimension, and a learned vector for
    the distance to it.
    """

    def __init__(
        self, d_model: int, vocab_size: int, norm: nn.Module, orders: int, share: float
    ) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.zeros(orders, d_model))
        self.distances = nn.ModuleList(nn.Embedding(12, d_model) for _ in range(orders))

    def forward(self, x: Tensor, ids: Tensor, cache: TextCache) -> Tensor:
        vectors = cache.append((self, "vectors"), x)
        assert cache.ids is not None
        assert cache.text is not None
        tokens = torch.where(cache.text, cache.ids, -1)
        columns = torch.arange(tokens.shape[1], device=ids.device)
        own = columns[-ids.shape[1] :]
        match = columns < own[:, None]
        for n, (share, distances) in enumerate(zip(self.shares, self.distances, strict=True)):
            before = F.pad(tokens, (n, 0), value=-1)[:, : tokens.shape[1]]
            match = match & (before[:, own, None] == before[:, None])
            last = torch.where(match, columns, -1).amax(dim=2)
            found = last >= 0
            places = (last + 1)[..., None].expand(-1, -1, x.shape[-1])
            x = x + share * vectors.gather(1, places) * found[..., None]
            back = (own - last).log2().long().clamp_max(10)
            x = x + distances(torch.where(found, back, 11))
        return x


class PointerHead(nn.Module):
    """Mix the softmax with a distribution that copies earlier tokens.

    p = (1 - w) softmax + w copy (1612.04426).
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        query_scale: float,
        gate: float,
        score_biases: bool = False,
    ) -> None:
        super().__init__()
        self.query_scale = nn.Parameter(torch.ones(d_model))
        self.gate = nn.Parameter(torch.zeros(d_model))
        self.gate_bias = nn.Parameter(torch.zeros(1))
        self.distance_bias = nn.Parameter(torch.zeros(10)) if score_biases else None
        self.token_bias = nn.Embedding(vocab_size, 1) if score_biases else None

    def mix(self, logits: Tensor, hidden: Tensor, ids: Tensor, cache: TextCache) -> Tensor:
        """Log-probabilities of the mixture at the last `rows` positions.

        `logits` [batch, rows, vocab] are the head's, before the softmax. The key of the token at
        position s is the hidden state at s - 1.
        """
        keys = cache.append((self, "keys"), cache.shift(self, hidden, 1))
        tokens = cache.append((self, "tokens"), ids)
        scores = (hidden * self.query_scale) @ keys.transpose(1, 2) * hidden.shape[-1] ** -0.5
        if self.token_bias is not None and self.distance_bias is not None:
            columns = torch.arange(scores.shape[2], device=ids.device)
            back = (columns[-ids.shape[1] :, None] - columns).clamp_min(0)
            scores = (
                scores
                + self.distance_bias[(back + 1).log2().long().clamp_max(9)]
                + self.token_bias(tokens).mT
            )
        weights = scores.masked_fill(~cache.visible, float("-inf")).softmax(dim=-1)
        rows = logits.shape[1]
        places = tokens[:, None].expand(-1, rows, -1)
        weights = weights[:, -rows:].to(logits.dtype)
        copied = torch.zeros_like(logits).scatter_add_(2, places, weights)
        w = torch.sigmoid(hidden[:, -rows:] @ self.gate + self.gate_bias)[..., None]
        tiny = torch.finfo(logits.dtype).tiny  # keeps the gradient of log(0) finite
        return torch.logaddexp(
            logits.log_softmax(dim=-1) + torch.log1p(-w), (w * copied).clamp_min(tiny).log()
        )


# "type" in config.json -> a function from sizes and settings to the module.
PARTS: dict[str, Callable[..., Any]] = {
    "LayerNorm": nn.LayerNorm,
    "RMSNorm": lambda size, eps, gain: nn.RMSNorm(size, eps=eps, elementwise_affine=gain),
    "GELU": lambda: nn.GELU(approximate="tanh"),
    "NoPositions": lambda context_length, d_model: None,
    "LearnedPositions": nn.Embedding,
    "SinusoidalPositions": lambda context_length, d_model, base: partial(
        sinusoidal, d_model=d_model, base=base
    ),
    "Rotary": lambda n_heads, d_head, base, fraction: partial(
        rotate, pairs=round(d_head // 2 * fraction), base=base
    ),
    "QKNorm": lambda n_heads, d_head, eps: partial(normalise, eps=eps),
    **{
        part.__name__: part
        for part in (
            ReLU2,
            EmbeddingNorm,
            Smear,
            TokenTable,
            Spelling,
            NgramHash,
            Induction,
            PointerHead,
        )
    },
}


def build(part: dict[str, Any], *sizes: Any) -> Any:
    """Build a part from its settings in config.json: "type", a key of PARTS, and arguments."""
    return PARTS[part["type"]](
        *sizes, **{name: value for name, value in part.items() if name != "type"}
    )


# --- the model


class Attention(nn.Module):
    """Causal attention of several heads over the current and earlier tokens."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        d = settings["d_model"]
        self.n_heads = settings["n_heads"]
        self.W_q, self.W_k, self.W_v, self.W_o = (
            nn.Linear(d, d, bias=settings["biases"]) for _ in range(4)
        )
        d_head = d // self.n_heads
        self.scale = settings["attention_scale"] or d_head**-0.5
        self.qk_parts = [build(part, self.n_heads, d_head) for part in settings["attention_parts"]]
        self.ve_scale = nn.Parameter(torch.ones(1)) if settings["value_embeddings"] else None

    def forward(
        self, x: Tensor, extra: Tensor | None, positions: Tensor, cache: TextCache
    ) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for linear in (self.W_q, self.W_k, self.W_v)
        )
        if extra is not None:
            v = v + self.ve_scale * extra.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        for part in self.qk_parts:
            q, k = part(q, k, positions)
        k = cache.append((self, "k"), k, dim=2)
        v = cache.append((self, "v"), v, dim=2)
        attended = F.scaled_dot_product_attention(
            q, k, v, cache.attended[:, None], scale=self.scale
        )
        return self.W_o(attended.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """One layer: attention, then an MLP d -> 4d -> d.

    As in the assignment, post_layer_norm is the norm before the MLP.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        norm = settings["norm"]
        d = settings["d_model"]
        bias = settings["biases"]
        self.pre_layer_norm = build(norm, d)
        self.attention = Attention(settings)
        self.post_layer_norm = build(norm, d)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(d, 4 * d, bias=bias),
                activation=build(settings["activation"]),
                fc2=nn.Linear(4 * d, d, bias=bias),
            )
        )

    def forward(
        self, x: Tensor, extra: Tensor | None, positions: Tensor, cache: TextCache
    ) -> Tensor:
        x = x + self.attention(self.pre_layer_norm(x), extra, positions, cache)
        return x + self.mlp(self.post_layer_norm(x))


class Transformer(nn.Module):
    """Map token ids to logits.

    Args:
        settings: the model's settings, from config.json.
        head_rows: rows of the vocabulary head; None gives one for each token.
    """

    def __init__(self, settings: dict[str, Any], head_rows: int | None) -> None:
        super().__init__()
        d = settings["d_model"]
        d_input = min(settings.get("d_input") or d, d)
        vocab = settings["vocab_size"]
        norm = settings["norm"]
        head = settings["lm_head"]
        self.context_length: int = settings["context_length"]
        self.document_start: int | None = settings.get("document_start")
        self.soft_cap = head["soft_cap"]
        self.map_scale = head["embedding_map"]
        self.embeddings = nn.Embedding(vocab, d_input)
        self.position_embeddings = build(settings["positions"], self.context_length, d_input)
        self.inputs = nn.ModuleList(
            build(part, d_input, vocab, build(norm, d_input)) for part in settings["inputs"]
        )
        self.value_embeddings = nn.ModuleList(
            build(part, d_input, vocab, build(norm, d_input))
            for part in settings["value_embeddings"]
        )
        self.backbone = nn.ModuleList(Block(settings) for _ in range(settings["n_layers"]))
        self.final_layer_norm = build(norm, d)
        self.lm_head = nn.Linear(d, head_rows or vocab, bias=head["bias"])
        if self.map_scale:
            self.lm_head.embedding_map = nn.Linear(d_input, d, bias=False)
        if head_rows:  # tokens that were never read in training share the last row
            rows = torch.zeros(vocab, dtype=torch.long)
            self.lm_head.register_buffer("row_of_token", rows)
        self.pointer = build(settings["pointer"], d, vocab) if settings["pointer"] else None

    def forward(self, ids: Tensor, text: Tensor | None, cache: TextCache, rows: int = 0) -> Tensor:
        """Logits [batch, rows, vocab] after the last `rows` of the tokens (0: after all).

        Args:
            ids: tokens [batch, time], which follow those in the cache.
            text: as in `TextCache.begin`.
            cache: the memory of earlier calls.
            rows: how many positions, counted from the end.

        If a text is longer than the context, its last tokens are processed again from scratch.
        """
        positions = cache.begin(ids, text, self.document_start)
        limit = self.context_length
        long = (positions >= limit).any(dim=1)
        logits = self.continue_texts(ids, positions.clamp(max=limit - 1), cache, rows)
        if cache.ids is not None and bool(long.any()):
            if ids.shape[1] > 1:
                raise ValueError(
                    f"a text has {int(positions.max()) + 1} tokens; the context has {limit}"
                )
            logits[long] = self(cache.ids[long][:, -limit:], None, TextCache(), 1)
        return logits

    def continue_texts(
        self, ids: Tensor, positions: Tensor, cache: TextCache, rows: int
    ) -> Tensor:
        """Logits for tokens at these positions."""
        x = self.embeddings(ids)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(positions).to(x.dtype)
        for part in self.inputs:
            x = part(x, ids, cache)
        extra = torch.zeros_like(x) if len(self.value_embeddings) else None
        for part in self.value_embeddings:
            extra = part(extra, ids, cache)
        wider = (0, self.final_layer_norm.normalized_shape[0] - x.shape[-1])
        x = F.pad(x, wider)
        extra = extra if extra is None else F.pad(extra, wider)
        for block in self.backbone:
            x = block(x, extra, positions, cache)
        hidden = self.final_layer_norm(x)
        logits = self.logits(hidden[:, -rows:])
        return logits if self.pointer is None else self.pointer.mix(logits, hidden, ids, cache)

    def token_vectors(self) -> Tensor:
        """Each token's embedding plus its spelling's vectors, for the head's embedding map."""
        vectors = self.embeddings.weight
        for part in self.inputs:
            if isinstance(part, Spelling):
                rows = F.embedding_bag(part.rows_of_token, part.table.weight, mode="sum")
                vectors = vectors + part.scale * rows
        return vectors.detach()

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the vocabulary head: products with its rows, embedding map, soft cap and bias."""
        rows = getattr(self.lm_head, "row_of_token", None)
        bias = self.lm_head.bias
        products = F.linear(hidden, self.lm_head.weight)
        products = products if rows is None else products[..., rows]
        if self.map_scale:
            weight = self.lm_head.get_parameter("embedding_map.weight")
            mapped = F.linear(hidden @ weight, self.token_vectors())
            own = 1 if rows is None else rows < len(self.lm_head.weight) - 1
            products = products + self.map_scale * mapped * own
        if self.soft_cap is not None:
            products = self.soft_cap * torch.tanh(products / self.soft_cap)
        return products if bias is None else products + (bias if rows is None else bias[rows])


# --- transformers' side


class HectoGPTConfig(PretrainedConfig):
    """The contents of config.json.

    Args:
        model: the model's settings.
        head_rows: rows of the vocabulary head, if tokens that were never read in training share
            one.

    The file repeats the sizes under their usual names, for programs that look for them.
    """

    model_type = "hectogpt"
    keys_to_ignore_at_inference = [CACHE]  # noqa: RUF012  as transformers declares it

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        head_rows: int | None = None,
        use_cache: bool = True,
        **others: Any,
    ) -> None:
        self.model = model or {}
        self.head_rows = head_rows
        self.use_cache = use_cache
        super().__init__(**others)


class HectoGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """The model with transformers' interface.

    Positions follow from the attention mask, so there are no position_ids. Past the context length
    L, `generate` conditions each new token on exactly the last L tokens, which are then processed
    again.
    """

    config_class = HectoGPTConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _tied_weights_keys = {"model.lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: HectoGPTConfig) -> None:
        super().__init__(config)
        self.model = Transformer(config.model, config.head_rows)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        return self.model.embeddings

    def get_output_embeddings(self) -> nn.Module | None:
        """The vocabulary head, if it has a row for every token."""
        return self.model.lm_head if self.config.head_rows is None else None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: TextCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token at the last `logits_to_keep` positions (0: at all positions).

        With `labels`, which are shifted here, the loss is their mean cross entropy.
        `attention_mask` is 0 for padding and includes the columns of earlier calls. Older versions
        of transformers pass the cache as `past_key_values`.
        """
        unknown = ("position_ids", "inputs_embeds", "output_attentions", "output_hidden_states")
        if named := [
            name for name in unknown if others.get(name) is not None and others[name] is not False
        ]:
            raise ValueError(f"this model does not accept {' or '.join(named)}")
        text = None if attention_mask is None else attention_mask.bool()
        memory = cache or others.get("past_key_values") or TextCache()
        logits = self.model(input_ids, text, memory, logits_to_keep)
        loss = None
        if labels is not None:
            count = {name: others[name] for name in ("num_items_in_batch",) if name in others}
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], **count
            )
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and not torch.is_grad_enabled()
        remembered: dict[str, Any] = {CACHE: memory if use_cache else None}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **remembered)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any
    ) -> dict[str, Any]:
        """The arguments of `forward` for the next token; with a cache, only the newest token."""
        memory = others.get(CACHE)
        new = self.model.context_length if memory is None else 1
        mask = None if attention_mask is None else attention_mask[:, -new:]
        options = {"logits_to_keep": 1, "use_cache": bool(others.get("use_cache", True))}
        return {"input_ids": input_ids[:, -new:], "attention_mask": mask, CACHE: memory, **options}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """False: the model makes its own cache."""
        return False
