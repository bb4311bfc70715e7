"""The pointer: a distribution, the same one with and without a cache, in the loss, in logits, and in gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.model.inputs import Smear
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import NoPositions, QKNorm, Rotary
from hectogpt.model.pointer import PointerHead

CONFIG = ModelConfig(
    16, 2, 2, 24, 50, positions=NoPositions(), inputs=(Smear(),), attention_parts=(QKNorm(), Rotary()),
    lm_head=LMHeadConfig(bias=True), pointer=PointerHead(gate=-0.5),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(CONFIG, Init(embedding=1.0, linear=0.3, head=0.5)).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in (model.pointer.gate, model.lm_head.bias):
            p.normal_(generator=generator)
    return model


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, 12, (3, 21), generator=torch.Generator().manual_seed(1))


def test_the_mixture_is_a_distribution(model: Transformer, ids: Tensor) -> None:
    torch.testing.assert_close(model(ids).exp().sum(-1), torch.ones(ids.shape, dtype=torch.float64))


def test_by_hand(model: Transformer, ids: Tensor) -> None:
    """Position t points at s with exp(q_t . k_s / sqrt(d)), k_s the output before s, zero before the first."""
    hidden = model.hidden(ids)[0]
    softmax = model.lm_head(hidden, model.embeddings.weight).softmax(-1)
    t = 9
    scores = [hidden[t] @ (hidden[s - 1] if s else 0 * hidden[0]) / 4 for s in range(t + 1)]
    weights = torch.stack(scores).softmax(0)
    copied = torch.zeros(50, dtype=torch.float64)
    for weight, token in zip(weights, ids[0], strict=False):
        copied[token] += weight
    w = torch.sigmoid(hidden[t] @ model.pointer.gate - 0.5)
    torch.testing.assert_close(model(ids)[0, t].exp(), (1 - w) * softmax[t] + w * copied)
