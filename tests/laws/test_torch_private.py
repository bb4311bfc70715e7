"""Private names of torch stand in one file, and what they do is done without them too."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers import ROOT

from hectogpt import torch_private


@pytest.fixture(params=[True, False], ids=["with", "without"])
def private(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether torch has the private names."""
    if not request.param:
        monkeypatch.setattr(torch_private, "find", lambda name: None)
    return request.param


def test_every_name_that_is_used_is_here() -> None:
    source = (ROOT / "hectogpt" / "torch_private.py").read_text(encoding="utf-8")
    gone = [name for name in re.findall(r'find\("([\w.]+)"\)', source) if torch_private.find(name) is None]
    assert gone == [], f"torch {torch.__version__} has no longer {gone}: is the fallback fast enough?"


def test_versions_outside_the_ranges_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_private.untested() == ""
    monkeypatch.setattr(torch, "__version__", "2.16.1+cpu")
    assert torch_private.untested() == "not tested with torch 2.16.1+cpu"


def test_a_processor_is_asked(private: bool) -> None:
    answer = torch_private.onednn_has_bf16()
    assert private or answer is False


def test_products_are_those_of_plain_torch(private: bool) -> None:
    x, weight = torch.randn(5, 16), torch.randn(8, 16)
    torch.testing.assert_close(torch_private.onednn_linear(x, weight), x @ weight.T)
    blocks = torch_private.onednn_blocks(weight, 5)
    torch.testing.assert_close(torch_private.onednn_linear(x, blocks), x @ weight.T)


def test_softmax_in_place_and_sums_of_rows(private: bool) -> None:
    ids, terms, table = torch.randint(9, (40,)), torch.randn(40, 4), torch.nn.Embedding(9, 4, sparse=True)
    table(ids).backward(terms)
    rows, sums = torch_private.sum_rows(table.weight.grad)
    torch.testing.assert_close(sums, torch.zeros(9, 4).index_add(0, ids, terms)[rows])
    z = torch.randn(4, 100)
    expected = torch.softmax(z, 1)
    assert torch_private.softmax_(z) is z
    torch.testing.assert_close(z, expected)


def test_adamw(private: bool) -> None:
    theirs = torch.nn.Parameter(torch.randn(6, 4))
    optimizer = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, eps=1e-8)
    ours, state = theirs.detach().clone(), [torch.zeros(6, 4), torch.zeros(6, 4), torch.zeros(())]
    settings: dict[str, Any] = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "eps": 1e-8}
    for _ in range(5):
        theirs.grad = torch.randn(6, 4)
        optimizer.step()
        torch_private.adamw_(ours, theirs.grad, *state, **settings)
    torch.testing.assert_close(ours, theirs.detach())
    assert state[2] == 5
