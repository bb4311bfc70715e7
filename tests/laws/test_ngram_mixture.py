"""Modified Kneser-Ney and the mixture: equal to their formulas, they sum to 1 and look back only."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt.data import tokens_read
from hectogpt.lab.ngram import ngram_losses
from hectogpt.lab.ngram_mixture import CACHES, Mixture, caches, cut, mixture_losses
from hectogpt.lab.ngram_modified import ADDED, GAPS, NEIGHBOURS, ModifiedKneserNey, Pattern

IDS = 4


def rows_of(least: int = 1, most: int = 9) -> st.SearchStrategy[np.ndarray]:
    """[1 to 5 rows, least to most ids below IDS]"""
    row = st.integers(least, most).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, IDS - 1), min_size=n, max_size=n), min_size=1, max_size=5)
    )
    return row.map(lambda rows: np.array(rows, dtype=np.int64))


def entries(rows: list[list[int]], pattern: Pattern) -> Counter[tuple[tuple[int, ...], int]]:
    """(context, next id) -> occurrences, by the words of the definition."""
    found: Counter[tuple[tuple[int, ...], int]] = Counter()
    for row in rows:
        for at in range(pattern[-1] + 1, len(row)):
            found[tuple(row[at - 1 - offset] for offset in pattern), row[at]] += 1
    return found


def by_hand(model: ModifiedKneserNey, rows: list[list[int]], pattern: Pattern, history: list[int], y: int) -> float:
    """p(y | history) by one pattern, from dictionaries."""
    if not pattern:
        follow = Counter(b for _, b in {(a[0], b) for a, b in entries(rows, (0,))})
        return (follow[y] + ADDED) / (sum(follow.values()) + ADDED * IDS)
    shorter = by_hand(model, rows, pattern[:-1], history, y)
    if pattern in NEIGHBOURS[:-1]:
        longer = entries(rows, NEIGHBOURS[len(pattern)])
        counts = Counter((context[:-1], b) for context, b in longer)
    else:
        counts = entries(rows, pattern)
    if pattern[-1] >= len(history):
        return shorter
    context = tuple(history[-1 - offset] for offset in pattern)
    own = {b: c for (a, b), c in counts.items() if a == context}
    if not sum(own.values()):
        return shorter
    discounts = model.discounts[pattern]

    def discount(count: int) -> float:
        return float(discounts[min(count, 3) - 1]) if count else 0.0

    freed = sum(discount(c) for c in own.values())
    return (own.get(y, 0) - discount(own.get(y, 0)) + freed * shorter) / sum(own.values())


@given(rows_of(), st.lists(st.integers(0, IDS - 1), min_size=2, max_size=7))
@settings(max_examples=25, deadline=None)
def test_modified_kneser_ney_equals_its_formula(rows: np.ndarray, text: list[int]) -> None:
    model = ModifiedKneserNey(rows, IDS)
    one = np.array([text])
    ours = model.probabilities(one, model.levels(one))
    for pattern in (*NEIGHBOURS, *GAPS):
        expected = [by_hand(model, rows.tolist(), pattern, text[:at], text[at]) for at in range(1, len(text))]
        assert ours[pattern][0] == pytest.approx(expected, rel=1e-12), pattern


@given(rows_of(), rows_of(2), st.lists(st.integers(0, IDS - 1), max_size=8))
@settings(max_examples=12, deadline=None)
def test_sums_to_one_after_any_context(rows: np.ndarray, held_out: np.ndarray, history: list[int]) -> None:
    model = Mixture(rows, IDS)
    model.fit([held_out])
    texts = np.array([[0, *history, y] for y in range(IDS)])
    parts, features = model.parts(texts)
    assert np.isfinite(features).all()
    last = parts.reshape(len(parts), IDS, -1)[:, :, -1]
    assert last.sum(axis=1) == pytest.approx(np.ones(len(last)), rel=1e-9)
    for p in model.probabilities(texts):
        assert p[:, -1].min() > 0
        assert math.isclose(p[:, -1].sum(), 1, rel_tol=1e-9)


@given(rows_of(), st.lists(st.integers(0, IDS - 1), min_size=3, max_size=9), st.data())
@settings(max_examples=25, deadline=None)
def test_looks_back_only(rows: np.ndarray, text: list[int], data: st.DataObject) -> None:
    """To the last bit, in texts of one length: numpy may round a number differently at another place of a row."""
    model = Mixture(rows, IDS)
    model.weights[:] = np.random.default_rng(0).normal(size=model.weights.shape)
    kept = data.draw(st.integers(2, len(text)))
    other = [*text[:kept], *data.draw(st.lists(st.integers(0, IDS - 1), min_size=len(text), max_size=len(text)))][
        : len(text)
    ]
    for p, q in zip(model.probabilities(np.array([text])), model.probabilities(np.array([other])), strict=True):
        assert np.array_equal(p[0, : kept - 1], q[0, : kept - 1])


def test_a_cache_is_what_followed_at_earlier_places() -> None:
    row = np.array([[7, 1, 2, 9, 1, 2, 8, 2]])
    p, matches = caches(row)
    by_name = {cache: p[i, 0] for i, cache in enumerate(CACHES)}
    assert by_name[0, 1.0] == pytest.approx([0, 0, 0, 1 / 4, 1 / 5, 0, 2 / 7])
    assert by_name[1, 0.995][4] == 1, "2 followed the only earlier 1"
    assert by_name[1, 0.995][5] == 0, "8 did not follow the earlier 2"
    assert by_name[2, 0.995][6] == by_name[1, 0.995][6], "nothing matches two tokens: the shorter cache stands in"
    assert matches[:, 0, 5].tolist() == [1, 1, 0, 0], "1 2 occurred once before, 9 1 2 did not"


def test_cuts_as_networks_are_scored() -> None:
    whole, rest = cut(np.arange(11), 4)
    assert whole.tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    assert rest.tolist() == [[8, 9, 10]]
    assert [part.tolist() for part in cut(np.arange(9), 8)] == [[list(range(9))]]


def copies(n: int, seed: int) -> np.ndarray:
    """Rows of 64 whose second halves repeat their first, of 40 equally frequent ids."""
    half = np.random.default_rng(seed).integers(0, 40, (n, 32))
    return np.concatenate([half, half], axis=1)


def test_caches_find_what_a_sequence_repeats() -> None:
    held_out = np.append(copies(40, 1).ravel(), 0)
    scores = ngram_losses(copies(60, 0), held_out, 40, fit_on=np.append(copies(40, 2).ravel(), 0), seq_len=64)
    assert scores.mkn5 > 3.5, "nothing repeats from row to row"
    assert scores.best < 2.2


def test_fitting_lowers_the_loss_and_halves_do_not_see_each_other() -> None:
    draw = np.random.default_rng(0)
    stream = np.cumsum(draw.choice([1, 1, 1, 2, 5], 9_000)) % 17
    rows, held_out = stream[:6_000].reshape(60, 100), stream[6_000:]
    model = ModifiedKneserNey(rows, 17)
    parts = cut(held_out, 100)

    def loss() -> float:
        p = [model.probabilities(part, model.levels(part))[NEIGHBOURS[-1]].ravel() for part in parts]
        return float(-np.log(np.concatenate(p)).mean())

    before = loss()
    model.fit(parts)
    assert loss() < before
    fitted_on_itself = mixture_losses(rows, held_out, 17, 100, held_out)
    by_halves = mixture_losses(rows, held_out, 17, 100, None)
    assert fitted_on_itself[1] < by_halves[1] < fitted_on_itself[1] + 0.1


@pytest.mark.parametrize("tokens", [[1, 2], [1, 2, 3], [0] * 40])
def test_short_texts_are_scored(tokens: list[int]) -> None:
    for fit_on in (None, np.array([1, 2])):
        scores = ngram_losses(np.array([[1], [2]]), np.array(tokens), 5, fit_on, seq_len=4)
        assert 0 < scores.best < 20
        assert 0 < scores.mkn5 < 20


@pytest.mark.shared
@pytest.mark.thorough
def test_tinystories_as_recorded(shared_data) -> None:  # type: ignore[no-untyped-def]
    train, dev, test = (np.fromfile(shared_data / "tinystories" / f"{s}.bin", "<u2") for s in ("train", "dev", "test"))
    scores = ngram_losses(tokens_read(train, 512, 16, 103, 100), test, 50_257, dev)
    assert (scores.kn3, scores.mkn5, scores.best) == pytest.approx((3.3281, 3.2068, 2.951), abs=0.003)
