"""The textbook's layers against Hugging Face's GPT-2: outputs, and gradients of the inputs and of every weight."""

from __future__ import annotations

import math

import pytest
import torch
from gpt2_twins import (
    CONFIG,
    assert_close,
    assert_layers_agree,
    hugging_face,
    in_our_names,
    pair,
    precisions,
    token_ids,
)
from model_solution import GELU, MLP, CausalAttention, DecoderBlock, ModelConfig
from torch import Tensor
from torch.nn import functional as F

CAUSAL = torch.full((CONFIG.context_length, CONFIG.context_length), -math.inf).triu(1)


def test_the_weights_tell_right_from_nearly_right() -> None:
    theirs = hugging_face()
    patterns = theirs(token_ids(4, CONFIG.context_length), output_attentions=True).attentions
    for pattern in patterns:
        late = pattern[:, :, 8:]  # a query with nine or more keys; even attention would give its best key 0.11 or less
        assert late.max(dim=-1).values.mean() > 0.6
    for name, value in in_our_names(theirs, lambda parameter: parameter.data).items():
        assert value.std() > 0.1, name


# --- MLP --------------------------------------------------------------------------------------------------------------


def test_gelu_agrees() -> None:
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64).reshape(7, 11, 13)
    assert_close(GELU()(x), F.gelu(x, approximate="tanh"), 1e-15)
    assert (GELU()(x) - F.gelu(x)).abs().max() > 1e-4  # the form by erf is another function
    assert GELU()(torch.tensor(0.0)).shape == ()


@precisions
def test_mlp_agrees(dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = pair(dtype)
    assert isinstance(ours.backbone[1].mlp, MLP)
    assert_layers_agree(ours.backbone[1].mlp, "backbone.1.mlp.", theirs, theirs.transformer.h[1].mlp, tolerance)


# --- CausalAttention --------------------------------------------------------------------------------------------------


@precisions
def test_attention_agrees(dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = pair(dtype)
    attention = theirs.transformer.h[1].attn

    def function(x: Tensor) -> Tensor:
        return attention(x, attention_mask=CAUSAL[: x.shape[1], : x.shape[1]].to(dtype))[0]

    assert isinstance(ours.backbone[1].attention, CausalAttention)
    assert_layers_agree(ours.backbone[1].attention, "backbone.1.attention.", theirs, function, tolerance)


def test_attention_never_sees_the_future_however_large_the_scores() -> None:
    attention = pair()[0].backbone[0].attention
    with torch.no_grad():
        attention.W_q.weight *= 1000  # scores of some 10^6: a mask of -10^4 would let the future win
        attention.W_k.weight *= 1000
    x = torch.randn(2, 12, CONFIG.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = attention(x)
    moved = x.clone()
    moved[:, 5:] += 1
    assert torch.isfinite(y).all()
    assert torch.equal(attention(moved)[:, :5], y[:, :5])
    assert not torch.allclose(attention(moved)[:, 5:], y[:, 5:])


def test_attention_mask_is_a_buffer_outside_the_state_dict() -> None:
    attention = CausalAttention(CONFIG)
    assert attention.causal_mask.shape == (1, 1, CONFIG.context_length, CONFIG.context_length)
    assert "causal_mask" in dict(attention.named_buffers())
    assert "causal_mask" not in attention.state_dict()
    assert attention.d_attention == CONFIG.d_model / CONFIG.n_heads
    with pytest.raises(ValueError, match="multiple"):
        CausalAttention(ModelConfig(d_model=10, n_heads=3, n_layers=1, context_length=4, vocab_size=5))


# --- DecoderBlock -----------------------------------------------------------------------------------------------------


@precisions
def test_block_agrees(dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = pair(dtype)
    block = theirs.transformer.h[1]

    def function(x: Tensor) -> Tensor:
        y = block(x, attention_mask=CAUSAL[: x.shape[1], : x.shape[1]].to(dtype))
        return y[0] if isinstance(y, tuple) else y

    assert isinstance(ours.backbone[1], DecoderBlock)
    assert_layers_agree(ours.backbone[1], "backbone.1.", theirs, function, tolerance)
