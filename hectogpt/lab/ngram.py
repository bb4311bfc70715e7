"""N-gram baselines: models of token ids that count exactly the tokens that a run reads, on the run's held-out tokens.

From weak to strong: uniform, unigram, Kneser-Ney bigram and trigram (in this file), modified Kneser-Ney of order 5, and
a mixture of n-grams, gaps and caches, which is the best counting here. A network with a loss above a model's has
learned less than these counts. No n-gram crosses the edge of a training row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.lab.ngram_mixture import mixture_losses
from hectogpt.lab.ngram_modified import ADDED, find
from hectogpt.training.evaluate import SEQ_LEN

DISCOUNT = 0.75  # subtracted from every n-gram's count; what it frees goes to the shorter context's distribution


@dataclass(frozen=True)
class NgramLosses:
    """Held-out cross entropy of the n-gram baselines, in nats per token.

    kn2, kn3: Kneser-Ney with one fixed discount. mkn5: modified Kneser-Ney of order 5, its discounts fitted on held-out
    text. best: the mixture of n-grams, gaps and caches (`ngram_mixture.Mixture`). Runs of earlier versions have no mkn5
    and no best.
    """

    uniform: float
    unigram: float
    kn2: float
    kn3: float
    mkn5: float
    best: float


class _Table:
    """Counts of n-grams as sorted int64 keys, context * vocab + next id; per context the sum and the number of them."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray, vocab: int) -> None:
        self.vocab, self.keys, self.counts = vocab, keys, counts
        self.contexts, start, self.kinds = np.unique(keys // vocab, return_index=True, return_counts=True)
        self.totals = np.add.reduceat(counts, start) if len(keys) else np.zeros(0, np.int64)

    def interpolate(self, context: np.ndarray, y: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """max(c - D, 0) / total + (D kinds / total) shorter, or `shorter` where the context never occurred."""
        if not len(self.keys):
            return shorter
        at, found = find(self.contexts, context)
        total = np.where(found, self.totals[at], 1)
        back_off = np.where(found, DISCOUNT * self.kinds[at] / total, 1.0)
        at, found = find(self.keys, context * self.vocab + y)
        discounted = np.where(found, self.counts[at] - DISCOUNT, 0.0)
        return discounted / total + back_off * shorter


class KneserNey:
    """Interpolated Kneser-Ney (Chen and Goodman 1999, one discount) over token ids.

    tokens: ids [rows, seq_len] or [n]; n-grams lie within a row. Let c be counts, m_y the number of distinct ids before
    y, V the vocabulary, a = ADDED and D = DISCOUNT. A table of n-grams interpolates with a shorter context's
    distribution as max(c - D, 0) / total + (D kinds / total) shorter.

    unigram: p_y = (c_y + a) / (N + a V). continuation: p_y = (m_y + a) / sum(m + a).
    bigram: counts of pairs, interpolated with the continuation.
    trigram: counts of triples, interpolated with a bigram that counts, for (x, y), the distinct ids before it.

    Raises UserError (DATA) without tokens or for ids outside the vocabulary.
    """

    def __init__(self, tokens: np.ndarray, vocab: int) -> None:
        rows = np.atleast_2d(np.asarray(tokens)).astype(np.int64)
        if rows.size == 0:
            raise UserError(
                "no tokens to count", why="the n-gram baselines need the run's training tokens", code=errors.DATA
            )
        if not (rows.min() >= 0 and rows.max() < vocab):
            raise UserError(
                f"token id {rows.max() if rows.max() >= vocab else rows.min()} with a vocabulary of {vocab}",
                why="ids count from 0 and stay below the vocabulary",
                code=errors.DATA,
            )
        self.vocab = vocab
        counts = np.bincount(rows.ravel(), minlength=vocab)
        self._unigram = (counts + ADDED) / (rows.size + ADDED * vocab)
        pairs, pair_counts = np.unique(rows[:, :-1] * vocab + rows[:, 1:], return_counts=True)
        self._pairs = _Table(pairs, pair_counts, vocab)
        before = np.bincount(pairs % vocab, minlength=vocab) + ADDED
        self._continuation = before / before.sum()
        triples, triple_counts = np.unique(
            (rows[:, :-2] * vocab + rows[:, 1:-1]) * vocab + rows[:, 2:], return_counts=True
        )
        self._triples = _Table(triples, triple_counts, vocab)
        self._continued = _Table(*np.unique(triples % vocab**2, return_counts=True), vocab)

    def unigram(self, y: np.ndarray) -> np.ndarray:
        """p(y), of y's shape."""
        return self._unigram[y]

    def bigram(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """p(y | x), elementwise over int64 arrays of one shape."""
        return self._pairs.interpolate(x, y, self._continuation[y])

    def trigram(self, w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """p(y | w, x), elementwise over int64 arrays of one shape."""
        shorter = self._continued.interpolate(x, y, self._continuation[y])
        return self._triples.interpolate(w * self.vocab + x, y, shorter)


def ngram_losses(
    train_tokens: np.ndarray,
    held_out: np.ndarray,
    vocab: int,
    fit_on: np.ndarray | None = None,
    seq_len: int = SEQ_LEN,
) -> NgramLosses:
    """Count `train_tokens` ([rows, seq_len] or [n]) and score every token of `held_out` ([n]) after the first.

    fit_on: the held-out text that `mkn5` and `best` are fitted on (dev, where test is scored); None: each half of
    `held_out` is scored with what the other half gave. seq_len: `mkn5` and `best` see what a network sees, the tokens
    before the target in sequences of this length. The bigram and the trigram take their contexts from the whole stream;
    the second token has only one token before it, so the bigram scores it in place of the trigram.

    On 819,200 training tokens and 115,000 held-out ones this takes about ten seconds of processor time.
    Raises UserError (DATA) for fewer than two held-out tokens or ids outside the vocabulary.
    """
    stream = _checked(held_out, vocab)
    model = KneserNey(train_tokens, vocab)
    fitted = None if fit_on is None else _checked(fit_on, vocab)
    rows = np.atleast_2d(np.asarray(train_tokens)).astype(np.int64)
    mkn5, best = mixture_losses(rows, stream, vocab, seq_len, fitted)
    return NgramLosses(
        uniform=math.log(vocab),
        unigram=_cross_entropy(model.unigram(stream[1:])),
        kn2=_cross_entropy(model.bigram(stream[:-1], stream[1:])),
        kn3=_cross_entropy(_trigram_probabilities(model, stream)),
        mkn5=mkn5,
        best=best,
    )


def loss_standard_error(train_tokens: np.ndarray, held_out: np.ndarray, vocab: int) -> float:
    """Standard error of the trigram's loss on `held_out` as an estimate of its loss on more text of the same kind.

    The tokens' losses are taken to be independent. A network of similar loss has a similar standard error. The
    arguments and errors are those of `ngram_losses`.
    """
    stream = _checked(held_out, vocab)
    losses = -np.log(_trigram_probabilities(KneserNey(train_tokens, vocab), stream))
    return float(losses.std() / math.sqrt(len(losses)))


def _checked(held_out: np.ndarray, vocab: int) -> np.ndarray:
    stream = np.asarray(held_out).astype(np.int64)
    if len(stream) < 2:
        raise UserError(f"{len(stream)} held-out tokens", why="scoring takes at least 2", code=errors.DATA)
    if not (stream.min() >= 0 and stream.max() < vocab):
        what = f"held-out token id {stream.max()} with a vocabulary of {vocab}"
        raise UserError(what, why="ids count from 0 and stay below the vocabulary", code=errors.DATA)
    return stream


def _trigram_probabilities(model: KneserNey, stream: np.ndarray) -> np.ndarray:
    """Of every token after the first; of the second token the bigram's."""
    second = model.bigram(stream[:1], stream[1:2])
    return np.concatenate([second, model.trigram(stream[:-2], stream[1:-1], stream[2:])])


def _cross_entropy(probabilities: np.ndarray) -> float:
    return float(-np.log(probabilities).mean())
