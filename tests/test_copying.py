"""The copy path: a distribution, the same one with and without a cache, in the loss, in logits, and in gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.model.cache import Continuation
from hectogpt.model.copying import Copying
from hectogpt.model.folder import load_model, save_model
from hectogpt.model.head import Mixture, head_loss
from hectogpt.model.inputs import Smear
from hectogpt.model.parts import Head, NoPositions, QKNorm, Rotary
from hectogpt.model.quantize import LightTransformer
from hectogpt.model.shared_head import shared_head_loss, used_vocabulary

CONFIG = ModelConfig(
    16, 2, 2, 24, 50, positions=NoPositions(), inputs=(Smear(),), heads=(QKNorm(), Rotary()),
    head=Head(bias=True), copying=Copying(gate=-0.5),
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    model = Transformer(CONFIG, Init(embedding=1.0, linear=0.3, head=0.5)).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in (model.copying.gate, model.lm_head.bias):
            p.normal_(generator=generator)
    return model


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 12, (3, 21), generator=torch.Generator().manual_seed(1))


def test_the_mixture_is_a_distribution(model, ids):
    torch.testing.assert_close(model(ids).exp().sum(-1), torch.ones(ids.shape, dtype=torch.float64))


def test_by_hand(model, ids):
    """Position t points at s with exp(q_t . k_s / sqrt(d)), k_s the output before s, zero before the first."""
    hidden = model.hidden(ids)[0]
    softmax = model.logits(hidden).softmax(-1)
    t = 9
    scores = [hidden[t] @ (hidden[s - 1] if s else 0 * hidden[0]) / 4 for s in range(t + 1)]
    weights = torch.stack(scores).softmax(0)
    copied = torch.zeros(50, dtype=torch.float64)
    for weight, token in zip(weights, ids[0], strict=False):
        copied[token] += weight
    w = torch.sigmoid(hidden[t] @ model.copying.gate - 0.5)
    torch.testing.assert_close(model(ids)[0, t].exp(), (1 - w) * softmax[t] + w * copied)


def test_the_loss_is_that_of_the_logits(model, ids):
    logits = model(ids[:, :-1])
    torch.testing.assert_close(
        model.loss(ids[:, :-1], ids[:, 1:]), F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    )
    torch.testing.assert_close(model.next_logits(ids[:, :-1]), logits[:, -1])


def test_one_token_at_a_time(model):
    """Prompts of unequal length, beyond the context length, several copies: as if computed afresh."""
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]
    text = Continuation(model, prompts, 20, copies=2)
    logits, texts = text.first(), [list(p) for p in prompts for _ in range(2)]
    for step in range(20):
        for row, tokens in zip(logits, texts, strict=True):
            torch.testing.assert_close(row, model.next_logits(torch.tensor([tokens[-24:]]))[0])
        new = [(row * 5 + step) % 50 for row in range(4)]
        for tokens, token in zip(texts, new, strict=True):
            tokens.append(token)
        logits = text.next(new)


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_of_a_mixture(shared):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    targets = torch.tensor([3, 1, 8, 1, 0, 5])
    _, rows = used_vocabulary(torch.tensor([0, 1, 3, 5]), 9)
    inputs = [draw(6, 4), draw(5 if shared else 9, 4), draw(5 if shared else 9), draw(6), draw(6)]
    inputs = [t.requires_grad_() for t in inputs]

    def fused(x, weight, bias, chance, share):
        if shared:
            return shared_head_loss(x, weight, targets, rows, bias=bias, mixture=Mixture(chance, share), chunk_rows=4)
        return head_loss(x, weight, targets, bias=bias, mixture=Mixture(chance, share), chunk_rows=4)

    def plain(x, weight, bias, chance, share):
        weight, bias = (weight[rows], bias[rows]) if shared else (weight, bias)
        p = (x @ weight.T + bias).softmax(-1).gather(1, targets[:, None])[:, 0]
        return -((1 - share) * p + share * chance).log().mean()

    torch.testing.assert_close(fused(*inputs), plain(*inputs))
    for ours, theirs in zip(
        torch.autograd.grad(fused(*inputs), inputs), torch.autograd.grad(plain(*inputs), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_what_the_softmax_excludes_can_still_be_copied():
    """A logit 400 below the others: no float32 softmax holds it, the loss and its gradients stay finite."""
    weight = torch.zeros(3, 1)
    weight[2] = -400.0
    x, chance, share = torch.ones(2, 1, requires_grad=True), torch.tensor([0.5, 0.0]), torch.tensor([0.2, 0.2])
    chance.requires_grad_()
    share.requires_grad_()
    loss = head_loss(x, weight.requires_grad_(), torch.tensor([2, 2]), mixture=Mixture(chance, share), reduction="sum")
    expected = -torch.tensor(0.1).log() + 400 + torch.tensor(2.0).log() - torch.tensor(0.8).log()
    torch.testing.assert_close(loss, expected)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, [x, weight, chance, share]))


def test_saved_and_light_models_copy_too(model, ids, tmp_path):
    head = replace(CONFIG.head, shared=True, used=12)
    single = Transformer(replace(CONFIG, head=head), Init(embedding=1.0, linear=0.3, head=0.5))
    single.word_rows.copy_(torch.arange(50).clamp(max=12))
    save_model(single, tmp_path)
    assert torch.equal(load_model(tmp_path)(ids), single(ids))
    torch.testing.assert_close(LightTransformer(single, "float32")(ids), single(ids), rtol=1e-4, atol=1e-4)


def test_label_smoothing_is_refused():
    half = torch.full((2,), 0.5)
    with pytest.raises(ValueError, match="smoothing"):
        head_loss(
            torch.ones(2, 1), torch.ones(3, 1), torch.tensor([0, 1]), label_smoothing=0.1, mixture=Mixture(half, half)
        )
