"""Muon and SOAP before it: singular values near one, torch's own Muon, and no dependence on the basis."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import TINY
from hypothesis import given
from hypothesis import strategies as st

from hectogpt.model import Transformer
from hectogpt.training.optim import AdamW, Muon, SOAPMuon, kinds
from hectogpt.training.optim.muon import SOAPMuonOptimizer, orthogonalize


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 100))
def test_orthogonalized_matrices_have_singular_values_near_one(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed)) + 0.1
    values = torch.linalg.svdvals(orthogonalize(matrix, steps=10))
    original = torch.linalg.svdvals(matrix)
    clear = original > 1e-2 * original[:, :1]  # directions that are nearly absent need more steps
    assert ((values > 0.6) & (values < 1.3))[clear].all()


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_its_twin_in_torch(nesterov: bool) -> None:
    config = replace(TINY, n_layers=1, vocab_size=50)
    ours, twin = Transformer(config), Transformer(config)
    twin.load_state_dict(ours.state_dict())
    optim = Muon(lr=0.05, momentum=0.9, nesterov=nesterov, rest=AdamW(lr=0.0, weight_decay=0.0))
    mine = optim.build(ours)
    # The twin takes each of q, k and v as a matrix of its own.
    matrices = {}
    for name, p in twin.named_parameters():
        if kinds(twin)[name] == "matrix":
            chunks = p.detach().chunk(3 if "qkv" in name else 1)
            matrices[name] = [torch.nn.Parameter(c.clone()) for c in chunks]
    flat = [p for parts in matrices.values() for p in parts]
    theirs = torch.optim.Muon(flat, lr=0.05, weight_decay=0.0, momentum=0.9, nesterov=nesterov, adjust_lr_fn="original")
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for name, p in ours.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator)
            for part, gradient in zip(matrices.get(name, []), p.grad.chunk(len(matrices.get(name, [0]))), strict=False):
                part.grad = gradient.clone()
        mine.step(step, 1.0)
        theirs.step()
    for name, parts in matrices.items():
        got = dict(ours.named_parameters())[name]
        # Theirs iterates in bf16 (8 bits of mantissa), ours in float32.
        torch.testing.assert_close(got, torch.cat([p.data for p in parts]), rtol=0, atol=0.05 * 4 * 0.05)


def test_muon_momentum_warms_up() -> None:
    model = Transformer(TINY)
    optimizer = Muon(lr=0.02, momentum=0.95, momentum_start=0.85, momentum_steps=10).build(model)
    seen, lrs = [], []
    for step, factor in ((0, 1.0), (5, 0.5), (10, 0.25), (50, 0.0)):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step(step, factor)
        seen.append(optimizer.optimizers[0].param_groups[0]["momentum"])
        lrs.append(optimizer.lr)
    assert seen == pytest.approx([0.85, 0.90, 0.95, 0.95])
    assert lrs == pytest.approx([0.02, 0.01, 0.005, 0.0])


def test_soap_does_not_depend_on_the_basis() -> None:
    """Turning every gradient by U and V turns the update by them: SOAP is Adam in a basis of the gradients' own."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, v = (torch.linalg.qr(draw(5, 5)).Q for _ in range(2))
    soap = SOAPMuonOptimizer(SOAPMuon(), [(torch.nn.Parameter(draw(10, 5)), 2)])
    plain: dict[str, torch.Tensor] = {}
    turned: dict[str, torch.Tensor] = {}
    for step in range(25):
        gradient, momentum = draw(2, 5, 5), draw(2, 5, 5)
        expected = u @ soap.precondition(gradient, momentum, plain, step) @ v.T
        got = soap.precondition(u @ gradient @ v.T, u @ momentum @ v.T, turned, step)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        assert got.square().sum((1, 2)).max() <= 2.5**2 * 25


def test_newton_schulz_in_bf16_gives_nearly_the_same_directions() -> None:
    updates = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    got, exact = (orthogonalize(updates, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    assert got.dtype == torch.float32
    assert (got - exact).norm() < 0.1 * exact.norm()
    values = torch.linalg.svdvals(got)
    assert ((values > 0.6) & (values < 1.3)).all()
