"""The pointer: a distribution, the same one with and without a cache, in the loss, in logits, and in gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hectogpt.generation.decode import Decoder
from hectogpt.generation.quantize import quantize
from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.model.inputs import Smear
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import NoPositions, QKNorm, Rotary
from hectogpt.model.pointer import PointerHead
from hectogpt.model.weights import load_model, save_model

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


def test_the_loss_is_that_of_the_logits(model: Transformer, ids: Tensor) -> None:
    logits = model(ids[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(model.loss(ids[:, :-1], ids[:, 1:]), expected)
    torch.testing.assert_close(model.next_logits(ids[:, :-1]), logits[:, -1])


def test_gradients_are_those_of_the_logits(model: Transformer, ids: Tensor) -> None:
    """The loss has its own derivatives; the logits have autograd's. Every parameter gets the same from both."""
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad(model.loss(ids[:, :-1], ids[:, 1:]), parameters.values())
    plain = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    expected = torch.autograd.grad(plain, parameters.values())
    for name, a, b in zip(parameters, ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)
        assert b.any()


def test_one_token_at_a_time(model: Transformer) -> None:
    """Prompts of unequal length, beyond the context length, several copies: as if computed afresh."""
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]
    decoder = Decoder(model, prompts, 20, copies=2)
    logits, texts = decoder.prefill(), [list(p) for p in prompts for _ in range(2)]
    for step in range(20):
        for row, tokens in zip(logits, texts, strict=True):
            torch.testing.assert_close(row, model.next_logits(torch.tensor([tokens[-24:]]))[0])
        new = [(row * 5 + step) % 50 for row in range(4)]
        for tokens, token in zip(texts, new, strict=True):
            tokens.append(token)
        logits = decoder.decode(new)


def test_saved_and_quantized_models_copy_too(ids: Tensor, tmp_path) -> None:
    compact = Transformer(replace(CONFIG, lm_head=replace(CONFIG.lm_head, compact_vocab=True)), Init(embedding=1.0))
    compact.lm_head.compact(torch.arange(12))
    save_model(compact, tmp_path)
    assert torch.equal(load_model(tmp_path)(ids), compact(ids))
    torch.testing.assert_close(quantize(compact, "float32")(ids), compact(ids), rtol=1e-4, atol=1e-4)
