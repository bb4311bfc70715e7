"""Attention: the mask and what else depends on positions is made in one place; parts and biases do what they say."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_kinds import GPT2, KINDS, ALiBi, build, random_ids
from torch import Tensor

from hectogpt.model import ModelConfig
from hectogpt.model.attention import CausalAttention
from hectogpt.model.parts import NoPositions, QKNorm, Rotary

# --- the attention map ------------------------------------------------------------------------------------------------

ATTENTIONS = {
    "plain": GPT2,
    "rotary": replace(GPT2, attention_parts=(Rotary(100.0, 0.5), QKNorm()), attention_scale=0.7),
    "alibi": replace(GPT2, attention_parts=(ALiBi(),)),
    "all": replace(GPT2, n_heads=4, attention_parts=(QKNorm(), ALiBi(), Rotary(), ALiBi())),
}


def attention_of(config: ModelConfig, causal: bool = True) -> tuple[CausalAttention, Tensor, Tensor]:
    """One layer's attention, inputs [2, 9, d] and their positions."""
    layer = build(config).backbone[1].attention
    assert isinstance(layer, CausalAttention)
    layer.causal = causal
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return layer, x, torch.arange(9)[None]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_the_map_is_the_one_the_output_is_made_with(kind: str, causal: bool) -> None:
    """`weights` forms the map that the fused kernel never forms: its rows sum to 1, and with the values they give the
    output."""
    layer, x, positions = attention_of(ATTENTIONS[kind], causal)
    view = layer.view(positions)
    weights, (_, _, v) = layer.weights(x, view), layer.qkv(x, view)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1], dtype=torch.float64))
    assert bool((weights.triu(1) == 0).all()) == causal
    assert weights.amax(-1)[..., 4:].median() > 0.3  # uneven, so that a wrong scale would show
    torch.testing.assert_close(layer.W_o((weights @ v).transpose(1, 2).flatten(-2)), layer(x, view))


# --- parts of queries and keys ----------------------------------------------------------------------------------------


def rotated(part: Rotary, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    layer: Any = part.build(1, q.shape[-1])
    return layer(q, k, layer.prepare(positions))


def test_rotary_by_hand() -> None:
    """Pair i, dimensions i and n + i of 2n that rotate, turns by position * base^(-i / n); the rest stays. Frequencies
    are float32, angles float64."""
    q = torch.randn(1, 1, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = [0, 1, 17, 1023]
    for fraction, n in ((1.0, 4), (0.5, 2), (0.0, 0)):
        turned, _ = rotated(Rotary(100.0, fraction), q, q, torch.tensor([positions]))
        for before, after, position in zip(q[0, 0], turned[0, 0], positions, strict=True):
            for i in range(n):
                angle = position * torch.tensor(100.0 ** (-i / n)).item()
                z = complex(before[i], before[n + i]) * complex(math.cos(angle), math.sin(angle))
                assert complex(after[i], after[n + i]) == pytest.approx(z, abs=1e-12)
            assert torch.equal(after[2 * n :], before[2 * n :])


def test_qk_norm_leaves_only_directions() -> None:
    """Longer queries and keys do not sharpen attention."""
    layer, x, positions = attention_of(replace(GPT2, attention_parts=(QKNorm(eps=0.0),), biases=False))
    before = layer.weights(x, layer.view(positions))
    layer.W_qkv.weight.data[:32] *= 7  # rows of W_q and W_k
    torch.testing.assert_close(layer.weights(x, layer.view(positions)), before)


# --- documents --------------------------------------------------------------------------------------------------------


def test_a_document_is_read_as_if_it_stood_alone() -> None:
    """Where only attention looks back and positions are distances."""
    config = replace(GPT2, positions=NoPositions(), attention_parts=(Rotary(), QKNorm()), document_start=3)
    model, ids = build(config), random_ids(2, 10).clamp(min=4)
    ids[:, 4] = 3
    torch.testing.assert_close(model(ids)[:, 4:], model(ids[:, 4:]))
    torch.testing.assert_close(model(ids)[:, :4], model(ids[:, :4]))


# --- the pointer ------------------------------------------------------------------------------------------------------


def test_the_pointer_by_hand() -> None:
    """Position t points at s with exp(q_t . k_s / sqrt(d) + a(t - s) + b(token)), k_s the output before s, zero before
    the first, a a number for each doubling of distance; what it copies is mixed with the softmax, and sums to 1 with
    it."""
    model, ids = build(replace(KINDS["pointer"], context_length=24)), random_ids(3, 21) // 4
    by_distance, by_token = (model.get_parameter(f"pointer.{name}") for name in ("distance_bias", "token_bias.weight"))
    hidden = model.hidden(ids)[0]
    softmax = model.lm_head(hidden, model.embeddings.weight).softmax(-1)
    for t in (0, 9, 20):
        query = hidden[t] * model.pointer.query_scale
        scores = [query @ (hidden[s - 1] if s else 0 * hidden[0]) / 4 for s in range(t + 1)]
        for s in range(t + 1):
            scores[s] = scores[s] + by_distance[(t - s + 1).bit_length() - 1] + by_token[ids[0, s], 0]
        copied = torch.zeros(40, dtype=torch.float64)
        for weight, token in zip(torch.stack(scores).softmax(0), ids[0], strict=False):
            copied[token] += weight
        w = torch.sigmoid(hidden[t] @ model.pointer.gate + model.pointer.gate_bias)
        torch.testing.assert_close(model(ids)[0, t].exp(), (1 - w) * softmax[t] + w * copied)
        assert 0.05 < w < 0.95
