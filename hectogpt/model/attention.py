"""Causal attention with several heads.

Ideas can change it in three places: parts that change queries and keys, parts that add to the
scores, and classes derived from CausalAttention that override `change` or `attend`. Whatever
depends only on positions (the mask, rotary angles) is computed in an AttentionView, once per
forward pass, or once per layer if layers differ.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hectogpt.kernels import native
from hectogpt.model.config import ModelConfig
from hectogpt.model.inputs import Cache, LayerCache
from hectogpt.model.parts import (
    AttentionPart,
    Heads,
    Places,
    QKNormLayer,
    RotaryLayer,
    ScoreBias,
    Slots,
    Vectors,
    visible_keys,
)


class AttentionView(NamedTuple):
    """The facts about one forward pass that every layer's attention needs.

    Attributes:
        query_positions, key_positions: positions of the tokens.
        visible: the keys that each query sees. None means the plain causal mask, which is built
            into the fused kernel.
        prepared: for each QKPart, the result of its `prepare`.
        entered: the inputs of all layers so far. Filled only if the model has its own block or
            attention, or parts that differ between layers.
        first: the first slot of each query's document. None if attention crosses documents.
    """

    query_positions: Places
    key_positions: Int[Tensor, "rows slot"]
    visible: Bool[Tensor, "rows 1 time slot"] | None
    prepared: tuple[Any, ...]
    entered: list[Tensor] = []  # noqa: RUF012  each forward pass replaces it
    first: Places | None = None

    @property
    def causal(self) -> Bool[Tensor, "rows 1 time slot"]:
        """The mask as a tensor, even where `visible` is None."""
        if self.visible is not None:
            return self.visible
        return visible_keys(self.query_positions, self.key_positions)[:, None]


class CausalAttention(nn.Module):
    """Attention heads over the current and earlier positions.

    `W_qkv` stacks the textbook's W_q, W_k and W_v, in this order of rows; state dicts store the
    three separately. With `causal = False`, every position sees all others.

    Attributes:
        kv_heads: number of key and value heads in a cache.
        d_key: dimensions of a key; a value has d_head.
        kernels: use the C++ kernels in training where they fit.
    """

    kernels = False

    def __init__(self, layer: int, config: ModelConfig) -> None:
        super().__init__()
        self.layer = layer
        self.kv_heads = config.n_heads
        self.d_key = config.d_attention
        self.n_heads = config.n_heads
        self.causal = True
        # True: a C++ kernel reads the cache. Set only in the copies used for generation.
        self.reads_cache_natively = False
        self.scale = config.attention_scale or 1 / math.sqrt(config.d_attention)
        self.W_qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=config.biases)
        self.W_o = nn.Linear(config.d_model, config.d_model, bias=config.biases)
        biases = [part for part in config.attention_parts if isinstance(part, ScoreBias)]
        built = [(part, build_part(part, layer, config)) for part in config.attention_parts]
        self.qk_parts = nn.ModuleList(module for part, module in built if part not in biases)
        self.score_biases = nn.ModuleList(module for part, module in built if part in biases)
        self.ve_scale = nn.Parameter(torch.ones(1)) if config.value_embeddings else None
        self.register_state_dict_post_hook(_split_qkv)
        self.register_load_state_dict_pre_hook(_fuse_qkv)

    def view(self, positions: Places, cache: Cache | None = None) -> AttentionView:
        """The view of a forward pass over tokens at these positions.

        All layers of a model share it, unless layers differ.
        """
        prepared = tuple(
            getattr(part, "prepare", lambda p: p)(positions) for part in self.qk_parts
        )
        keys = (
            positions
            if cache is None
            else torch.arange(cache.length, device=positions.device)[None]
        )
        # The kernel uses either the given mask or its own causal one, not both.
        plain = positions.shape == keys.shape and not len(self.score_biases)
        return AttentionView(
            positions, keys, None if plain else visible_keys(positions, keys)[:, None], prepared
        )

    def qkv(
        self, x: Vectors, view: AttentionView, ve: Vectors | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [batch, head, time, d_head].

        All changes are applied except the scale of the scores.
        """
        qkv = self.W_qkv(x).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if ve is not None and self.ve_scale is not None:
            v = v + self.ve_scale * ve.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        if [type(part) for part in self.qk_parts] == [
            QKNormLayer,
            RotaryLayer,
        ] and native.wanted(self):
            eps = cast(QKNormLayer, self.qk_parts[0]).eps
            cosines, sines = view.prepared[1]
            if native.norm_rotate_fits(q.dtype, q.shape[-1], cosines):
                q, k = (native.norm_rotate(t, cosines, sines, eps) for t in (q, k))
                return q, k, v
        for part, prepared in zip(self.qk_parts, view.prepared, strict=True):
            q, k = part(q, k, prepared)
        return q, k, v

    def forward(
        self,
        x: Vectors,
        view: AttentionView,
        cache: LayerCache | None = None,
        ve: Vectors | None = None,
    ) -> Vectors:
        # There are three ways to attend. While decoding, C++ reads the cache. If attention stops
        # at the start of a document, C++ gets the first key of each query. Otherwise `attend` uses
        # torch with a mask or, for plain causal attention, C++.
        q, k, v = self.qkv(x, view, ve)
        first = view.first
        if cache is not None:
            k, v = cache.update(k, v)
            if (
                self.reads_cache_natively
                and self.is_plain
                and (first is None or x.shape[1] == 1)
                and k.dtype == torch.float32
            ):
                starts = cache.slots.new_zeros(len(x)) if first is None else first[:, 0]
                return self.W_o(native.attend(q, k, v, starts, int(cache.slots[0]), self.scale))
        if first is not None and cache is None and self.is_plain and self._native(q, k, v):
            attended = self._attend_by_kernel(q, k, v, first)
        else:
            q, k, v, mask = self.change(q, k, v, self.mask(view, q.dtype), view)
            attended = self.attend(q, k, v, mask, cache is None)
        return self.W_o(attended.transpose(1, 2).flatten(-2))

    def change(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, view: AttentionView
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Override this to change queries, keys, values and mask just before the softmax.

        Keys and values include those of the cache. Put any additional slots before them. A mask
        of None means the causal mask; `self.whole_mask(view)` returns it as numbers to add.
        """
        return q, k, v, mask

    def whole_mask(
        self, view: AttentionView, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "rows head time slot"]:
        """The numbers to add to the scores: 0 or a bias; minus infinity for an invisible key."""
        mask = self.mask(view, dtype)
        mask = view.causal if mask is None else mask
        if mask.dtype != torch.bool:
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
            ~mask, float("-inf")
        )

    def attend(self, q: Heads, k: Slots, v: Slots, mask: Tensor | None, whole: bool) -> Heads:
        """The attended values.

        Args:
            q, k, v: queries, keys and values.
            mask: as returned by `mask`.
            whole: True if queries and keys belong to the same tokens, from the first one on.
        """
        is_causal = mask is None and self.causal
        if whole and is_causal and self._native(q, k, v):
            return self._attend_by_kernel(q, k, v)
        # The CPU kernel works in vectors of 16, so heads of 11 dimensions would take twice the
        # time of heads of 16.
        pad = -q.shape[-1] % 16 if q.device.type == "cpu" and whole else 0
        q, k, v = (F.pad(t, (0, pad)) for t in (q, k, v)) if pad else (q, k, v)
        attended = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=is_causal, scale=self.scale
        )
        return attended[..., : attended.shape[-1] - pad]

    @property
    def is_plain(self) -> bool:
        """True if this is causal attention without any changes."""
        return type(self) is CausalAttention and self.causal and not len(self.score_biases)

    def _native(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """True if the C++ kernel is in use and supports these queries, keys and values."""
        return (
            q.device.type == "cpu"
            and q.shape == k.shape == v.shape
            and native.wanted(self)
            and native.attention_fits(_narrow(q), q.shape[-1])
        )

    def _attend_by_kernel(
        self, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None = None
    ) -> Tensor:
        q, k, v = (t.to(_narrow(q)) for t in (q, k, v))
        return native.causal_attention(q, k, v, self.scale, first)

    def mask(self, view: AttentionView, dtype: torch.dtype) -> Tensor | None:
        """The mask for the fused kernel: booleans, or numbers to add to the scores.

        None stands for the plain causal mask (with `causal = False`, for no mask).
        """
        visible = view.visible if self.causal else None
        if self.causal and view.first is not None:
            slots = torch.arange(view.key_positions.shape[-1], device=view.first.device)
            visible = view.causal & (slots >= view.first[:, None, :, None])
        if not len(self.score_biases):
            return visible
        queries = view.query_positions[:, None, :, None]
        keys = view.key_positions[:, None, None, :]
        bias = torch.stack(
            torch.broadcast_tensors(*(part(queries, keys) for part in self.score_biases))
        ).sum(0)
        bias = bias if bias.dim() == 4 else bias[None]
        return (bias if visible is None else bias.masked_fill(~visible, float("-inf"))).to(dtype)

    def weights(self, x: Vectors, view: AttentionView) -> Float[Tensor, "batch head time time"]:
        """The attention map, which the fused kernel never forms.

        Row t holds the weights with which position t attends to all positions.
        """
        q, k, v = self.qkv(x, view)
        q, k, v, mask = self.change(q, k, v, self.mask(view, q.dtype), view)
        scores = q @ k.transpose(-2, -1) * self.scale
        mask = view.causal if mask is None and self.causal else mask
        if mask is not None:
            scores = (
                scores.masked_fill(~mask, float("-inf"))
                if mask.dtype == torch.bool
                else scores + mask
            )
        return scores.softmax(dim=-1)[..., -x.shape[1] :]


def _narrow(q: Tensor) -> torch.dtype:
    """The dtype in which these queries are multiplied."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype


def wants_layer(part: AttentionPart) -> bool:
    """True if the part's `build` has a parameter for the number of the layer."""
    return "layer" in inspect.signature(part.build).parameters


def build_part(part: AttentionPart, layer: int, config: ModelConfig) -> nn.Module:
    """Build the module of an attention part for 0-based `layer`."""
    more = {"layer": layer} if wants_layer(part) else {}
    return part.build(config.n_heads, config.d_attention, **more)


_QKV = ("W_q", "W_k", "W_v")


def _split_qkv(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Replace `W_qkv` in a state dict by the textbook's three weights and biases."""
    for kind in ("weight", "bias"):
        fused = state.pop(f"{prefix}W_qkv.{kind}", None)
        if fused is not None:
            state.update(
                {f"{prefix}{n}.{kind}": part for n, part in zip(_QKV, fused.chunk(3), strict=True)}
            )


def _fuse_qkv(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Undo `_split_qkv` when a state dict is loaded."""
    for kind in ("weight", "bias") if hasattr(module, "W_qkv") else ():
        names = [f"{prefix}{n}.{kind}" for n in _QKV]
        if all(name in state for name in names):
            state[f"{prefix}W_qkv.{kind}"] = torch.cat([state.pop(name) for name in names])
