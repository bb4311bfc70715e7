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
        for how, told in runs.items():
            for rank, one in enumerate(told):
                same = {key: value for key, value in one.items() if key != "some"}
                assert same.items() <= alone.items(), f"{name}, {how} processes, rank {rank}"
        assert len(set(alone["losses"])) == len(alone["losses"])


def test_one_two_and_four_processes_give_the_same_bits(tmp_path: Path) -> None:
    """Losses, gradient norms and weights, with dropout; a run that moves from four to one, to two, to none as well."""
    assert_elastic(ask(PROGRAM, "elastic", tmp_path))


@pytest.mark.slow
def test_they_do_for_a_hundred_steps(tmp_path: Path) -> None:
    assert_elastic(ask(PROGRAM, "hundred", tmp_path))


# --- sharded weights --------------------------------------------------------------------------------------------------


def numbers(told: dict[str, Any], name: str) -> list[float]:
    return [float.fromhex(value) for value in told[name]]


def assert_close(one: dict[str, Any], other: dict[str, Any], name: str) -> None:
    assert numbers(one, "losses") == pytest.approx(numbers(other, "losses"), rel=1e-6), name
    assert numbers(one, "norms") == pytest.approx(numbers(other, "norms"), rel=1e-4), name
    assert one["some"] == pytest.approx(other["some"], rel=1e-5), name


@pytest.mark.thorough
def test_sharded_weights_train_as_whole_ones(tmp_path: Path) -> None:
    """AdamW by rows, Muon and SOAP by whole matrices, the compact head's shared row, clipping, dropout. Four processes,
    some without a row of small parameters, that stop and go on have the bits of those that did not stop."""
    found = ask(PROGRAM, "sharded", tmp_path)
    gone_on = found.pop("gone on")
    assert gone_on["stopped"] == gone_on["whole"]
    assert_only_rank_0_has_all(gone_on["whole"])
    for name, runs in found.items():
        assert_close(runs["sharded"], runs["alone"], name)


def assert_only_rank_0_has_all(runs: list[dict[str, Any]]) -> None:
    first, *others = (run["held"] for run in runs)
    parameters = first["whole"]
    assert sum(run["held"]["shards"] for run in runs) == parameters
    for rank, other in enumerate(others, start=1):
        assert (other["whole"], other["whole_state"]) == (0, 0), rank
        assert other["shards"] < 0.26 * parameters, rank
        assert other["state"] < 0.35 * first["whole_state"], rank


@pytest.mark.thorough
def test_a_checkpoint_is_the_same_file_whatever_shares_the_run(tmp_path: Path) -> None:
    """Three ways to save, three to go on. Bitwise where the sums are, which is all but those of FSDP2."""
    found = ask(PROGRAM, "grid", tmp_path)
    for first, runs in found.items():
        for second in ("none", "ddp", "fsdp"):
            if "fsdp" in (first, second) and first != second:
                assert_close(runs[second], found["none"]["whole"], f"{first} -> {second}")
            else:
                assert runs[second] == runs["whole"], f"{first} -> {second}"


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


def test_leaves_are_no_larger_than_a_micro_batch() -> None:
    data = choose_leaves(Data(batch_size=64, seq_len=8, micro_batch=2), 1)
    assert (data.leaves, data.micro_batch, data.rows_at_once) == (32, None, 2)


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
