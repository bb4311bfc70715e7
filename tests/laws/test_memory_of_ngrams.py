"""The memory of n-grams: a distribution, the same one in loss, logits and cache; who gets which gradient; its steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import peaked
from hypothesis import given
from hypothesis import strategies as st
from model_kinds import BARE, L, random_ids
from torch import Tensor

from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.memory import NgramMemory
from hectogpt.model.pointer import PointerHead
from hectogpt.training.diagnose import diagnose
from hectogpt.training.optim import AdamW, MemorySGD
from hectogpt.training.run import Data, Run
from hectogpt.training.session import Session

CONFIG = replace(BARE, pointer=PointerHead(gate=-0.5), memory=NgramMemory((2, 3)))
IDS = random_ids(4, L, 6)  # few tokens, so that contexts repeat


def build(config: ModelConfig = CONFIG, seed: int = 0) -> Transformer:
    model = Transformer(config).double()
    if model.memory is not None:
        model.memory.fit(IDS)
    return peaked(model, seed, scale=0.4)


def by_hand(model: Transformer, ids: Tensor) -> Tensor:
    """p at the last position of one text, by dictionaries."""
    memory, network = model.memory, Transformer(replace(model.config, memory=None)).double()
    assert memory is not None
    network.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("memory.")})
    hidden, p, mass = model.hidden(ids[None])[0, -1], network(ids[None])[0, -1].exp(), torch.tensor(1.0).double()
    for number, k in enumerate((2, 3)):
        table = memory.tables[number]
        known: dict[tuple[tuple[int, ...], int], Tensor] = {}
        for context, entry, weight in zip(table.context_of_entry, table.entries, table.weight, strict=True):
            digits = [int(table.contexts[context]) // 40**n % 40 for n in reversed(range(k))]
            known[tuple(digits), int(entry) % 40] = weight.clamp(min=0)
        here = {y: w for (context, y), w in known.items() if context == tuple(ids[-k:].tolist())}
        total = sum(here.values(), torch.tensor(0.0).double())
        score = hidden @ memory.gate[number] + memory.gate_bias[number]
        scale = (score + memory.mass_power[number] * (total + 0.01).log()).exp()
        for y, w in here.items():
            p = p + scale * w * torch.nn.functional.one_hot(torch.tensor(y), 40)
        mass = mass + scale * total
    return p / mass


def test_it_is_what_the_formula_says() -> None:
    model = build()
    for text in (IDS[0, :7], IDS[1, :1], IDS[2, :2], random_ids(1, 8)[0]):
        torch.testing.assert_close(model(text[None])[0, -1].exp(), by_hand(model, text))


@given(st.integers(0, 50))
def test_it_is_a_distribution_and_the_loss_is_that_of_the_logits(seed: int) -> None:
    model, ids = build(seed=seed), torch.cat((IDS, random_ids(2, L, seed=seed)))
    logits = model(ids[:, :-1])
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(logits.shape[:2], dtype=torch.float64))
    loss = torch.nn.functional.nll_loss(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(model.loss(ids[:, :-1], ids[:, 1:]), loss)


def test_without_anything_learned_it_is_the_network() -> None:
    model = build()
    plain = Transformer(replace(CONFIG, memory=None)).double()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("memory.")})
    assert model.memory is not None
    model.memory.fit(IDS)  # zeros
    torch.testing.assert_close(model(IDS), plain(IDS))


def test_the_network_learns_as_if_there_were_no_memory() -> None:
    """Its gradients have the bits of a model without one; the memory's are those of the whole loss, except that no
    number learns from what its context's mass does to the scale."""
    model = build()
    assert model.memory is not None
    with torch.no_grad():
        model.memory.mass_power.zero_()
    plain = Transformer(replace(CONFIG, memory=None)).double()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("memory.")})
    model.get_loss_on_batch(IDS).backward()
    plain.get_loss_on_batch(IDS).backward()
    gradients = dict(model.named_parameters())
    for name, p in plain.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, gradients[name].grad), name
    for name, p in model.memory.named_parameters():
        found, step = p.grad, 1e-6
        assert found is not None
        place = (found.abs().argmax(),) if p.dim() == 1 else (0, int(found[0].abs().argmax()))
        with torch.no_grad():
            p[place] += step
            up = model.get_loss_on_batch(IDS).item()
            p[place] -= 2 * step
            down = model.get_loss_on_batch(IDS).item()
            p[place] += step
        assert found[place].item() == pytest.approx((up - down) / (2 * step), rel=1e-5), name
    assert model.gradient_norm() < torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])


def test_steps_are_bounded_and_numbers_stay_positive() -> None:
    """A context's first step is the largest, the n-th at most n^-power of it; entries of other contexts stay."""
    model = build()
    assert model.memory is not None
    model.memory.fit(IDS)
    rest = AdamW(lr=0.0, weight_decay=0.0).build(model)
    optimizer = MemorySGD(lr=1e9, largest_step=0.25, power=0.5).take_tables(rest, model)
    table = model.memory.tables[0]
    before = table.weight.detach().clone()
    for n in (1, 2, 3):
        model.get_loss_on_batch(IDS[:1]).backward()
        optimizer.step(n - 1, 0.0)  # the schedule does not apply
        optimizer.zero_grad()
        moved = (table.weight.detach() - before).abs()
        assert moved.max() <= 0.25 * n**-0.5 + 1e-12
        assert table.weight.min() >= 0
        if n == 1:
            pairs = {(int(a), int(b), int(c)) for a, b, c in zip(IDS[0], IDS[0, 1:], IDS[0, 2:], strict=False)}
            assert (moved > 0).sum() == len(pairs)
            assert moved[moved > 0].unique().tolist() == [0.25]
        before = table.weight.detach().clone()
    held = {id(p) for o in optimizer.optimizers for group in o.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("damage", ["order", "range", "dtype"])
def test_damaged_ngrams_are_refused(damage: str) -> None:
    model = build()
    state = dict(model.state_dict())
    key = "memory.tables.0.entries"
    change = {"order": state[key].flip(0), "range": state[key] + 10**9, "dtype": state[key].float()}
    state[key] = change[damage]
    with pytest.raises(UserError, match="damaged"):
        Transformer(CONFIG).fit_to(state)


@pytest.mark.parametrize("lengths", [(), (0,), (5,), (2, 2), (3, 2)])
def test_context_lengths_that_are_none(lengths: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="context_lengths"):
        NgramMemory(lengths)


@pytest.mark.parametrize("leaves", [None, 2])
def test_a_second_reading_teaches_the_memory_nothing(leaves: int | None, tmp_path: Path) -> None:
    """A text of nine sequences, four a step: the third step shows some of them again."""
    for split in ("train", "dev", "test"):
        random_ids(1, 150, 50).numpy().astype("<u2").tofile(tmp_path / f"{split}.bin")
    corpus, data = open_corpus(str(tmp_path)), Data(batch_size=4, seq_len=16, leaves=leaves)
    model = ModelConfig(12, 2, 1, 16, 50257, memory=NgramMemory())
    session = Session.open(Run(model, data=data, optim=AdamW(lr=0.01), steps=4, threads=1, device="cpu"), corpus)
    memory = session.model.memory
    assert memory is not None
    seen, expected = [], None
    for step in session.steps():
        if expected is not None:
            assert step.grad_norm == pytest.approx(expected, rel=1e-4), "a step is examined as it is computed"
        if leaves is None and step.number < 4:
            expected = diagnose(session).grad_norm
        memory.learns = True  # the step says itself whether it does
        seen.append([p.detach().clone() for p in (*memory.parameters(), session.model.embeddings.weight)])
    learned = [[not torch.equal(a, b) for a, b in zip(*two, strict=True)] for two in pairwise(seen)]
    assert any(learned[0][:-1])
    assert not any(learned[1][:-1])
    assert not any(learned[2][:-1])
    assert all(step[-1] for step in learned), "the network goes on"
