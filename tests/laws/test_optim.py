"""Optimizers: every parameter in one group, numbers per kind, learning rates by the step, and a whole saved state."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import TINY
from hypothesis import given
from hypothesis import strategies as st

from hectogpt.model import Transformer
from hectogpt.model.inputs import NgramHash, Smear
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import RMSNorm, Rotary
from hectogpt.training.optim import AdamW, Muon, Optim, OptimizerGroup, PerKind, SOAPMuon, kinds
from hectogpt.training.optim.muon import OneSidedSOAPMuon, orthogonalize

DEPARTED = replace(
    TINY,
    vocab_size=300,
    norm=RMSNorm(gain=True),
    inputs=(NgramHash(2, 64), Smear()),
    attention_parts=(Rotary(),),
    lm_head=LMHeadConfig(bias=True),
)

OPTIMS = {
    "AdamW": AdamW(decay_all=False, lrs=PerKind(head=1.0)),
    "RowAdamW": AdamW(row_lr_power=0.5, row_update_threshold=PerKind(head=1e-3)),
    "Muon": Muon(momentum_steps=4),
    "SOAPMuon": SOAPMuon(every=2, rest=AdamW(row_lr_power=1.0)),
}
every = pytest.mark.parametrize("optim", OPTIMS.values(), ids=OPTIMS)


@every
@pytest.mark.parametrize("config", [TINY, DEPARTED], ids=["gpt2", "departed"])
def test_every_parameter_is_in_one_group(optim: Optim, config: Any) -> None:
    model = Transformer(config)
    groups = [group for each in optim.build(model).optimizers for group in each.param_groups]
    stepped = [id(p) for group in groups for p in group["params"]]
    assert len(stepped) == len(set(stepped))
    assert set(stepped) == {id(p) for p in model.parameters()}


def test_kinds() -> None:
    found = kinds(Transformer(DEPARTED))
    assert (found["embeddings.weight"], found["inputs.0.table.weight"]) == ("embedding", "table")
    assert found["position_embeddings.weight"] == "position"
    assert found["backbone.0.attention.W_qkv.weight"] == found["backbone.1.mlp.fc2.weight"] == "matrix"
    assert found["backbone.0.mlp.fc1.bias"] == found["inputs.1.shares"] == found["final_layer_norm.weight"] == "scalar"
    assert (found["lm_head.weight"], found["lm_head.bias"]) == ("head", "head_bias")


def test_numbers_reach_their_kinds_and_decay_spares_what_it_should() -> None:
    model = Transformer(DEPARTED)
    adamw = AdamW(0.5, lrs=PerKind(head_bias=0.0, head=0.25), eps=1e-9, epsilons=PerKind(head=1e-5), decay_all=False)
    groups = [group for part in adamw.build(model).optimizers for group in part.param_groups]
    of = {name: next(g for g in groups if any(p is q for q in g["params"])) for name, p in model.named_parameters()}
    names = ("lm_head.bias", "lm_head.weight", "embeddings.weight")
    assert [(of[name]["initial_lr"], of[name]["eps"]) for name in names] == [(0.0, 1e-9), (0.25, 1e-5), (0.5, 1e-9)]
    decayed = {name for name, group in of.items() if group["weight_decay"]}
    assert decayed == {name for name, kind in kinds(model).items() if kind in ("matrix", "head")}


# --- the group ----------------------------------------------------------------------------------------------------


@every
def test_saved_state_is_the_whole_state(optim: Optim) -> None:
    """An optimizer that has loaded another's state goes on as the other does, to the last bit."""

    def steps(model: Transformer, optimizer: OptimizerGroup, numbers: range) -> None:
        for step in numbers:
            generator = torch.Generator().manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator) * 1e-3
            optimizer.step(step, 1 - step / 30)

    one, other = Transformer(DEPARTED), Transformer(DEPARTED)
    first, second = optim.build(one), optim.build(other)
    steps(one, first, range(22))  # SOAP's bases follow at every step up to the 20th, then at every second
    other.load_state_dict(one.state_dict())
    for own, its in zip(second.optimizers, first.optimizers, strict=True):
        own.load_state_dict(copy.deepcopy(its.state_dict()))
    steps(one, first, range(22, 25))
    steps(other, second, range(22, 25))
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


# --- AdamW by rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize(("name", "faint"), [("embeddings.weight", 0.0), ("lm_head.weight", 1e-4)])
def test_a_row_keeps_its_learning_rate_until_it_has_been_updated(name: str, faint: float, kernels: bool) -> None:
    """With row_lr_power every row moves as torch's Adam moves it alone at max(the schedule's lr, the highest n^-p)."""
    factors, touched = [0.5, 1.0, 0.5, 0.1, 0.0], {0: range(5), 1: [1, 4], 2: [4], 3: []}
    model = Transformer(replace(TINY, vocab_size=len(touched)))
    adamw = AdamW(lr=0.1, eps=1e-4, weight_decay=0.01, row_lr_power=0.5, row_update_threshold=PerKind(head=1e-6))
    model.use_kernels(kernels)
    optimizer = adamw.build(model)
    table = model.get_parameter(name)
    alone = [torch.nn.Parameter(row.clone()) for row in table.detach()]
    adams = [torch.optim.AdamW([row], eps=1e-4, weight_decay=0.0) for row in alone]
    for step, factor in enumerate(factors):
        gradient = torch.randn(table.shape, generator=torch.Generator().manual_seed(step)) * 1e-3
        for row, steps in touched.items():
            gradient[row] *= 1.0 if step in steps else faint
            updates = sum(s <= step for s in steps)
            alone[row].grad = gradient[row].clone()
            alone[row].data *= 1 - 0.1 * factor * 0.01
            adams[row].param_groups[0]["lr"] = 0.1 * max(factor, max(factors[: step + 1]) * max(updates, 1) ** -0.5)
            adams[row].step()
        for p in model.parameters():
            p.grad = gradient if p is table else torch.zeros_like(p)
        optimizer.step(step, factor)
    torch.testing.assert_close(table.detach(), torch.stack([row.detach() for row in alone]))


# --- muon -------------------------------------------------------------------------------------------------------------


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 100))
def test_orthogonalized_matrices_have_singular_values_near_one(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed)) + 0.1
    values = torch.linalg.svdvals(orthogonalize(matrix, steps=10))
    original = torch.linalg.svdvals(matrix)
    clear = original > 1e-2 * original[:, :1]  # directions that are nearly absent need more steps
    assert ((values > 0.6) & (values < 1.3))[clear].all()


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_its_twin_in_torch(nesterov: bool) -> None:
    ours = Transformer(replace(TINY, n_layers=1, vocab_size=50))
    parameters = dict(ours.named_parameters())
    optim = Muon(lr=0.05, momentum=0.9, nesterov=nesterov, rest=AdamW(lr=0.0, weight_decay=0.0))
    mine = optim.build(ours)
    # The twin takes each of q, k and v as a matrix of its own.
    matrices = {
        name: [torch.nn.Parameter(c.clone()) for c in parameters[name].detach().chunk(3 if "qkv" in name else 1)]
        for name, kind in kinds(ours).items()
        if kind == "matrix"
    }
    flat = [p for parts in matrices.values() for p in parts]
    theirs = torch.optim.Muon(flat, lr=0.05, weight_decay=0.0, momentum=0.9, nesterov=nesterov, adjust_lr_fn="original")
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for p in parameters.values():
            p.grad = torch.randn(p.shape, generator=generator)
        for name, parts in matrices.items():
            for part, gradient in zip(parts, parameters[name].grad.chunk(len(parts)), strict=True):
                part.grad = gradient.clone()
        mine.step(step, 1.0)
        theirs.step()
    for name, parts in matrices.items():
        # Theirs iterates in bf16 (8 bits of mantissa), ours in float32.
        torch.testing.assert_close(parameters[name], torch.cat([*parts]), rtol=0, atol=0.05 * 4 * 0.05)
    rising = Muon(momentum_start=0.85, momentum=0.95, momentum_steps=10)
    assert [rising.momentum_at(step) for step in (0, 5, 10, 99)] == pytest.approx([0.85, 0.9, 0.95, 0.95])


@pytest.mark.parametrize(("long_sides", "columns"), [(True, 5), (False, 7)])
def test_soap_does_not_depend_on_the_basis(long_sides: bool, columns: int) -> None:
    """Turning every gradient by U and V turns the update by them; without long sides, turning it by U does."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, v = (torch.linalg.qr(draw(n, n)).Q for n in (5, columns))
    v = v if long_sides else torch.eye(columns, dtype=v.dtype)
    soap = SOAPMuon() if long_sides else OneSidedSOAPMuon()
    plain, turned = [dict[str, torch.Tensor]() for _ in range(2)]
    for step in range(25):
        gradient, momentum = draw(2, 5, columns), draw(2, 5, columns)
        got = soap.precondition(u @ gradient @ v.T, u @ momentum @ v.T, turned, step)
        expected = u @ soap.precondition(gradient, momentum, plain, step) @ v.T
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        assert got.square().sum((1, 2)).max() <= 2.5**2 * 5 * columns
