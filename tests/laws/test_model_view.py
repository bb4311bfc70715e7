"""What the pages show of a trained model: its own attention, exact ablation, every byte visible."""

from __future__ import annotations

import math

import model_solution as textbook
import numpy as np
import pytest
import torch
from helpers import peaked
from hypothesis import given
from hypothesis import strategies as st

from hectogpt.data import load_tokenizer
from hectogpt.generation import model_view
from hectogpt.model import ModelConfig, Transformer

SMALL = ModelConfig(24, 3, 2, 16, 61)


def ours() -> Transformer:
    return peaked(Transformer(SMALL).eval())


def ids(time: int = 16, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(61, size=time)


@pytest.fixture
def slow() -> textbook.Transformer:
    return peaked(textbook.Transformer(textbook.ModelConfig(24, 3, 2, 16, 61)).eval())


def test_maps_losses_and_next_tokens_are_the_textbook_s(slow: textbook.Transformer) -> None:
    fast = Transformer(SMALL).eval()
    fast.load_state_dict(slow.state_dict())
    taken: list[torch.Tensor] = []
    for block in slow.backbone:  # the textbook's own q and k, put together by hand as its docstring has it
        block.attention.register_forward_pre_hook(lambda module, inputs: taken.append(_maps(module, inputs[0])))
    x = ids()
    with torch.no_grad():
        logits = slow(torch.from_numpy(x)[None])[0]
    seen = model_view.trace(fast, x)
    assert seen.maps.shape == (2, 3, 16, 16)
    assert seen.maps.max(axis=-1).mean() > 0.25
    np.testing.assert_allclose(seen.maps, torch.cat(taken).numpy(), atol=1e-5)
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(x[1:]), reduction="none")
    np.testing.assert_allclose(seen.losses, expected, atol=1e-4)
    np.testing.assert_allclose(seen.next_probabilities, logits[-1].softmax(-1), atol=1e-5)
    assert seen.losses.mean() == pytest.approx(slow.get_loss_on_batch(torch.from_numpy(x)[None]).item(), abs=1e-4)


def _maps(attention: textbook.CausalAttention, x: torch.Tensor) -> torch.Tensor:
    q, k = (w(x).unflatten(-1, (3, 8)).transpose(1, 2) for w in (attention.W_q, attention.W_k))
    scores = (q @ k.mT / math.sqrt(8)).masked_fill(torch.ones(2 * x.shape[1:2], dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1)


def test_the_effect_of_a_head_is_that_of_zeros_in_its_output_weights() -> None:
    model, tokens = ours(), ids()
    for row in model_view.effects(model, tokens):
        if row["mode"] == "mean":
            continue
        without = ours()
        with torch.no_grad():
            for layer, head in row["heads"]:
                model_view.attention_modules(without)[layer].W_o.weight[:, head * 8 : (head + 1) * 8] = 0
        expected = (model_view.trace(without, tokens).losses - model_view.trace(model, tokens).losses).mean()
        assert row["delta"] == pytest.approx(expected, abs=1e-5)


@given(st.text(max_size=60))
def test_visible_tokens_hold_every_byte(text: str) -> None:
    tokenizer = load_tokenizer()
    names = model_view.name_tokens(tokenizer.encode(text).astype(np.int64), tokenizer)
    assert all(c.isprintable() and c != " " for name in names for c in name)
