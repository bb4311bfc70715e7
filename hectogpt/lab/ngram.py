"""N-gram models of exactly the tokens that a run reads: unigrams, Kneser-Ney of orders 2, 3 and 5.

A network whose loss is above an n-gram model's has learned less than these counts. No n-gram
crosses the edge of a training row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.training.evaluate import SEQ_LEN, cut

# A context: offsets of its tokens from the one before the target. (0,) is that token, (0, 1) that
# and the one before, (1,) the one behind a gap. A pattern without its last offset is the next
# shorter context.
Pattern = tuple[int, ...]

# added to counts of single tokens and of what they follow, so that no id has probability 0
ADDED = 0.1
DISCOUNT = 0.75  # of the bigram and the trigram, subtracted from every count
ORDER = 5  # tokens of the longest n-gram
LEAST = 0.01  # of a discount, so that every token keeps a probability
MOST = np.array([1.0, 2.0, 3.0])  # a discount is not larger than the count it is taken from


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
        rows = np.atleast_2d(check_ids(tokens, vocab, least=1))
        self.vocab = vocab
        self.unigram = (np.bincount(rows.ravel(), minlength=vocab) + ADDED) / (
            rows.size + ADDED * vocab
        )
        self.bigram = KneserNey(rows, vocab, neighbours(2), DISCOUNT)
        self.trigram = KneserNey(rows, vocab, neighbours(3), DISCOUNT)
        self.order_5 = KneserNey(rows, vocab, neighbours(ORDER))

    def nats(self, held_out: np.ndarray, seq_len: int = SEQ_LEN) -> dict[str, np.ndarray]:
        """Nats of every token after the first by each model, float64 [n - 1].

        Args:
            held_out: ids [n], n at least 2.
            seq_len: order 5 sees what a network sees, the tokens before the target in sequences of
                this length. Bigram and trigram take their contexts from the whole stream.

        "kn2" and "kn3" are Kneser-Ney with one fixed discount; "kn5" is modified Kneser-Ney of
        order 5, with discounts by formula. Raises UserError (DATA) for tokens that cannot be
        scored.
        """
        stream = check_ids(held_out, self.vocab)
        probabilities = {
            "unigram": self.unigram[stream[1:]],
            "kn2": self.bigram.score([stream[None]])[0],
            "kn3": self.trigram.score([stream[None]])[0],
            "kn5": self.order_5.score(cut(stream, seq_len))[0],
        }
        probabilities["kn3"][0] = probabilities["kn2"][0]  # before the second token there is one
        return {name: -np.log(p) for name, p in probabilities.items()}

    def losses(self, held_out: np.ndarray, seq_len: int = SEQ_LEN) -> dict[str, float]:
        """The mean of `nats` for each model, and the loss of a uniform guess."""
        means = {name: float(nats.mean()) for name, nats in self.nats(held_out, seq_len).items()}
        return {"uniform": math.log(self.vocab)} | means


def check_ids(ids: np.ndarray, vocab: int, least: int = 2) -> np.ndarray:
    """The ids as int64.

    Raises UserError (DATA) for fewer than `least` ids and for ids outside the vocabulary.
    """
    ids = np.asarray(ids).astype(np.int64)
    if ids.size < least:
        raise UserError(f"{ids.size} tokens", why=f"this takes at least {least}", code=errors.DATA)
    outside = ids[(ids < 0) | (ids >= vocab)]
    if outside.size:
        why = "the tokens come from a different tokenizer"
        raise UserError(
            f"token id {outside.max()} with a vocabulary of {vocab}", why=why, code=errors.DATA
        )
    return ids


# --- Kneser-Ney


def find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Look up `wanted` in sorted `keys`.

    Returns indices (arbitrary where a key is absent), and True where it is present.
    """
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    return at, (keys[at] == wanted) if len(keys) else np.zeros(wanted.shape, bool)


@dataclass(frozen=True)
class Level:
    """Counts from the table of one pattern for the targets of some rows, arrays [rows, targets].

    Attributes:
        count: how often the target followed its context.
        total: how many tokens followed that context; 0 where it never occurred.
        kinds: [3, rows, targets], how many different tokens followed it once, twice, more often.
    """

    count: np.ndarray
    total: np.ndarray
    kinds: np.ndarray

    def interpolate(self, discounts: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """Probabilities: (c - D(c)) / total + (D kinds / total) shorter.

        Where the context never occurred, they are `shorter`.

        Args:
            discounts: [3], D for a count of 1, of 2, and of 3 or more.
            shorter: the probabilities by the next shorter context.
        """
        total = np.maximum(self.total, 1)
        kept = (self.count - np.concatenate(([0.0], discounts))[np.minimum(self.count, 3)]) / total
        return np.where(self.total > 0, kept + self.back_off(discounts) * shorter, shorter)

    def back_off(self, discounts: np.ndarray) -> np.ndarray:
        """The weight of the shorter context's distribution."""
        mass = np.tensordot(discounts, self.kinds, 1) / np.maximum(self.total, 1)
        return np.where(self.total > 0, mass, 1.0)


class NgramTable:
    """Counts of the tokens after each context of one pattern.

    Args:
        contexts: [rows, targets], the index of each target's context; -1 at the start of a row,
            where the context is incomplete.
        targets: [rows, targets], token ids.
        vocab: the size of the vocabulary.

    `counts` are those of (context, target) entries, in the order of `keys`.
    """

    def __init__(self, contexts: np.ndarray, targets: np.ndarray, vocab: int) -> None:
        self.vocab = vocab
        self.keys, self.counts = np.unique(
            (contexts * vocab + targets)[contexts >= 0], return_counts=True
        )
        self._set_totals()

    def count_contexts_of(self, longer: NgramTable, extensions: np.ndarray) -> None:
        """Replace the counts by Kneser and Ney's continuation counts.

        The count of an entry is then the number of different entries of the longer pattern that
        end in it.

        Args:
            longer: the table of the longer pattern.
            extensions: for each context of the longer pattern, the index of its shorter context
                times `vocab` plus the token before that.
        """
        ends = (
            extensions[longer.keys // self.vocab] // self.vocab * self.vocab
            + longer.keys % self.vocab
        )
        self.counts = np.bincount(np.searchsorted(self.keys, ends), minlength=len(self.keys))
        self._set_totals()

    def _set_totals(self) -> None:
        contexts = self.keys // self.vocab
        size = int(contexts.max(initial=-1)) + 1
        self.totals = np.bincount(contexts, self.counts, size).astype(np.int64)
        kinds = (self.counts == 1, self.counts == 2, self.counts >= 3)
        self.kinds = np.stack([np.bincount(contexts, kind, size) for kind in kinds])

    def look_up(self, contexts: np.ndarray, targets: np.ndarray) -> Level:
        """Counts for these targets after these contexts; a context of -1 never occurred."""
        if not len(self.totals):
            zeros = np.zeros(contexts.shape, np.int64)
            return Level(zeros, zeros, np.zeros((3, *contexts.shape)))
        # The last contexts may have nothing after them.
        known = (contexts >= 0) & (contexts < len(self.totals))
        at, found = find(self.keys, np.where(known, contexts * self.vocab + targets, -1))
        context = np.where(known, contexts, 0)
        return Level(
            np.where(found, self.counts[at], 0),
            np.where(known, self.totals[context], 0),
            np.where(known, self.kinds[:, context], 0.0),
        )

    def formula(self) -> np.ndarray:
        """Chen and Goodman's discounts for counts of 1, of 2, and of 3 or more.

        From the numbers n_i of entries with a count of i: Y = n1 / (n1 + 2 n2), D_i = i - (i + 1)
        Y n_(i+1) / n_i.
        """
        n = [max(int((self.counts == i).sum()), 1) for i in (1, 2, 3, 4)]
        y = n[0] / (n[0] + 2 * n[1])
        raw = [i + 1 - (i + 2) * y * n[i + 1] / n[i] for i in range(3)]
        return np.clip(raw, LEAST, MOST)


class KneserNey:
    """Interpolated Kneser-Ney over token ids (Chen and Goodman 1999).

    Args:
        rows: training ids [rows, seq_len], each below `vocab`.
        vocab: the size of the vocabulary.
        patterns: the contexts; each comes after the next shorter one.
        discount: one discount for all counts. None is modified Kneser-Ney: three for each pattern,
            by its formula.

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
    ) -> None:
        rows = rows.astype(np.int64)
        self.vocab = vocab
        self.patterns = patterns
        self._extensions: dict[Pattern, np.ndarray] = {}
        contexts = self._contexts(rows)
        self.tables = {
            pattern: NgramTable(contexts[pattern], rows[:, 1:], vocab) for pattern in patterns
        }
        self.neighbours = [
            pattern for pattern in patterns if pattern == tuple(range(len(pattern)))
        ]
        for shorter, longer in pairwise(self.neighbours):
            self.tables[shorter].count_contexts_of(self.tables[longer], self._extensions[longer])
        after = (
            np.bincount(np.unique(rows[:, :-1] * vocab + rows[:, 1:]) % vocab, minlength=vocab)
            + ADDED
        )
        self.continuation = after / after.sum()
        self.discounts = {
            pattern: table.formula() if discount is None else np.full(3, discount)
            for pattern, table in self.tables.items()
        }

    def _contexts(self, rows: np.ndarray) -> dict[Pattern, np.ndarray]:
        """The index of each target's context by each pattern, [rows, n - 1].

        The index is -1 for an unknown context and where the row is too short. The first call, with
        the training rows, determines which contexts are known.
        """
        contexts: dict[Pattern, np.ndarray] = {}
        for pattern in self.patterns:
            tokens = np.full((len(rows), rows.shape[1] - 1), -1)
            tokens[:, pattern[-1] :] = rows[:, : max(rows.shape[1] - 1 - pattern[-1], 0)]
            contexts[pattern] = tokens
            if len(pattern) > 1:
                nearer = contexts[pattern[:-1]]
                keys = np.where((nearer >= 0) & (tokens >= 0), nearer * self.vocab + tokens, -1)
                if pattern not in self._extensions:
                    known, places = np.unique(keys, return_inverse=True)
                    self._extensions[pattern] = known[known >= 0]
                    # -1 stays -1.
                    contexts[pattern] = places.reshape(keys.shape) - int((known < 0).sum())
                else:
                    at, found = find(self._extensions[pattern], keys)
                    contexts[pattern] = np.where(found, at, -1)
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
        """p of every token after the first by each pattern, arrays [rows, n - 1].

        The key () stands for no context.
        """
        found: dict[Pattern, np.ndarray] = {(): self.continuation[rows[:, 1:]]}
        for pattern, level in levels.items():
            found[pattern] = level.interpolate(self.discounts[pattern], found[pattern[:-1]])
        return found

    def score(self, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """p of every token after the first of each row, and the number of known tokens before it.

        Args:
            parts: arrays of rows, as `cut` gives them.

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
