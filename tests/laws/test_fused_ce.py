"""The fused cross entropy equals plain cross entropy in value and in every gradient, whatever the shape."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from helpers import fused_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hectogpt.model.fused_ce import Mixture

# Relative norm of the difference: float64, float32, and float32 with bf16 products (loss, gradients).
LIMITS = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-6, 2e-6)}


def plain(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    cap: float | None = None,
    mixture: Mixture | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The textbook: all logits, then the logarithm of the target's probability."""
    z = x.flatten(0, -2) @ weight.t()
    z = z if cap is None else cap * torch.tanh(z / cap)
    z = z if bias is None else z + bias
    losses = F.cross_entropy(z, targets.flatten(), reduction="none")
    if mixture is not None:
        p, w = (t.flatten() for t in mixture)
        losses = -((1 - w) * (-losses).exp() + w * p).log()
    return losses.mean() if reduction == "mean" else losses.sum()


def problem(
    rows: int, vocab: int, d: int, dtype: torch.dtype, seed: int, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random hidden states, head, bias and targets; logits have a standard deviation of `spread`."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d, generator=g, dtype=dtype)
    weight = torch.randn(vocab, d, generator=g, dtype=dtype) * (spread / math.sqrt(d))
    bias = torch.randn(vocab, generator=g, dtype=dtype)
    targets = torch.randint(vocab, (rows,), generator=g)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), targets


def apart(a: Tensor, b: Tensor) -> float:
    """Relative norm of a - b; an exact zero is compared absolutely."""
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


@settings(max_examples=80)
@given(
    rows=st.integers(1, 19),
    vocab=st.integers(2, 70),
    d=st.integers(1, 9),
    chunk=st.one_of(st.none(), st.integers(1, 8)),
    dtype=st.sampled_from((torch.float64, torch.float32)),
    with_bias=st.booleans(),
    cap=st.sampled_from((None, 2.0, 15.0)),
    mixed=st.booleans(),
    reduction=st.sampled_from(("mean", "sum")),
    only=st.sampled_from((None, 0, 1, 2, 3, 4)),
    seed=st.integers(0, 99),
)
def test_fused_is_plain(
    rows: int,
    vocab: int,
    d: int,
    chunk: int | None,
    dtype: torch.dtype,
    with_bias: bool,
    cap: float | None,
    mixed: bool,
    reduction: Literal["mean", "sum"],
    only: int | None,
    seed: int,
) -> None:
    """only: the input whose gradient alone is wanted."""
    x, weight, bias, targets = problem(rows, vocab, d, dtype, seed, spread=3.0)
    p, w = torch.rand(2, rows, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 0.8 + 0.1
    mixture = Mixture(p.requires_grad_(), w.requires_grad_()) if mixed else None
    inputs = [x, weight, *([bias] if with_bias else []), *(mixture or ())]
    if only is not None:
        inputs = [t.requires_grad_(t is inputs[only % len(inputs)]) for t in inputs]
        inputs = [t for t in inputs if t.requires_grad]
    options: dict[str, Any] = {"bias": bias if with_bias else None, "mixture": mixture, "reduction": reduction}
    want = plain(x, weight, targets, cap=cap, **options)
    got = fused_loss(x, weight, targets, soft_cap=cap, chunk_rows=chunk, **options)
    near, near_grad = LIMITS[dtype]
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=near, atol=near)
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=near_grad * max(float(b.norm()), rows**0.5 / rows))


@pytest.mark.parametrize("spread", [0.3, 5.0])
@pytest.mark.parametrize("cap", [None, 15.0])
def test_bf16_products_stay_within_limits(spread: float, cap: float | None) -> None:
    x, weight, bias, targets = problem(300, 2000, 33, torch.float32, 2, spread)
    with torch.no_grad():  # a log-unigram prior: a wide bias, where a rounded logit would cost most
        bias.copy_(-torch.log(torch.arange(1, 2001).float()) - 2.1)
    want = plain(x, weight, targets, bias, cap)
    got = fused_loss(x, weight, targets, bias=bias, soft_cap=cap, precision=torch.bfloat16, chunk_rows=128)
    assert got.dtype == torch.float32
    assert abs(got - want) <= 1e-3 * want
    inputs = (x, weight, bias)
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        assert apart(a, b) <= 1e-2


def test_second_derivatives_are_refused() -> None:
    x, weight, _, targets = problem(9, 20, 5, torch.float64, 5)
    loss = fused_loss(x.square(), weight, targets)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_nan_is_never_hidden() -> None:
    x, weight, _, targets = problem(8, 20, 5, torch.float32, 9)
    with torch.no_grad():
        x[3, 2] = math.nan
    for precision in (None, torch.bfloat16):
        loss = fused_loss(x, weight, targets, precision=precision)
        loss.backward()
        assert loss.isnan()
        assert x.grad is not None
        assert x.grad[3].isnan().any()
        assert weight.grad.isnan().any()


def test_what_the_softmax_excludes_can_still_be_copied() -> None:
    """A logit 400 below the others: no float32 softmax holds it, the loss and its gradients stay finite."""
    weight = torch.zeros(3, 1)
    weight[2] = -400.0
    x, p, w = torch.ones(2, 1, requires_grad=True), torch.tensor([0.5, 0.0]), torch.tensor([0.2, 0.2])
    inputs = [x, weight.requires_grad_(), p.requires_grad_(), w.requires_grad_()]
    loss = fused_loss(x, weight, torch.tensor([2, 2]), mixture=Mixture(p, w), reduction="sum")
    expected = -torch.tensor(0.1).log() + 400 + torch.tensor(2.0).log() - torch.tensor(0.8).log()
    torch.testing.assert_close(loss, expected)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, inputs))


def test_float32_products_are_float32() -> None:
    """The detour through oneDNN, which asks for permission to round to bf16, does not round here."""
    x, weight, _, targets = problem(64, 4096, 128, torch.float32, 16, spread=4.0)
    want = plain(x.double(), weight.double(), targets)
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    got = fused_loss(x, weight, targets)
    assert matmul.fp32_precision == before
    for a, b in zip(torch.autograd.grad(got, (x, weight)), torch.autograd.grad(want, (x, weight)), strict=True):
        assert apart(a, b) <= 2e-6
