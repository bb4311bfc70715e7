"""Batches are a permutation of the corpus, a pure function of (seed, step), in any partition of the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt import errors
from hectogpt.data import Batches, tokens_read
from hectogpt.errors import UserError


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 50), st.integers(0, 2**63 - 1), st.data())
def test_batches_follow_the_definition(n: int, seq_len: int, batch_size: int, seed: int, draw: st.DataObject) -> None:
    """Against the definition written out naively; any partition of the rows gives the same batch."""
    tokens = np.arange(n * seq_len + draw.draw(st.integers(0, seq_len - 1)), dtype=np.uint16)
    batches = Batches(tokens, seq_len, batch_size, seed)
    assert batches.n_sequences == n
    n_epochs = 3 * batch_size // n + 2
    orders = [np.argsort(np.random.Philox(key=[seed, e]).random_raw(n), kind="stable") for e in range(n_epochs)]
    whole = np.concatenate(orders)
    for step in (0, 2, 1):
        expected = [tokens[i * seq_len : (i + 1) * seq_len] for i in whole[step * batch_size : (step + 1) * batch_size]]
        batch = batches.at(step)
        assert batch.dtype == np.int64
        assert np.array_equal(batch, np.array(expected))
        cuts = sorted(draw.draw(st.lists(st.integers(0, batch_size), max_size=3)))
        parts = [batches.rows(step, lo, hi) for lo, hi in zip([0, *cuts], [*cuts, batch_size], strict=True)]
        assert np.array_equal(np.concatenate(parts), batch)
    assert np.array_equal(
        tokens_read(tokens, seq_len, batch_size, seed, 2), np.concatenate([batches.at(0), batches.at(1)])
    )


@pytest.mark.parametrize("batch_size", [1, 7, 16, 300])
def test_each_sequence_once_per_epoch(batch_size: int) -> None:
    batches = Batches(np.repeat(np.arange(100), 4), seq_len=4, batch_size=batch_size, seed=3)
    rows = np.concatenate([batches.at(step)[:, 0] for step in range(600 // batch_size + 1)])
    for epoch in range(6):
        assert sorted(rows[epoch * 100 : (epoch + 1) * 100].tolist()) == list(range(100))
    assert rows[:100].tolist() != rows[100:200].tolist()


def test_order_is_the_same_for_ever() -> None:
    tokens = np.arange(24)
    assert Batches(tokens, 3, 2, seed=0).order(0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert Batches(tokens, 3, 2, seed=0).order(1).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]
    assert Batches(tokens, 2, 2, seed=7).order(3).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1, 11, 10]


def test_too_short_for_a_sequence() -> None:
    with pytest.raises(UserError, match="7 tokens in this split, one sequence needs 65") as caught:
        Batches(np.arange(7), seq_len=65)
    assert caught.value.code == errors.DATA
    assert "set data.seq_len to 7" in caught.value.fix
    for bad in ({"seq_len": 0}, {"batch_size": 0}, {"seed": -1}, {"seed": 2**63}):
        with pytest.raises(UserError) as caught:
            Batches(np.arange(99), **{"seq_len": 4, **bad})
        assert caught.value.code == errors.USAGE
    with pytest.raises(ValueError, match="rows 3:2"):
        Batches(np.arange(99), 4).rows(0, 3, 2)
