"""The n-gram baselines are probability models, equal to their formulas written out, and count only what a run reads."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt.data import Batches, tokens_read
from hectogpt.errors import UserError
from hectogpt.lab.ngram import ADDED, DISCOUNT, KneserNey, ngram_losses

GPT2_IDS = 50_257


def zipf(n: int, vocab: int, seed: int = 0) -> np.ndarray:
    """A stream whose frequencies fall as 1 / rank, as words do."""
    weights = 1 / np.arange(1, vocab + 1)
    return np.random.default_rng(seed).choice(vocab, n, p=weights / weights.sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_probabilities_over_all_ids_sum_to_one(seed: int) -> None:
    rows = zipf(40_000, GPT2_IDS, seed).reshape(-1, 100)
    model = KneserNey(rows, GPT2_IDS)
    every = np.arange(GPT2_IDS)
    assert math.isclose(model.unigram(every).sum(), 1, rel_tol=1e-9)
    draw = np.random.default_rng(seed)
    seen = [tuple(rows[draw.integers(400), at : at + 2]) for at in draw.integers(0, 99, 20)]
    known_x = [(GPT2_IDS - 1, x) for _, x in seen[:5]]
    anything = [tuple(draw.integers(0, GPT2_IDS, 2)) for _ in range(10)]
    for w, x in seen + known_x + anything:
        two = model.bigram(np.full_like(every, x), every)
        three = model.trigram(np.full_like(every, w), np.full_like(every, x), every)
        for p in (two, three):
            assert p.min() > 0
            assert math.isclose(p.sum(), 1, rel_tol=1e-9)


def by_hand(rows: list[list[int]], vocab: int, w: int, x: int, y: int) -> tuple[float, float, float]:
    """p(y), p(y | x), p(y | w, x) from dictionaries of counts, as the formulas read."""
    singles = Counter(t for row in rows for t in row)
    pairs = Counter(pair for row in rows for pair in pairwise(row))
    triples = Counter(triple for row in rows for triple in zip(row, row[1:], row[2:], strict=False))
    unigram = (singles[y] + ADDED) / (sum(singles.values()) + ADDED * vocab)
    before = Counter(b for _, b in pairs)
    continuation = (before[y] + ADDED) / (sum(before.values()) + ADDED * vocab)

    def level(counts: Counter[tuple[int, ...]], context: tuple[int, ...], shorter: float) -> float:
        total = sum(c for gram, c in counts.items() if gram[:-1] == context)
        kinds = sum(1 for gram in counts if gram[:-1] == context)
        if not total:
            return shorter
        return max(counts[(*context, y)] - DISCOUNT, 0) / total + DISCOUNT * kinds / total * shorter

    continued = Counter((b, c) for _, b, c in triples)
    return (
        unigram,
        level(pairs, (x,), continuation),
        level(triples, (w, x), level(continued, (x,), continuation)),
    )


@given(
    st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(st.integers(0, 4), min_size=n, max_size=n), min_size=1)),
    st.tuples(*[st.integers(0, 4)] * 3),
)
@settings(max_examples=150, deadline=None)
def test_equals_the_formulas(rows: list[list[int]], triple: tuple[int, int, int]) -> None:
    model = KneserNey(np.array(rows), 5)
    w, x, y = (np.array([t]) for t in triple)
    ours = (model.unigram(y)[0], model.bigram(x, y)[0], model.trigram(w, x, y)[0])
    assert ours == pytest.approx(by_hand(rows, 5, *triple), rel=1e-12)


def test_scores_every_token_after_the_first() -> None:
    rows, held_out = zipf(2_000, 30).reshape(20, 100), zipf(50, 30, 1)
    model, scores = KneserNey(rows, 30), ngram_losses(rows, held_out, 30)
    one = model.unigram(held_out[1:])
    two = [model.bigram(held_out[i - 1 : i], held_out[i : i + 1])[0] for i in range(1, 50)]
    three = [model.trigram(*(held_out[j : j + 1] for j in (i - 2, i - 1, i)))[0] for i in range(2, 50)]
    assert scores.uniform == math.log(30)
    assert scores.unigram == pytest.approx(-np.log(one).mean())
    assert scores.kn2 == pytest.approx(-np.log(two).mean())
    assert scores.kn3 == pytest.approx(-np.log([two[0], *three]).mean())


def test_counts_stay_within_rows() -> None:
    joined, apart = KneserNey(np.array([0, 1, 2, 3]), 4), KneserNey(np.array([[0, 1], [2, 3]]), 4)
    one, two, three = (np.array([t]) for t in (1, 2, 3))
    assert joined.bigram(one, two) > joined.bigram(three, two)
    assert apart.bigram(one, two) == apart.bigram(three, two), "nothing follows 1, as nothing follows 3"


def test_reads_what_the_run_reads() -> None:
    stream = np.arange(1_000, dtype=np.uint16)
    rows = tokens_read(stream, seq_len=10, batch_size=4, seed=3, steps=5)
    batches = Batches(stream, 10, 4, 3)
    assert rows.shape == (20, 10)
    assert np.array_equal(rows[8:12], batches.at(2))
    assert not np.array_equal(rows, tokens_read(stream, seq_len=10, batch_size=4, seed=4, steps=5))


def test_counting_finds_order_where_there_is_some() -> None:
    """A stream whose next token follows from the last two: each longer context helps."""
    draw = np.random.default_rng(0)
    stream = [0, 1]
    for noise in draw.random(20_000):
        follows = (3 * stream[-1] + 5 * stream[-2]) % 17
        stream.append(follows if noise < 0.8 else int(noise * 1e6) % 17)
    tokens = np.array(stream)
    scores = ngram_losses(tokens[:16_000].reshape(-1, 100), tokens[16_000:], 17)
    assert scores.kn3 < scores.kn2 - 0.5
    assert scores.unigram == pytest.approx(scores.uniform, abs=0.05)


@pytest.mark.parametrize(
    ("train", "held_out"), [([], [1, 2]), ([1, 2], [1]), ([1, 9], [1, 2]), ([1, 2], [1, 9]), ([-1, 2], [1, 2])]
)
def test_refuses_what_cannot_be_counted(train: list[int], held_out: list[int]) -> None:
    with pytest.raises(UserError):
        ngram_losses(np.array(train, dtype=np.int64), np.array(held_out), 5)


@pytest.mark.shared
def test_tinystories_as_published(shared_data) -> None:  # type: ignore[no-untyped-def]
    """The levels recorded for this sample: unigram 5.88, bigram 3.76, trigram 3.34 (+-.02 for the rows drawn)."""
    train, test = (np.fromfile(shared_data / "tinystories" / f"{s}.bin", "<u2") for s in ("train", "test"))
    scores = ngram_losses(tokens_read(train, 512, 16, 0, 100), test, GPT2_IDS)
    assert (scores.unigram, scores.kn2, scores.kn3) == pytest.approx((5.879, 3.763, 3.341), abs=0.02)
