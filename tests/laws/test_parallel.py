"""A run that several processes share: the same bits for any number of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import ask
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

from hectogpt.errors import UserError
from hectogpt.training.leaves import add_in_tree, choose_leaves, process_counts
from hectogpt.training.run import Data

PROGRAM = ROOT / "tests" / "programs" / "shared_runs.py"


def assert_elastic(found: dict[str, Any]) -> None:
    for name, runs in found.items():
        (alone,) = runs["0"]
        for how, answers in runs.items():
            for rank, one in enumerate(answers):
                assert one == alone, f"{name}, {how} processes, rank {rank}"
        assert len(set(alone["losses"])) == len(alone["losses"])


def test_one_two_and_four_processes_give_the_same_bits(tmp_path: Path) -> None:
    """Losses, gradient norms and weights, with dropout; a run that moves from four to one, to two, to none as well."""
    assert_elastic(ask(PROGRAM, "elastic", tmp_path))


@pytest.mark.slow
def test_they_do_for_a_hundred_steps(tmp_path: Path) -> None:
    assert_elastic(ask(PROGRAM, "hundred", tmp_path))


# --- the tree ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 64), st.integers(0, 1000))
def test_processes_build_the_tree_of_all_leaves(leaves: int, seed: int) -> None:
    """Whatever numbers are added: floats show the order of additions."""
    numbers = torch.randn(leaves, 3, generator=torch.Generator().manual_seed(seed)) * 1e3 ** torch.rand(leaves, 1)
    whole = add_in_tree(list(numbers.clone()))
    for count in process_counts(leaves):
        own = leaves // count
        parts = [add_in_tree(list(numbers[r * own : (r + 1) * own].clone())) for r in range(count)]
        assert torch.equal(add_in_tree(parts), whole), count


def test_the_tree_is_the_one_that_the_documents_tell() -> None:
    a, b, c, d, e = torch.randn(5, 4).unbind()
    assert torch.equal(add_in_tree([t.clone() for t in (a, b, c, d)]), (a + b) + (c + d))
    assert torch.equal(add_in_tree([t.clone() for t in (a, b, c, d, e)]), ((a + b) + (c + d)) + e)


@pytest.mark.parametrize(
    ("batch", "processes", "leaves"),
    [(16, 1, 8), (16, 2, 8), (16, 16, 16), (4, 1, 4), (12, 3, 6), (12, 1, 4), (7, 1, 1)],
)
def test_a_batch_chooses_its_leaves(batch: int, processes: int, leaves: int) -> None:
    assert choose_leaves(Data(batch_size=batch, seq_len=8), processes).leaves == leaves


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([1, 2, 3, 4, 8]))
def test_leaves_are_no_larger_than_a_micro_batch(batch: int, micro_batch: int, processes: int) -> None:
    """Or the run is refused: a batch of 30 rows has no 30 leaves that two processes can share."""
    asked = Data(batch_size=batch, seq_len=8, micro_batch=min(micro_batch, batch))
    divisors = [n for n in range(1, batch + 1) if batch % n == 0 and processes in process_counts(n)]
    if not [n for n in divisors if batch // n <= asked.rows_at_once]:
        with pytest.raises(UserError, match=r"cannot share a batch|data\.micro_batch"):
            choose_leaves(asked, processes)
        return
    data = choose_leaves(asked, processes)
    assert data.rows_at_once <= asked.rows_at_once
    assert processes in process_counts(data.leaves or 0)


def test_processes_that_cannot_share_a_batch_are_told_which_numbers_can() -> None:
    with pytest.raises(UserError, match="5 processes cannot share a batch") as caught:
        choose_leaves(Data(batch_size=12, seq_len=8), 5)
    assert "there may be 1, 2, 3, 4, 6 or 12" in caught.value.why
    with pytest.raises(UserError, match="3 processes cannot share") as caught:
        choose_leaves(Data(batch_size=16, seq_len=8, leaves=8), 3)
    assert "there may be 1, 2, 4 or 8" in caught.value.why
    with pytest.raises(UserError, match=r"data.leaves = 3") as caught:
        Data(batch_size=16, seq_len=8, leaves=3)
    assert caught.value.fix == "set data.leaves to 2"
