"""Modified Kneser-Ney over token ids: three discounts for each context, of neighbouring tokens or with gaps.

A context is a pattern of offsets from the token before the target: (0,) is that token, (0, 1) that and the one before,
(1, 2) the two behind a gap. A pattern interpolates with the pattern without its farthest offset, the empty one with how
many different tokens each token follows. Nothing crosses the edge of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Pattern = tuple[int, ...]
Discounts = np.ndarray  # [3]: subtracted from counts of 1, of 2, and of 3 or more

ADDED = 0.1  # added to counts of single tokens and of what they follow, so that no id has probability 0
ORDER = 5  # tokens of the longest n-gram
NEIGHBOURS: tuple[Pattern, ...] = tuple(tuple(range(n)) for n in range(1, ORDER))
GAPS: tuple[Pattern, ...] = ((1,), (2,), (3,), (0, 2), (1, 2), (0, 3), (0, 1, 3), (1, 2, 3))
LEAST = 0.01  # of a discount, so that every token keeps a probability
MOST = np.array([1.0, 2.0, 3.0])  # a discount is not larger than the count it is taken from


def find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of `wanted` in sorted `keys` (any index where absent), and whether each is there."""
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    return at, (keys[at] == wanted) if len(keys) else np.zeros(wanted.shape, bool)


@dataclass(frozen=True)
class Level:
    """What the table of one pattern says of the targets of some rows, arrays [rows, targets].

    count: of the target after its context. total: of all tokens after that context; 0 where it never occurred. kinds:
    [3, rows, targets], how many tokens follow it once, twice, more often.
    """

    count: np.ndarray
    total: np.ndarray
    kinds: np.ndarray

    def interpolate(self, discounts: Discounts, shorter: np.ndarray) -> np.ndarray:
        """(c - D(c)) / total + (D kinds / total) shorter, or `shorter` where the context never occurred."""
        total = np.maximum(self.total, 1)
        kept = (self.count - self._of_count(discounts)) / total
        return np.where(self.total > 0, kept + self.back_off(discounts) * shorter, shorter)

    def back_off(self, discounts: Discounts) -> np.ndarray:
        """The weight of the shorter context's distribution."""
        mass = np.tensordot(discounts, self.kinds, 1) / np.maximum(self.total, 1)
        return np.where(self.total > 0, mass, 1.0)

    def slopes(self, shorter: np.ndarray) -> np.ndarray:
        """[3, rows, targets]: the derivative of the probability by each discount, `shorter` held fixed."""
        total = np.maximum(self.total, 1)
        buckets = np.minimum(self.count, 3)
        return np.stack([(self.kinds[i] * shorter - (buckets == i + 1)) / total for i in range(3)])

    def _of_count(self, discounts: Discounts) -> np.ndarray:
        return np.concatenate(([0.0], discounts))[np.minimum(self.count, 3)]


class PatternTable:
    """Counts of the tokens after each context of one pattern.

    contexts: [rows, targets], the index of each target's context, -1 where the row begins too late. targets: the
    tokens. counts: of (context, target) entries, in the order of `keys`.
    """

    def __init__(self, contexts: np.ndarray, targets: np.ndarray, vocab: int) -> None:
        inside = contexts >= 0
        self.vocab, self._inside = vocab, inside
        keys = contexts[inside] * vocab + targets[inside]
        self.keys, self._first, self._entries, self.counts = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        self._tokens = targets
        self._set_totals()

    def count_contexts_of(self, longer: PatternTable) -> None:
        """Count, in place of occurrences, the different entries of a longer pattern that end in each entry of this one:
        Kneser and Ney's continuation counts."""
        entry_at = np.full(self._inside.shape, -1)
        entry_at[self._inside] = self._entries
        shorter = entry_at[longer._inside][longer._first]
        self.counts = np.bincount(shorter, minlength=len(self.keys))
        self._set_totals()

    def _set_totals(self) -> None:
        contexts = self.keys // self.vocab
        size = int(contexts.max(initial=-1)) + 1
        self.totals = np.bincount(contexts, self.counts, size).astype(np.int64)
        kinds = (self.counts == 1, self.counts == 2, self.counts >= 3)
        self.kinds = np.stack([np.bincount(contexts, kind, size) for kind in kinds])

    def forget_rows(self) -> None:
        """Free what only `count_contexts_of` needs."""
        del self._inside, self._first, self._entries, self._tokens

    def look_up(self, contexts: np.ndarray, targets: np.ndarray) -> Level:
        """What the table says of these targets after these contexts, -1 for a context that never occurred."""
        if not len(self.totals):
            zeros = np.zeros(contexts.shape, np.int64)
            return Level(zeros, zeros, np.zeros((3, *contexts.shape)))
        known = (contexts >= 0) & (contexts < len(self.totals))  # the last contexts may have nothing after them
        at, found = find(self.keys, np.where(known, contexts * self.vocab + targets, -1))
        context = np.where(known, contexts, 0)
        return Level(
            np.where(found, self.counts[at], 0),
            np.where(known, self.totals[context], 0),
            np.where(known, self.kinds[:, context], 0.0),
        )

    def formula(self) -> Discounts:
        """Chen and Goodman's estimate from the numbers n_i of entries with a count of i: Y = n1 / (n1 + 2 n2),
        D_i = i - (i + 1) Y n_(i+1) / n_i."""
        n = [max(int((self.counts == i).sum()), 1) for i in (1, 2, 3, 4)]
        y = n[0] / (n[0] + 2 * n[1])
        raw = [i + 1 - (i + 2) * y * n[i + 1] / n[i] for i in range(3)]
        return np.clip(raw, LEAST, MOST)


class ModifiedKneserNey:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1999) of order 5, and the same for contexts with gaps.

    rows: training ids [rows, seq_len], each below `vocab`. Neighbouring tokens have continuation counts below the
    highest order, as in the paper. A pattern with a gap has counts of occurrences; its discounts are the formula's.
    """

    def __init__(self, rows: np.ndarray, vocab: int) -> None:
        rows = rows.astype(np.int64)
        self.vocab = vocab
        self._extensions: dict[Pattern, np.ndarray] = {}
        self.tables: dict[Pattern, PatternTable] = {}
        contexts: dict[Pattern, np.ndarray] = {}
        for pattern in (*NEIGHBOURS, *GAPS):
            self._extend(contexts, rows, pattern)
            self.tables[pattern] = PatternTable(contexts[pattern], rows[:, 1:], vocab)
        for shorter, longer in pairwise(NEIGHBOURS):
            self.tables[shorter].count_contexts_of(self.tables[longer])
        for table in self.tables.values():
            table.forget_rows()
        after = np.bincount(np.unique(rows[:, :-1] * vocab + rows[:, 1:]) % vocab, minlength=vocab) + ADDED
        self.continuation = after / after.sum()
        self.discounts = {pattern: table.formula() for pattern, table in self.tables.items()}

    def _extend(self, contexts: dict[Pattern, np.ndarray], rows: np.ndarray, pattern: Pattern) -> None:
        """Add the contexts of a pattern, and of those that it is made from, to `contexts`; number new ones."""
        if pattern in contexts:
            return
        tokens = np.full((len(rows), rows.shape[1] - 1), -1)
        tokens[:, pattern[-1] :] = rows[:, : max(rows.shape[1] - 1 - pattern[-1], 0)]
        if len(pattern) == 1:
            contexts[pattern] = tokens
            return
        self._extend(contexts, rows, pattern[:-1])
        nearer = contexts[pattern[:-1]]
        keys = np.where((nearer >= 0) & (tokens >= 0), nearer * self.vocab + tokens, -1)
        if pattern not in self._extensions:
            known, places = np.unique(keys, return_inverse=True)
            self._extensions[pattern] = known[known >= 0]
            contexts[pattern] = places.reshape(keys.shape) - int((known < 0).sum())  # -1 stays -1
            return
        at, found = find(self._extensions[pattern], keys)
        contexts[pattern] = np.where(found, at, -1)

    def levels(self, rows: np.ndarray) -> dict[Pattern, Level]:
        """What every table says of the tokens of `rows` [rows, n] after the first: arrays [rows, n - 1]."""
        rows = rows.astype(np.int64)
        contexts: dict[Pattern, np.ndarray] = {}
        found = {}
        for pattern, table in self.tables.items():
            self._extend(contexts, rows, pattern)
            found[pattern] = table.look_up(contexts[pattern], rows[:, 1:])
        return found

    def probabilities(self, rows: np.ndarray, levels: dict[Pattern, Level]) -> dict[Pattern, np.ndarray]:
        """p of every token after the first by each pattern, arrays [rows, n - 1]; () is the continuation's."""
        found: dict[Pattern, np.ndarray] = {(): self.continuation[rows[:, 1:]]}
        for pattern, level in levels.items():
            found[pattern] = level.interpolate(self.discounts[pattern], found[pattern[:-1]])
        return found

    def fit(self, rows: Sequence[np.ndarray]) -> None:
        """Choose the discounts of neighbouring tokens with the lowest loss of order 5 on held-out rows, from the
        formula's on."""
        continuation = np.concatenate([self.continuation[part[:, 1:]].ravel() for part in rows])
        parts = [self.levels(part) for part in rows]
        levels = [
            Level(
                np.concatenate([part[pattern].count.ravel() for part in parts]),
                np.concatenate([part[pattern].total.ravel() for part in parts]),
                np.concatenate([part[pattern].kinds.reshape(3, -1) for part in parts], axis=1),
            )
            for pattern in NEIGHBOURS
        ]

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            """The loss and its gradient: backwards through the orders, each weighed by the back-offs above it."""
            discounts = flat.reshape(-1, 3)
            shorter = [continuation]
            for level, own in zip(levels, discounts, strict=True):
                shorter.append(level.interpolate(own, shorter[-1]))
            weight, gradient = -1 / (shorter[-1] * len(continuation)), np.zeros_like(discounts)
            for n in reversed(range(len(levels))):
                seen = np.where(levels[n].total > 0, weight, 0.0)
                gradient[n] = levels[n].slopes(shorter[n]) @ seen
                weight = weight * levels[n].back_off(discounts[n])
            return float(-np.log(shorter[-1]).mean()), gradient.ravel()

        start = np.concatenate([self.tables[pattern].formula() for pattern in NEIGHBOURS])
        bounds = [(LEAST, most) for _ in NEIGHBOURS for most in MOST]
        from scipy.optimize import minimize  # here: loading it takes half a second

        best = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 50}).x
        self.discounts |= dict(zip(NEIGHBOURS, best.reshape(-1, 3), strict=True))
