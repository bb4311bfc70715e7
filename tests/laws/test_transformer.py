"""The fast model against the textbook: same state dicts, same logits, same loss, same gradients; its own laws; what
pages show of it; attention and its parts."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import model_solution as textbook
import numpy as np
import pytest
import torch
from helpers import peaked
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kinds import GPT2, KINDS, build, random_ids
from torch import Tensor

from hectogpt.data import load_tokenizer
from hectogpt.generation import model_view
from hectogpt.model import SIZES, Init, ModelConfig, Transformer
from hectogpt.model.attention import CausalAttention
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import NoPositions, QKNorm, Rotary

SMALL = ModelConfig(d_model=24, n_heads=3, n_layers=2, context_length=16, vocab_size=61)


def twins(dtype: torch.dtype) -> tuple[textbook.Transformer, Transformer]:
    sizes = (SMALL.d_model, SMALL.n_heads, SMALL.n_layers, SMALL.context_length, SMALL.vocab_size)
    slow = peaked(textbook.Transformer(textbook.ModelConfig(*sizes)).to(dtype))
    fast = Transformer(SMALL).to(dtype)
    fast.load_state_dict(slow.state_dict(), strict=True)
    return slow, fast


def ids(batch: int = 3, time: int = 16) -> Tensor:
    return random_ids(batch, time, SMALL.vocab_size)


# --- the textbook -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equal_to_the_textbook(dtype: torch.dtype, tolerance: float) -> None:
    slow, fast = twins(dtype)
    x = ids()
    layer = fast.backbone[0].attention
    assert isinstance(layer, CausalAttention)
    attention = layer.weights(torch.randn(1, 16, 24, dtype=dtype), layer.view(torch.arange(16)[None]))
    assert attention.amax(-1).median() > 0.5  # peaked: a missing scale or swapped head would show
    logits, expected = fast(x), slow(x)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance * scale)
    loss, expected_loss = fast.get_loss_on_batch(x), slow.get_loss_on_batch(x)
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=tolerance)
    loss.backward()
    expected_loss.backward()
    gradients = {name: p.grad for name, p in fast.named_parameters()}
    for name, p in slow.named_parameters():
        if ".W_" in name and "W_o" not in name:
            fused = gradients[name.replace(name.split(".")[-2], "W_qkv")]
            ours = dict(zip(("W_q", "W_k", "W_v"), fused.chunk(3), strict=True))[name.split(".")[-2]]
        else:
            ours = gradients[name]
        torch.testing.assert_close(ours, p.grad, rtol=0, atol=tolerance * max(1.0, p.grad.abs().max().item()))


def test_state_dicts_go_both_ways_strictly() -> None:
    slow, fast = twins(torch.float32)
    again = textbook.Transformer(slow.config)
    again.load_state_dict(fast.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(slow.state_dict().values(), again.state_dict().values(), strict=True))
    assert len(fast.state_dict()) == 37
    assert set(fast.state_dict()) == set(slow.state_dict())
    with pytest.raises(RuntimeError, match="W_qkv"):
        fast.load_state_dict({k: v for k, v in slow.state_dict().items() if "W_k" not in k})


def test_same_seed_same_weights_as_the_textbook() -> None:
    slow, fast = twins(torch.float32)
    torch.manual_seed(5)
    slow._init_weights()
    fast.init_weights(Init(), seed=5)
    ours = fast.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in slow.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_generates_the_textbook_s_tokens(dtype: torch.dtype) -> None:
    slow, fast = twins(dtype)
    for time in (1, 5, 16):  # 12 new tokens pass the context of 16
        x = ids(time=time)
        assert torch.equal(fast.generate(x, 12), slow.generate(x, 12))
    assert torch.equal(fast.generate(ids(), 0), ids())


# --- laws of its own --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_logits(kind: str) -> None:
    """Mean cross entropy over all positions, by torch's own formula; and so is its gradient."""
    model = build(KINDS[kind])
    x = random_ids(3, model.config.context_length, model.config.vocab_size)
    targets = x.roll(1, 1) // 3 * 3  # in use where the vocabulary is compact
    logits = model(x)
    torch.testing.assert_close(model.next_logits(x), logits[:, -1], rtol=1e-12, atol=1e-12)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss = model.loss(x, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    parameters = dict(model.named_parameters())
    gradients = (torch.autograd.grad(value, list(parameters.values()), allow_unused=True) for value in (loss, expected))
    for name, ours, plain in zip(parameters, *gradients, strict=True):
        assert (ours is None) == (plain is None), name
        if ours is not None:
            torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11, msg=name)


@settings(max_examples=20)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 4), st.integers(0, 2**31))
def test_a_row_does_not_see_the_others(kind: str, batch: int, seed: int) -> None:
    model = build(KINDS[kind], seed % 7)
    time = 1 + seed % model.config.context_length
    x = random_ids(batch, time, model.config.vocab_size, seed)
    together = model(x)
    alone = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-11)


def test_a_compact_head_and_an_embedding_map_start_at_zero() -> None:
    mapped = Transformer(replace(GPT2, lm_head=LMHeadConfig(embedding_map=0.3)), Init(head=0.5))
    assert not mapped.lm_head.embedding_map.weight.any()
    compact = build(replace(GPT2, lm_head=LMHeadConfig(compact_vocab=True)))
    compact.init_weights(Init(head=0.5), seed=0)
    assert not compact.lm_head.weight.any()


def test_more_tokens_than_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens exceed the context length 16"):
        Transformer(SMALL)(ids(time=17))


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_sizes_have_the_published_parameter_counts() -> None:
    def count(config: ModelConfig) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in Transformer(config).parameters())

    assert count(SIZES["tiny"]) == 3_374_415
    assert count(replace(SIZES["gpt2"], lm_head=LMHeadConfig(tied=True))) == 124_439_808
    assert count(SIZES["gpt2"]) > SIZES["gpt2"].min_parameters() > 0.99 * count(SIZES["gpt2"])


# --- what pages show of a model -----------------------------------------------------------------------------------


def maps_of(attention: textbook.CausalAttention, x: Tensor) -> Tensor:
    """By hand, of the textbook's own queries and keys."""
    q, k = (w(x).unflatten(-1, (3, 8)).transpose(1, 2) for w in (attention.W_q, attention.W_k))
    scores = (q @ k.mT / math.sqrt(8)).masked_fill(torch.ones(16, 16, dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1)


@torch.no_grad()
def test_maps_losses_and_next_tokens_are_the_textbook_s() -> None:
    slow, fast = twins(torch.float32)
    taken: list[Tensor] = []
    for block in slow.backbone:
        block.attention.register_forward_pre_hook(lambda module, inputs: taken.append(maps_of(module, inputs[0])))
    x = ids(batch=1)
    logits, seen = slow(x)[0], model_view.trace(fast.eval(), x[0].numpy())
    np.testing.assert_allclose(seen.maps, torch.cat(taken).numpy(), atol=1e-5)
    assert seen.maps.max(axis=-1).mean() > 0.25
    expected = torch.nn.functional.cross_entropy(logits[:-1], x[0, 1:], reduction="none")
    np.testing.assert_allclose(seen.losses, expected, atol=1e-4)
    np.testing.assert_allclose(seen.next_probabilities, logits[-1].softmax(-1), atol=1e-5)


@torch.no_grad()
def test_the_effect_of_a_head_is_that_of_zeros_in_its_output_weights() -> None:
    model, tokens = twins(torch.float32)[1].eval(), ids(batch=1)[0].numpy()
    for row in model_view.effects(model, tokens):
        if row["mode"] == "mean":
            continue
        without = copy.deepcopy(model)
        for layer, head in row["heads"]:
            model_view.attention_modules(without)[layer].W_o.weight[:, head * 8 : (head + 1) * 8] = 0
        expected = (model_view.trace(without, tokens).losses - model_view.trace(model, tokens).losses).mean()
        assert row["delta"] == pytest.approx(expected, abs=1e-5)


@given(st.text(max_size=60))
def test_visible_tokens_hold_every_byte(text: str) -> None:
    tokenizer = load_tokenizer()
    names = model_view.name_tokens(tokenizer.encode(text).astype(np.int64), tokenizer)
    assert all(c.isprintable() and c != " " for name in names for c in name)


# --- the attention map ------------------------------------------------------------------------------------------------


def attention_of(config: ModelConfig, causal: bool = True) -> tuple[CausalAttention, Tensor, Tensor]:
    """One layer's attention, inputs [2, 9, d] and their positions."""
    layer = build(config).backbone[1].attention
    assert isinstance(layer, CausalAttention)
    layer.causal = causal
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return layer, x, torch.arange(9)[None]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "alibi", "alibi among others", "everything"])
def test_the_map_is_the_one_the_output_is_made_with(kind: str, causal: bool) -> None:
    """`weights` forms the map that the fused kernel never forms: its rows sum to 1, and with the values they give the
    output."""
    layer, x, positions = attention_of(KINDS[kind], causal)
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
