"""N-gram models of exactly the tokens that a run reads: unigrams, Kneser-Ney of orders 2, 3 and 5.

A network whose loss is above an n-gram model's has learned less than simple counting. No n-gram
crosses the edge of a training row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from hectogpt.data.tokenizer import check_ids
from hectogpt.errors import DataError
from hectogpt.training.evaluate import SEQ_LEN, EvalResult, cut

# A context, as the offsets of its tokens, counted back from the token before the target: (0,) is
# that token, (0, 1) the last two tokens, (1,) only the second to last. A pattern without its last
# offset is the next shorter context.
Pattern = tuple[int, ...]

# added to the count of each token, and to the number of different tokens before it, so that no id
# has probability 0
ADDED = 0.1
DISCOUNT = 0.75  # subtracted from every count in the bigram and trigram models
ORDER = 5  # tokens of the longest n-gram
LEAST = 0.01  # smallest discount; with 0, some tokens would have no probability
BLOCK = 1 << 20  # targets whose contexts are looked up at a time
HASH_BITS = 22
MOST = np.array([1.0, 2.0, 3.0])  # a discount is not larger than the count it is taken from
HALVINGS = 30  # bisections of the interval that contains a weight, 0 to 1 at first
FIRST = 0.2  # initial value of every weight w_k (see below); final if k never occurs


def neighbours(order: int) -> tuple[Pattern, ...]:
    """The contexts of 1, 2, ..., order - 1 neighbouring tokens."""
    return tuple(tuple(range(n)) for n in range(1, order))


class NgramModels:
    """All n-gram models of some tokens.

    Args:
        tokens: ids [rows, seq_len] or [n]; n-grams lie within a row.
        vocab: the size of the vocabulary.

    819,200 tokens take about five seconds of CPU time. Raises UserError (DATA) if there are no
    tokens or an id is outside the vocabulary.
    """

    def __init__(self, tokens: np.ndarray, vocab: int) -> None:
        rows = np.atleast_2d(checked(tokens, vocab, least=1))
        self.vocab = vocab
        self.unigram = unigram_of(rows, vocab)
        self.order_5 = KneserNey(rows, vocab, neighbours(ORDER))
        self.bigram = self.order_5.shorter(2, DISCOUNT)
        self.trigram = self.order_5.shorter(3, DISCOUNT)

    def nats(self, held_out: np.ndarray, seq_len: int = SEQ_LEN) -> dict[str, np.ndarray]:
        """The loss in nats of every token after the first, under each model, float64 [n - 1].

        Args:
            held_out: ids [n], n at least 2.
            seq_len: order 5 sees what a network sees, the tokens before the target in sequences of
                this length. The bigram and the trigram take theirs from the whole stream.

        "kn2" and "kn3" are Kneser-Ney with one fixed discount; "kn5" is modified Kneser-Ney of
        order 5, with discounts from a formula. Raises UserError (DATA) for tokens that cannot be
        scored.
        """
        stream = checked(held_out, self.vocab)
        probabilities = {
            "unigram": self.unigram[stream[1:]],
            "kn2": self.bigram.score([stream[None]])[0],
            "kn3": self.trigram.score([stream[None]])[0],
            "kn5": self.order_5.score(cut(stream, seq_len))[0],
        }
        # The second token has only one token before it, so the bigram scores it.
        probabilities["kn3"][0] = probabilities["kn2"][0]
        return {name: -np.log(p) for name, p in probabilities.items()}

    def losses(self, held_out: np.ndarray, seq_len: int = SEQ_LEN) -> dict[str, float]:
        """The mean of `nats` for each model, and the loss of a uniform guess."""
        means = {name: float(nats.mean()) for name, nats in self.nats(held_out, seq_len).items()}
        return {"uniform": math.log(self.vocab)} | means


def unigram_of(rows: np.ndarray, vocab: int) -> np.ndarray:
    """The probability of each id, from its frequency in the rows, float64 [vocab]."""
    return (np.bincount(rows.ravel(), minlength=vocab) + ADDED) / (rows.size + ADDED * vocab)


def checked(ids: np.ndarray, vocab: int, least: int = 2) -> np.ndarray:
    """The ids as int64.

    Raises UserError (DATA) for fewer than `least` ids and for ids outside the vocabulary.
    """
    ids = np.asarray(ids).astype(np.int64)
    if ids.size < least:
        raise DataError(f"{ids.size} tokens", why=f"the minimum is {least}")
    check_ids(ids.ravel(), vocab, "the tokens")
    return ids


# --- Kneser-Ney


def find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Look up `wanted` in sorted `keys`.

    Returns the index of each wanted key (arbitrary if it is absent), and True where it is present.
    """
    if len(keys) and keys[0] >= 0 and keys[-1] < wanted.size:  # a table is faster than a search
        table = np.full(keys[-1] + 2, -1)
        table[keys] = np.arange(len(keys))
        at = table[np.where((wanted >= 0) & (wanted <= keys[-1]), wanted, -1)]
        return np.maximum(at, 0), at >= 0
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    return at, (keys[at] == wanted) if len(keys) else np.zeros(wanted.shape, bool)


def find_few(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Look up many integers in few sorted keys.

    Returns the positions (int64) at which `wanted` holds a key, and the index of that key. A hash
    rules out most positions before the search.
    """
    if len(keys) and keys[-1] < wanted.size:
        index, found = find(keys, wanted)
        return np.flatnonzero(found), index[found]
    is_hash_of_key = np.zeros(1 << HASH_BITS, bool)
    is_hash_of_key[_hash(keys)] = True
    at = np.flatnonzero(is_hash_of_key[_hash(wanted)])
    index, found = find(keys, wanted[at])
    return at[found], index[found]


def _hash(keys: np.ndarray) -> np.ndarray:
    """Fibonacci hashing: the highest bits of a product modulo 2**64."""
    return (keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - HASH_BITS)


def _starts(ordered: np.ndarray) -> np.ndarray:
    """The indices at which a new value begins in a sorted array."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])


def _targets(rows: np.ndarray) -> np.ndarray:
    """Indices into the flattened rows of every token except the first of each row."""
    return np.arange(rows.size, dtype=np.int32).reshape(rows.shape)[:, 1:].ravel()


def count_runs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of an array, sorted, and how often each occurs. Sorts the array."""
    keys.sort()
    starts = _starts(keys)
    return keys[starts], np.diff(starts, append=len(keys))


@dataclass(frozen=True)
class Level:
    """Counts from the table of one pattern for the targets of some rows, arrays [rows, targets].

    Attributes:
        count: how often the target followed its context.
        total: how many tokens followed that context; 0 where it never occurred.
        kinds: how many different tokens followed it once, twice, or more often, in that order;
            [3, rows, targets].
    """

    count: np.ndarray
    total: np.ndarray
    kinds: np.ndarray

    def interpolate(self, discounts: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """Probabilities: (c - D(c)) / total + (D kinds / total) shorter.

        Where the context never occurred, they are `shorter`.

        Args:
            discounts: [3], D for a count of 1, of 2, and of 3 or more.
            shorter: the probabilities given the next shorter context.
        """
        total = np.maximum(self.total, 1)
        kept = (self.count - np.concatenate(([0.0], discounts))[np.minimum(self.count, 3)]) / total
        return kept + self.back_off(discounts) * shorter

    def back_off(self, discounts: np.ndarray) -> np.ndarray:
        """The weight of the shorter context's distribution."""
        mass = np.tensordot(discounts, self.kinds, 1) / np.maximum(self.total, 1)
        return np.where(self.total > 0, mass, 1.0)


class NgramTable:
    """Counts of the tokens after each context of one pattern.

    Args:
        keys: context times `vocab` plus the token after it; sorted, without duplicates.
        counts: how often each key occurs.
        vocab: the size of the vocabulary.
        asked: the only keys that will be looked up, sorted. None allows any key.
    """

    def __init__(
        self, keys: np.ndarray, counts: np.ndarray, vocab: int, asked: np.ndarray | None
    ) -> None:
        self.vocab = vocab
        contexts = keys // vocab
        size = int(contexts.max(initial=-1)) + 1
        self.totals = np.bincount(contexts, counts, size).astype(np.int64)
        kinds = (counts == 1, counts == 2, counts >= 3)
        self.kinds = np.stack([np.bincount(contexts, kind, size) for kind in kinds])
        self.formula = formula_discounts(counts)
        if asked is not None and len(keys):
            at, found = find(keys, asked)
            keys = asked
            counts = np.where(found, counts[at], 0)
        self.keys = keys
        self.counts = counts

    def look_up(self, contexts: np.ndarray, targets: np.ndarray) -> Level:
        """Counts for these targets after these contexts; a context of -1 never occurred."""
        if not len(self.totals):
            zeros = np.zeros(contexts.shape, np.int64)
            return Level(zeros, zeros, np.zeros((3, *contexts.shape)))
        # The last contexts may have no token after them; then they are not in `totals`.
        known = (contexts >= 0) & (contexts < len(self.totals))
        at, found = find(self.keys, np.where(known, contexts * self.vocab + targets, -1))
        context = np.where(known, contexts, 0)
        return Level(
            np.where(found, self.counts[at], 0),
            np.where(known, self.totals[context], 0),
            np.where(known, self.kinds[:, context], 0.0),
        )


def formula_discounts(counts: np.ndarray) -> np.ndarray:
    """Chen and Goodman's discounts for counts of 1, of 2, and of 3 or more.

    If n_i is the number of entries with a count of i, then Y = n1 / (n1 + 2 n2) and
    D_i = i - (i + 1) Y n_(i+1) / n_i.
    """
    n = [max(int((counts == i).sum()), 1) for i in (1, 2, 3, 4)]
    y = n[0] / (n[0] + 2 * n[1])
    raw = [i + 1 - (i + 2) * y * n[i + 1] / n[i] for i in range(3)]
    return np.clip(raw, LEAST, MOST)


class KneserNey:
    """Interpolated Kneser-Ney over token ids (Chen and Goodman 1999).

    Args:
        rows: training ids [rows, seq_len], each below `vocab`.
        vocab: the size of the vocabulary.
        patterns: the contexts; each comes after the next shorter one.
        discount: one discount for all counts. None means modified Kneser-Ney: three discounts for
            each pattern, from a formula.
        asked: the only rows [rows, n] that can be scored. Only the counts that these rows need are
            kept, so that tens of millions of tokens fit in 2 GB. The formula would then see only
            the contexts in these rows, so give one discount, or fit discounts (best_counting.py).

    Without context, p_y = (m_y + a) / sum(m + a), where m_y is the number of different ids before
    y and a = ADDED. Each pattern interpolates with the next shorter one (`Level.interpolate`).
    Contexts of neighbouring tokens use continuation counts; the longest of them, and contexts with
    gaps, use counts of occurrences.
    """

    def __init__(
        self,
        rows: np.ndarray,
        vocab: int,
        patterns: tuple[Pattern, ...],
        discount: float | None = None,
        asked: np.ndarray | None = None,
    ) -> None:
        rows = np.ascontiguousarray(rows)
        self.vocab = vocab
        self.patterns = patterns
        self.neighbours = [p for p in patterns if p == tuple(range(len(p)))]
        self._extensions: dict[Pattern, np.ndarray] = {}
        self.tables: dict[Pattern, NgramTable] = {}
        self._occurrences: dict[Pattern, NgramTable] = {}  # occurrence counts, used by `shorter`
        if asked is None:
            for pattern, at, context in self._learn(rows):
                self._add(pattern, self._keys(pattern, rows, at, context), None)
        else:
            wanted = {
                pattern: np.unique(context * np.int64(vocab) + asked.ravel()[at])
                for pattern, at, context in self._learn(asked)
            }
            for pattern in patterns:
                blocks = np.array_split(_targets(rows), -(-rows.size // BLOCK))
                known = (self._known(pattern, rows, at) for at in blocks)
                keys = [self._keys(pattern, rows, at, context) for at, context in known]
                self._add(pattern, np.concatenate(keys), wanted[pattern])
        at = _targets(rows)
        flat = rows.ravel()
        pairs, _ = count_runs(flat[at - 1] + flat[at] * np.int64(vocab))
        after = np.bincount(pairs // vocab, minlength=vocab) + ADDED
        self.continuation = after / after.sum()
        self.discounts = {
            pattern: table.formula if discount is None else np.full(3, discount)
            for pattern, table in self.tables.items()
        }

    def shorter(self, order: int, discount: float) -> KneserNey:
        """A model of fewer neighbouring tokens, with one discount, made from the same counts."""
        model = copy(self)
        model.patterns = neighbours(order)
        model.neighbours = list(model.patterns)
        last = model.patterns[-1]
        model.tables = {p: self.tables[p] for p in model.patterns} | {
            last: self._occurrences[last]
        }
        model.discounts = {pattern: np.full(3, discount) for pattern in model.patterns}
        return model

    def _learn(self, rows: np.ndarray) -> Iterator[tuple[Pattern, np.ndarray, np.ndarray]]:
        """Yield each pattern with its targets and their contexts, and remember the contexts.

        The targets are places in the rows that have enough tokens before them; the contexts are
        given by index.
        """
        at = _targets(rows)
        none = np.zeros(len(at), np.int32)
        kept: dict[Pattern, tuple[np.ndarray, np.ndarray]] = {(): (at, none)}
        for pattern in self.patterns:
            at, keys = self._extended(pattern, rows, *kept[pattern[:-1]])
            self._extensions[pattern], context = np.unique(keys, return_inverse=True)
            kept[pattern] = at, context.astype(np.int32)
            yield pattern, *kept[pattern]

    def _known(
        self, pattern: Pattern, rows: np.ndarray, at: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The places in `at` whose context is known, and the indices of the contexts."""
        if not pattern:
            return at, np.zeros(len(at), np.int32)
        at, keys = self._extended(pattern, rows, *self._known(pattern[:-1], rows, at))
        which, context = find_few(self._extensions[pattern], keys)
        return at[which], context

    def _extended(
        self, pattern: Pattern, rows: np.ndarray, at: np.ndarray, nearer: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The places in `at` with enough tokens before them, and the keys of their contexts.

        A key is the index of the next shorter context times `vocab` plus the token before it.
        """
        inside = at % rows.shape[1] > pattern[-1]
        at = at[inside]
        return at, nearer[inside] * np.int64(self.vocab) + rows.ravel()[at - 1 - pattern[-1]]

    def _keys(
        self, pattern: Pattern, rows: np.ndarray, at: np.ndarray, context: np.ndarray
    ) -> np.ndarray:
        """Keys of (context, target): context times `vocab` plus target.

        For neighbouring tokens, except the longest pattern, the key is then multiplied by `vocab`
        + 1, and the token before the context is added (`vocab` where the row begins).
        """
        flat = rows.ravel()
        keys = context * np.int64(self.vocab) + flat[at]
        if pattern not in self.neighbours[:-1]:
            return keys
        before = np.where(
            at % rows.shape[1] > len(pattern), flat[at - 1 - len(pattern)], self.vocab
        )
        return keys * (self.vocab + 1) + before

    def _add(self, pattern: Pattern, keys: np.ndarray, asked: np.ndarray | None) -> None:
        """Make a pattern's table from the keys of all its targets. Sorts the keys in place."""
        keys, counts = count_runs(keys)
        if pattern in self.neighbours[:-1]:
            has_before = keys % (self.vocab + 1) < self.vocab
            keys //= self.vocab + 1
            starts = _starts(keys)
            occurrences = np.add.reduceat(counts, starts) if len(starts) else counts
            self._occurrences[pattern] = NgramTable(keys[starts], occurrences, self.vocab, asked)
            keys, counts = count_runs(keys[has_before])  # Kneser and Ney's continuation counts
        self.tables[pattern] = NgramTable(keys, counts, self.vocab, asked)

    def _contexts(self, rows: np.ndarray) -> dict[Pattern, np.ndarray]:
        """The index of each target's context for each pattern, [rows, n - 1].

        The index is -1 for an unknown context and where the row is too short.
        """
        contexts: dict[Pattern, np.ndarray] = {
            (): np.zeros((len(rows), rows.shape[1] - 1), np.int64)
        }
        for pattern in self.patterns:
            tokens = np.full((len(rows), rows.shape[1] - 1), -1)
            tokens[:, pattern[-1] :] = rows[:, : max(rows.shape[1] - 1 - pattern[-1], 0)]
            nearer = contexts[pattern[:-1]]
            keys = np.where((nearer >= 0) & (tokens >= 0), nearer * self.vocab + tokens, -1)
            at, found = find(self._extensions[pattern], keys)
            contexts[pattern] = np.where(found, at, -1)
        del contexts[()]
        return contexts

    def levels(self, rows: np.ndarray) -> dict[Pattern, Level]:
        """The counts of every table for the tokens of `rows` [rows, n] after the first."""
        rows = rows.astype(np.int64)
        contexts = self._contexts(rows)
        return {
            pattern: table.look_up(contexts[pattern], rows[:, 1:])
            for pattern, table in self.tables.items()
        }

    def probabilities(
        self, rows: np.ndarray, levels: dict[Pattern, Level]
    ) -> dict[Pattern, np.ndarray]:
        """p of every token after the first, under each pattern, as arrays [rows, n - 1].

        The key () stands for no context.
        """
        found: dict[Pattern, np.ndarray] = {(): self.continuation[rows[:, 1:]]}
        for pattern, level in levels.items():
            found[pattern] = level.interpolate(self.discounts[pattern], found[pattern[:-1]])
        return found

    def score(self, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """p of every token after the first of each row, and the number of known tokens before it.

        Args:
            parts: arrays of rows, as `cut` returns them.

        Both results are [targets], in the order of the text. The known tokens are those of the
        longest context that has counts.
        """
        p = []
        known = []
        for rows in parts:
            levels = self.levels(rows)
            p.append(self.probabilities(rows, levels)[self.neighbours[-1]].ravel())
            lengths = [len(pattern) * (levels[pattern].total > 0) for pattern in self.neighbours]
            known.append(np.max(lengths, axis=0).ravel())
        return np.concatenate(p), np.concatenate(known)


# --- mixing n-grams into a network's scores, for the last row of a run's table
#
#     p(y) = (1 - w_k) q(y) + w_k c(y)
#
# q is the network's distribution. c is modified Kneser-Ney of order 5 on the tokens that the run
# read. k is the number of context tokens, 0 to 4, that have counts. q and c sum to 1 over the
# vocabulary and w_k does not depend on y, so p sums to 1. This is the interpolation of Jelinek and
# Mercer (1980). The weights are fitted on dev.


@dataclass(frozen=True)
class Scored:
    """Two probabilities for each target of a held-out text, as arrays in the order of the text.

    Attributes:
        network: probability under the network.
        other: probability under the other distribution.
        weight: k, the index of the weight, 0 to 4.
        sequence: the index of the sequence that the target belongs to.
    """

    network: np.ndarray
    other: np.ndarray
    weight: np.ndarray
    sequence: np.ndarray

    def part(self, chosen: np.ndarray) -> Scored:
        """The chosen targets only. chosen: bool [targets]."""
        return Scored(
            self.network[chosen], self.other[chosen], self.weight[chosen], self.sequence[chosen]
        )


def fit_weights(scored: Scored) -> np.ndarray:
    """The [ORDER] weights with the lowest loss on the scored text.

    The loss is convex in each weight, so the sign of its slope in the middle of an interval tells
    which half contains the best weight.
    """
    weights = np.full(ORDER, FIRST)
    for number in np.unique(scored.weight):
        part = scored.part(scored.weight == number)
        more = part.other - part.network
        low = 0.0
        high = 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            gains = (more / (part.network + middle * more)).mean() > 0
            low, high = (middle, high) if gains else (low, middle)
        weights[number] = (low + high) / 2
    return weights


def mixed_losses(scored: Scored, weights: np.ndarray) -> np.ndarray:
    """-log p of every target."""
    w = weights[scored.weight]
    return -np.log((1 - w) * scored.network + w * scored.other)


def mix(scored: Scored, fit_on: Scored | None = None) -> tuple[float, tuple[float, ...]]:
    """The loss of the mixture, in nats per token, and the weights w_0 to w_4.

    Args:
        scored: the text to score.
        fit_on: the text on which the weights are fitted (dev, when test is scored). None scores
            the odd sequences with weights fitted on the even ones and vice versa, so that no token
            influences the weights it is scored with; the returned weights are fitted on the whole
            text.
    """
    if fit_on is not None:
        weights = fit_weights(fit_on)
        return float(mixed_losses(scored, weights).mean()), tuple(weights.tolist())
    even = scored.sequence % 2 == 0
    total = 0.0
    for fitted, judged in ((even, ~even), (~even, even)):
        total += float(mixed_losses(scored.part(judged), fit_weights(scored.part(fitted))).sum())
    return total / len(even), tuple(fit_weights(scored).tolist())


def score_both(
    model: KneserNey, held_out: np.ndarray, found: EvalResult, seq_len: int = SEQ_LEN
) -> Scored:
    """Both probabilities of each token that `evaluate` scored: the network's and the n-grams'.

    The n-grams use sequences of `seq_len` tokens. So does the network, unless its context is
    shorter.
    """
    counted, known = model.score(cut(held_out, seq_len))
    return Scored(
        np.exp(-found.losses),
        counted,
        known,
        np.arange(len(counted)) // min(seq_len, len(counted)),
    )
