"""N-gram models are what their formulas say, sum to 1, look back only, and count only what a run reads; alone, mixed
into a network, and in the best counting."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kinds import KINDS, build

from hectogpt.lab import ngram
from hectogpt.lab.best_counting import GAPS, NEIGHBOURS, Mixture
from hectogpt.lab.ngram import ADDED, DISCOUNT, ORDER, KneserNey, NgramModels, Pattern, neighbours
from hectogpt.model import ModelConfig, Transformer
from hectogpt.training.evaluate import evaluate

GPT2_IDS = 50_257
IDS = 4


def zipf(n: int, vocab: int, seed: int = 0) -> np.ndarray:
    """A stream whose frequencies fall as 1 / rank, as words do."""
    weights = 1 / np.arange(1, vocab + 1)
    return np.random.default_rng(seed).choice(vocab, n, p=weights / weights.sum())


def rows_of(least: int = 1, most: int = 9) -> st.SearchStrategy[np.ndarray]:
    """[1 to 5 rows, least to most ids below IDS]"""
    row = st.integers(least, most).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, IDS - 1), min_size=n, max_size=n), min_size=1, max_size=5)
    )
    return row.map(lambda rows: np.array(rows, dtype=np.int64))


# --- Kneser-Ney -------------------------------------------------------------------------------------------------------


def entries(rows: list[list[int]], pattern: Pattern) -> Counter[tuple[tuple[int, ...], int]]:
    """(context, next id) -> occurrences, by the words of the definition."""
    found: Counter[tuple[tuple[int, ...], int]] = Counter()
    for row in rows:
        for at in range(pattern[-1] + 1, len(row)):
            found[tuple(row[at - 1 - offset] for offset in pattern), row[at]] += 1
    return found


def by_hand(model: KneserNey, rows: list[list[int]], pattern: Pattern, history: list[int], y: int) -> float:
    """p(y | history) by one pattern, from dictionaries."""
    if not pattern:
        follow = Counter(b for _, b in {(a[0], b) for a, b in entries(rows, (0,))})
        return (follow[y] + ADDED) / (sum(follow.values()) + ADDED * IDS)
    shorter = by_hand(model, rows, pattern[:-1], history, y)
    if pattern in model.neighbours[:-1]:
        longer = entries(rows, model.neighbours[len(pattern)])
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
@settings(max_examples=25)
def test_kneser_ney_equals_its_formula(rows: np.ndarray, text: list[int]) -> None:
    one = np.array([text])
    for patterns, discount in (((*NEIGHBOURS, *GAPS), None), (neighbours(3), DISCOUNT)):
        model = KneserNey(rows, IDS, patterns, discount)
        ours = model.probabilities(one, model.levels(one))
        for pattern in patterns:
            expected = [by_hand(model, rows.tolist(), pattern, text[:at], text[at]) for at in range(1, len(text))]
            assert ours[pattern][0] == pytest.approx(expected, rel=1e-12), pattern
        asked = KneserNey(rows, IDS, patterns, DISCOUNT, asked=one)  # what it leaves out is not looked up
        asked.discounts = model.discounts
        for pattern, p in asked.probabilities(one, asked.levels(one)).items():
            assert np.array_equal(p, ours[pattern])


def test_probabilities_over_a_large_vocabulary_sum_to_one() -> None:
    rows = zipf(20_000, GPT2_IDS).reshape(-1, 100)
    models, every = NgramModels(rows, GPT2_IDS), np.arange(GPT2_IDS)
    assert math.isclose(models.unigram.sum(), 1, rel_tol=1e-9)
    for context in ([*rows[3, 5:9]], [GPT2_IDS - 1, *rows[7, 1:4]]):
        texts = np.column_stack([np.tile(context, (GPT2_IDS, 1)), every])
        for model in (models.bigram, models.trigram, models.order_5):
            p = model.score([texts])[0].reshape(GPT2_IDS, -1)[:, -1]
            assert p.min() > 0
            assert math.isclose(p.sum(), 1, rel_tol=1e-9)


def test_scores_every_token_after_the_first() -> None:
    models, held_out = NgramModels(zipf(2_000, 30).reshape(20, 100), 30), zipf(50, 30, 1)
    scores = models.losses(held_out, 8)
    assert scores["uniform"] == math.log(30)
    assert scores["unigram"] == pytest.approx(-np.log(models.unigram[held_out[1:]]).mean())
    two = [models.bigram.score([held_out[None, i - 1 : i + 1]])[0][0] for i in range(1, 50)]
    three = [models.trigram.score([held_out[None, i - 2 : i + 1]])[0][1] for i in range(2, 50)]
    assert scores["kn2"] == pytest.approx(-np.log(two).mean())
    assert scores["kn3"] == pytest.approx(-np.log([two[0], *three]).mean())
    starts = [(i - 1) // 8 * 8 for i in range(1, 50)]
    five = [models.order_5.score([held_out[None, a : i + 1]])[0][-1] for i, a in enumerate(starts, start=1)]
    assert scores["kn5"] == pytest.approx(-np.log(five).mean())


# --- mixed into a network ---------------------------------------------------------------------------------------------


def test_network_and_ngrams_sum_to_one() -> None:
    """Every target's probability is the interpolation by the words of the formula, and over all ids it sums to 1."""
    network = build(replace(KINDS["pointer"], vocab_size=7, context_length=8))
    stream = np.cumsum(np.random.default_rng(0).choice([1, 1, 1, 2], 900)) % 7
    model = KneserNey(stream[:400].reshape(20, 20), 7, neighbours(ORDER))
    dev, test = stream[400:640], stream[640:]
    bytes_of = np.ones(7, dtype=np.int64)
    scored = {
        text: ngram.score_both(model, tokens, evaluate(network, tokens, bytes_of, 8), 8)
        for text, tokens in (("dev", dev), ("test", test))
    }
    fitted = ngram.fit_weights(scored["dev"])
    assert ngram.mix(scored["test"], scored["dev"])[0] == ngram.mixed_losses(scored["test"], fitted).mean()
    assert ngram.mix(scored["dev"])[1] == tuple(fitted)
    weights = np.linspace(0.1, 0.9, ORDER)
    for at in (1, 4, 8):  # targets of the first sequence
        with torch.no_grad():
            logits = network(torch.from_numpy(dev[None, :at]).long())[0, -1]
        q = logits.double().softmax(0).numpy()
        texts = np.array([[*dev[:at], y] for y in range(7)])
        counted, known = (array.reshape(7, -1)[:, -1] for array in model.score([texts]))
        assert len(set(known)) == 1, "the weight does not depend on the target"
        w = weights[known[0]]
        p = (1 - w) * q + w * counted
        assert p.sum() == pytest.approx(1, rel=1e-9)
        assert ngram.mixed_losses(scored["dev"], weights)[at - 1] == pytest.approx(-np.log(p[dev[at]]), rel=1e-6)


@given(st.integers(0, 99))
@settings(max_examples=8)
def test_fitted_weights_are_the_best_and_halves_do_not_see_each_other(seed: int) -> None:
    draw = np.random.default_rng(seed)
    known = draw.integers(0, ORDER - 1, 400)  # the longest context never occurs
    scored = ngram.Scored(draw.random(400), draw.random(400) ** (known + 1), known, np.arange(400) // 10)
    weights = ngram.fit_weights(scored)
    assert weights[ORDER - 1] == ngram.FIRST
    for length in range(ORDER - 1):
        for step in (-0.02, 0.02):
            moved = weights.copy()
            moved[length] = min(max(moved[length] + step, 1e-9), 1 - 1e-9)
            assert ngram.mixed_losses(scored, weights).mean() <= ngram.mixed_losses(scored, moved).mean() + 1e-9
    before, changed = ngram.mix(scored)[0], scored.sequence % 2 == 0
    other = replace(scored, network=np.where(changed, 0.5, scored.network))
    even = ngram.mixed_losses(scored.part(changed), ngram.fit_weights(scored.part(~changed)))
    odd = ngram.mixed_losses(scored.part(~changed), ngram.fit_weights(scored.part(changed)))
    assert before == pytest.approx((even.sum() + odd.sum()) / 400)
    assert ngram.mix(other)[0] != before


# --- the best counting (tools/) ---------------------------------------------------------------------------------------


@given(rows_of(), rows_of(2), st.lists(st.integers(0, IDS - 1), max_size=8), st.booleans())
@settings(max_examples=16)
def test_the_best_counting_sums_to_one(
    rows: np.ndarray, held_out: np.ndarray, history: list[int], with_network: bool
) -> None:
    torch.manual_seed(0)
    network = Transformer(ModelConfig(8, 2, 1, 16, IDS)).double() if with_network else None
    model = Mixture(rows, IDS, model=network)
    model.fit([held_out])
    texts = np.array([[0, *history, y] for y in range(IDS)])
    parts, features, _ = model.parts(texts)
    assert np.isfinite(features).all()
    last = parts.reshape(len(parts), IDS, -1)[:, :, -1]
    assert last.sum(axis=1) == pytest.approx(np.ones(len(last)), rel=1e-9)
    for p in model.probabilities(texts):
        assert p[:, -1].min() > 0
        assert math.isclose(p[:, -1].sum(), 1, rel_tol=1e-9)
