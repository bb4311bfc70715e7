"""The vocabulary head: its options against plain torch code, and the compact vocabulary, in which unused tokens share
one row of the matrix."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from helpers import peaked
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kinds import build, random_ids
from torch import Tensor
from torch.nn.utils import get_total_norm

from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.model.fused_ce import Mixture
from hectogpt.model.inputs import NgramHash, TokenTable
from hectogpt.model.lm_head import LMHead, LMHeadConfig
from hectogpt.model.parts import NoPositions, RMSNorm, Rotary

D = 4


class Twins:
    """A head, compact or not, and one with a row for every token, which hold the same numbers; and inputs for both.

    The full one is plain torch code: matrix[v] = weight[v] + s (embeddings B^T)[v] for tokens v in use, weight[v] for
    others; logits = cap(hidden matrix^T) + bias. All unused tokens have the same weight and bias.
    """

    def __init__(self, vocab: int, used: Tensor, options: LMHeadConfig, rows: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.options, self.used = options, used
        self.head = LMHead(options, D, vocab).double()
        row = torch.full((vocab,), len(used))
        row[used] = torch.arange(len(used))
        if options.compact_vocab:
            self.head.compact(used)
            assert torch.equal(self.head.get_buffer("row_of_token"), row)
        peaked(self.head, seed, scale=1.5)
        self.unused = (row == len(used)).nonzero().squeeze(1)
        self.weight = self.head.weight.detach()[row].requires_grad_()
        self.bias = None if self.head.bias is None else self.head.bias.detach()[row].requires_grad_()
        mapped = self.head.embedding_map
        self.map = None if mapped is None else mapped.weight.detach().clone().requires_grad_()
        self.embeddings = torch.randn(vocab, D, generator=g, dtype=torch.float64).requires_grad_()
        self.hidden = torch.randn(rows, D, generator=g, dtype=torch.float64).requires_grad_()
        p, w = torch.rand(2, rows, generator=g, dtype=torch.float64) * 0.8 + 0.1
        self.mixture = Mixture(p.requires_grad_(), w.requires_grad_())

    def full_logits(self) -> Tensor:
        matrix = self.weight
        if self.map is not None:
            in_use = torch.zeros(len(matrix), 1, dtype=torch.float64)
            in_use[self.used] = self.options.embedding_map
            matrix = matrix + in_use * (self.embeddings.detach() @ self.map.T)
        z = self.hidden @ matrix.T
        z = z if self.options.soft_cap is None else self.options.soft_cap * torch.tanh(z / self.options.soft_cap)
        return z if self.bias is None else z + self.bias

    def full_loss(self, targets: Tensor, mixed: bool, reduction: str) -> Tensor:
        losses = F.cross_entropy(self.full_logits(), targets, reduction="none")
        if mixed:
            p, w = self.mixture
            losses = -((1 - w) * (-losses).exp() + w * p).log()
        return losses.mean() if reduction == "mean" else losses.sum()

    def compact_loss(self, targets: Tensor, mixed: bool, reduction: str = "mean", **options: Any) -> Tensor:
        options |= {"mixture": self.mixture if mixed else None, "reduction": reduction}
        return self.head.losses(self.hidden, targets, self.embeddings, **options)[0]


@settings(max_examples=50)
@given(
    vocab=st.integers(2, 40),
    n_used=st.integers(1, 40),
    compact=st.booleans(),
    rows=st.integers(1, 9),
    cap=st.sampled_from((None, 3.0)),
    bias=st.booleans(),
    embedding_map=st.sampled_from((0.0, 0.3)),
    mixed=st.booleans(),
    reduction=st.sampled_from(("mean", "sum")),
    chunk_rows=st.sampled_from((None, 4)),
    seed=st.integers(0, 99),
)
def test_a_head_is_the_full_matrix(
    vocab: int,
    n_used: int,
    compact: bool,
    rows: int,
    cap: float | None,
    bias: bool,
    embedding_map: float,
    mixed: bool,
    reduction: str,
    chunk_rows: int | None,
    seed: int,
) -> None:
    """The compact vocabulary and the embedding map change what is computed, not what comes out.

    1. The logits over the whole vocabulary are equal, and those of all unused tokens are the same number.
    2. The loss is equal, whether a target is in use or not.
    3. Hidden states, mixture, embedding map, and the rows of tokens in use get the full head's gradient. The embeddings
       get none.
    4. In training every target is in use. All unused rows of the full head then get the same gradient. The last row of
       the compact head gets the gradient of ONE of them, not their sum, so that an optimizer moves it as it would move
       each of them. (Of targets not in use it gets the mean.)
    5. The norm of all gradients is the full head's, in which that row counts once for each unused token.
    """
    g = torch.Generator().manual_seed(seed)
    used = torch.randperm(vocab, generator=g)[: n_used if compact else vocab].sort().values
    options = LMHeadConfig(bias=bias, soft_cap=cap, compact_vocab=compact, embedding_map=embedding_map)
    twins = Twins(vocab, used, options, rows, seed)
    head, unused = twins.head, twins.unused

    logits = head(twins.hidden, twins.embeddings)
    torch.testing.assert_close(logits, twins.full_logits(), rtol=1e-12, atol=1e-12)
    assert (logits[:, unused] == logits[:, unused[:1]]).all()

    for in_use in (False, True):
        targets = torch.randint(vocab, (rows,), generator=g)
        targets = used[targets % len(used)] if in_use else targets
        want = twins.full_loss(targets, mixed, reduction)
        got = twins.compact_loss(targets, mixed, reduction, chunk_rows=chunk_rows)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

        both = [twins.hidden, *(twins.mixture if mixed else ())]
        ours = [*both, *head.parameters()]
        full = [*both, *(p for p in (twins.weight, twins.bias, twins.map) if p is not None)]
        expected = torch.autograd.grad(want, full)
        head.zero_grad()
        gradients = torch.autograd.grad(got, ours, retain_graph=True)
        for p, gradient, of_full in zip(ours, gradients, expected, strict=True):
            if p is head.weight or p is head.bias:
                one = of_full[unused].mean(0, keepdim=True) if len(unused) else torch.zeros_like(of_full[:1])
                if in_use:
                    torch.testing.assert_close(of_full[unused], one.expand_as(of_full[unused]), rtol=1e-10, atol=1e-12)
                of_full = torch.cat((of_full[used], one)) if compact else of_full
            torch.testing.assert_close(gradient, of_full, rtol=1e-9, atol=1e-12)
        got.backward()
        assert twins.embeddings.grad is None
        if in_use:
            norm = head.full_gradient_norm(get_total_norm(gradients))
            torch.testing.assert_close(norm, get_total_norm(expected), rtol=1e-10, atol=1e-12)


# --- in a model -------------------------------------------------------------------------------------------------------

MODEL = ModelConfig(
    24, 3, 2, 16, 61, norm=RMSNorm(), positions=NoPositions(), value_embeddings=(TokenTable(), NgramHash(3, 89)),
    attention_parts=(Rotary(100.0, 0.5),), biases=False, lm_head=LMHeadConfig(bias=True, soft_cap=9.0),
)  # fmt: skip


def with_head(**options: Any) -> ModelConfig:
    return replace(MODEL, lm_head=replace(MODEL.lm_head, **options))


def test_a_compact_head_and_an_embedding_map_start_at_zero() -> None:
    assert not Transformer(with_head(embedding_map=0.3), Init(head=0.5)).lm_head.embedding_map.weight.any()
    model = build(with_head(compact_vocab=True))
    model.init_weights(Init(head=0.5), seed=0)
    assert not model.lm_head.weight.any()
    assert abs(model.get_loss_on_batch(random_ids(2, 8, 61)).item() - math.log(61)) < 1e-12


def test_a_tied_head_is_the_embeddings() -> None:
    model = build(with_head(tied=True))
    assert model.lm_head.weight is model.embeddings.weight
    hidden = torch.randn(2, 24, dtype=torch.float64)
    expected = 9 * torch.tanh(hidden @ model.embeddings.weight.T / 9) + model.get_parameter("lm_head.bias")
    torch.testing.assert_close(model.lm_head(hidden, model.embeddings.weight), expected, rtol=1e-12, atol=1e-12)
