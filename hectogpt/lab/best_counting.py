"""The best predictor from counts: a mixture of n-grams of the training text and recent tokens.

The mixture reads what a network reads: the training text and, in a held-out text, the tokens
before the target in the same sequence. About 350 weights are fitted on held-out text; everything
else is counted. `python -m tools.research.ngrams` runs it for the records of the ladder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.optimize import minimize

from hectogpt.lab.ngram import LEAST, MOST, ORDER, KneserNey, Level, Pattern, neighbours
from hectogpt.model import Transformer
from hectogpt.model.transformer import evaluating
from hectogpt.training.evaluate import cut

NEIGHBOURS = neighbours(ORDER)
GAPS: tuple[Pattern, ...] = ((1,), (2,), (3,), (0, 2), (1, 2), (0, 3), (0, 1, 3), (1, 2, 3))
# Caches are distributions over the tokens that have occurred earlier in the sequence. Each is
# (number of last tokens that must match, factor for each token of distance).
CACHES: tuple[tuple[int, float], ...] = (
    (0, 1.0),
    (0, 0.99),
    (0, 0.95),
    (1, 0.995),
    (2, 0.995),
    (3, 0.995),
    (4, 1.0),
)
LONGEST = max(n for n, _ in CACHES)
# held-out tokens to fit on; a longer text is sampled in evenly spread sequences
FITTED = 1 << 17
STEPS = 80  # iterations of L-BFGS
GATE_VARIANCE = 0.1  # variance of the normal prior on the weights for a hidden state
ROWS = 8  # sequences that a network reads at a time


def fit_discounts(model: KneserNey, rows: Sequence[np.ndarray]) -> None:
    """Fit the discounts of neighbouring tokens by minimising the loss of order 5 on held-out rows.

    The fit starts from the formula's discounts.
    """
    continuation = np.concatenate([model.continuation[part[:, 1:]].ravel() for part in rows])
    parts = [model.levels(part) for part in rows]
    levels = [
        Level(
            np.concatenate([part[pattern].count.ravel() for part in parts]),
            np.concatenate([part[pattern].total.ravel() for part in parts]),
            np.concatenate([part[pattern].kinds.reshape(3, -1) for part in parts], axis=1),
        )
        for pattern in NEIGHBOURS
    ]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss and its gradient.

        The gradient is computed from the longest context to the shortest; each is weighted by the
        back-offs of the longer ones.
        """
        discounts = flat.reshape(-1, 3)
        shorter = [continuation]
        for level, own in zip(levels, discounts, strict=True):
            shorter.append(level.interpolate(own, shorter[-1]))
        weight = -1 / (shorter[-1] * len(continuation))
        gradient = np.zeros_like(discounts)
        for n in reversed(range(len(levels))):
            seen = np.where(levels[n].total > 0, weight, 0.0)
            gradient[n] = _slopes(levels[n], shorter[n]) @ seen
            weight = weight * levels[n].back_off(discounts[n])
        return float(-np.log(shorter[-1]).mean()), gradient.ravel()

    start = np.concatenate([model.tables[pattern].formula for pattern in NEIGHBOURS])
    bounds = [(LEAST, most) for _ in NEIGHBOURS for most in MOST]
    best = minimize(
        loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 50}
    ).x
    model.discounts |= dict(zip(NEIGHBOURS, best.reshape(-1, 3), strict=True))


def _slopes(level: Level, shorter: np.ndarray) -> np.ndarray:
    """[3, targets]: the derivative of the probability with respect to each discount, with
    `shorter` fixed.
    """
    total = np.maximum(level.total, 1)
    buckets = np.minimum(level.count, 3)
    return np.stack([(level.kinds[i] * shorter - (buckets == i + 1)) / total for i in range(3)])


class Mixture:
    """A mixture of distributions over token ids, weighted by a softmax of features.

    The distributions are modified Kneser-Ney models (orders 2 to 5, and contexts with gaps) and
    caches. A cache holds the tokens that followed the last n tokens at earlier places of the
    sequence (n = 0: all earlier tokens of the sequence), weighted by distance. If those n tokens
    have not occurred before, the next shorter cache is used. Every distribution sums to 1, and so
    do the weights and the mixture.

    The features are known before the target: how often the contexts occurred in training and in
    the sequence, how many different tokens followed them in training, and the position in the
    sequence.

    A trained network can be one more distribution. Its weight also depends on its last hidden
    state.
    """

    def __init__(
        self,
        rows: np.ndarray,
        vocab: int,
        asked: np.ndarray | None = None,
        model: Transformer | None = None,
    ) -> None:
        """Count the training tokens. Before `fit`, all distributions have equal weights.

        Args:
            rows: training ids [rows, seq_len].
            vocab: the size of the vocabulary.
            asked: the only rows that will be scored. Giving them saves memory and time.
            model: the network; None mixes counts only.
        """
        self.model = model
        self.counts = KneserNey(rows, vocab, (*NEIGHBOURS, *GAPS), asked=asked)
        n_parts = len(self.counts.tables) + len(CACHES) + (model is not None)
        n_features = 2 + 2 * len(NEIGHBOURS) + 2 * LONGEST
        self.weights = np.zeros((n_parts, n_features), np.float32)
        self.gate = np.zeros(0 if model is None else model.config.d_model, np.float32)

    def fit(self, held_out: Sequence[np.ndarray]) -> None:
        """Fit the discounts, then the weights, by minimising the loss on held-out sequences.

        At most FITTED tokens are used. The weights have a normal prior of variance 1
        (GATE_VARIANCE for those of the hidden state), so a short text moves them little.
        """
        held_out = _spread(held_out)
        fit_discounts(self.counts, held_out)
        found = [self.parts(rows) for rows in held_out]
        p, features, hidden = (np.concatenate(kind, axis=1) for kind in zip(*found, strict=True))
        n = p.shape[1]
        shape = self.weights.shape
        size = self.weights.size
        variances = np.repeat([1.0, GATE_VARIANCE], [size, self.gate.size])

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights, gate = np.split(flat.astype(np.float32), [size])
            shares = _shares(weights.reshape(shape), gate, features, hidden)
            joint = shares * p
            mixed = np.maximum(joint.sum(axis=0), 1e-300)  # too long a step can make it 0
            slopes = shares - joint / mixed
            gradient = np.append(slopes @ features.T, hidden @ slopes[-1]) + flat / variances
            prior = (flat**2 / variances).sum() / (2 * n)
            return float(-np.log(mixed.astype(np.float64)).mean() + prior), gradient / n

        start = np.zeros(len(variances))
        best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS}).x
        weights, self.gate = np.split(best.astype(np.float32), [size])
        self.weights = weights.reshape(shape)

    def probabilities(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The probability of every token of `rows` [rows, n] except the first, given those before.

        Returns two arrays [rows, n - 1]: the probabilities under modified Kneser-Ney of order 5,
        and those under the mixture.
        """
        p, features, hidden = self.parts(rows)
        # In float64: float32 products round columns differently, so that equal contexts would get
        # different weights.
        weights, gate = (found.astype(np.float64) for found in (self.weights, self.gate))
        mixed = (_shares(weights, gate, features, hidden) * p).sum(axis=0)
        return p[len(NEIGHBOURS) - 1].reshape(len(rows), -1), mixed.reshape(len(rows), -1)

    def parts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The parts of the mixture, for every token of `rows` after the first of each row.

        Returns the token's probability under each distribution, float64 [distributions, tokens],
        the features, float32 [features, tokens], and the network's hidden states, float32
        [d_model, tokens]. Without a network, d_model is 0.
        """
        levels = self.counts.levels(rows)
        by_pattern = self.counts.probabilities(rows, levels)
        p = [by_pattern[pattern] for pattern in self.counts.tables]
        features = [
            np.ones(p[0].shape),
            np.broadcast_to(np.log1p(np.arange(p[0].shape[1])) / 5, p[0].shape),
        ]
        for pattern in NEIGHBOURS:
            level = levels[pattern]
            features += [
                np.log1p(level.total) / 3,
                level.kinds.sum(axis=0) / np.maximum(level.total, 1),
            ]
        cached, matches = caches(rows)
        features += [f for n in range(LONGEST) for f in (np.log1p(matches[n]), matches[n] > 0)]
        flat = [array.reshape(-1) for array in (*p, *cached)]
        hidden = np.zeros((0, flat[0].size), np.float32)
        if self.model is not None:
            by_network, hidden = _read(self.model, rows)
            flat.append(by_network)
        return (
            np.stack(flat),
            np.stack([f.reshape(-1) for f in features]).astype(np.float32),
            hidden,
        )


@torch.no_grad()
def _read(model: Transformer, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A network's probability of every token of `rows` [rows, n] after the first.

    Returns the probabilities, float64 [tokens], and the hidden states that they are computed from,
    float32 [d_model, tokens].
    """
    p = []
    states = []
    with evaluating(model):
        for block in np.array_split(rows, -(-len(rows) // ROWS)):
            ids = torch.from_numpy(block.astype(np.int64)).to(model.embeddings.weight.device)
            hidden = model.hidden(ids[:, :-1])
            losses = model.losses_of(hidden, ids[:, :-1], ids[:, 1:])[1]
            p.append(np.exp(-losses.cpu().double().numpy().ravel()))
            states.append(hidden.flatten(0, 1).cpu().numpy())
    return np.concatenate(p), np.concatenate(states).T


def caches(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The caches' probability of every token of `rows` [rows, n] after the first, and the matches.

    Returns the probabilities [caches, rows, n - 1], and the number of earlier places at which the
    last 1, 2, ..., LONGEST tokens occurred, [LONGEST, rows, n - 1].
    """
    length = rows.shape[1] - 1
    distance = np.arange(length)[:, None] - np.arange(length)
    before = distance > 0
    fading = {
        factor: np.tril(factor ** np.maximum(distance, 0).astype(np.float64))
        for _, factor in CACHES
    }
    p = np.zeros((len(CACHES), *rows[:, 1:].shape))
    matches = np.zeros((LONGEST, *rows[:, 1:].shape))
    for number, row in enumerate(rows):
        # [target, earlier place]: True if the token there is the target.
        same_place = row[None, :-1] == row[1:, None]
        followed = np.zeros_like(same_place)
        followed[:, :-1] = same_place[:, 1:]  # True if the token after it is the target
        matched = list(_matches(row[:-1], before))
        for i, found in enumerate(matched):
            matches[i, number] = found.sum(axis=1)
        shorter: np.ndarray | None = None
        for i, (n, factor) in enumerate(CACHES):
            weight = fading[factor] if n == 0 else fading[factor] * matched[n - 1]
            total = weight.sum(axis=1)
            own = (weight * (same_place if n == 0 else followed)).sum(axis=1)
            seen = total > 0
            own = own / np.where(seen, total, 1.0)
            shorter = own if shorter is None or n == 0 else np.where(seen, own, shorter)
            p[i, number] = shorter
    return p, matches


def _matches(context: np.ndarray, before: np.ndarray) -> Iterator[np.ndarray]:
    """Yield, for n = 1, ..., LONGEST, the pairs of places whose last n tokens are equal.

    Each is bool [place, earlier place].
    """
    same = (context[:, None] == context) & before
    matched = same
    yield matched
    for _ in range(LONGEST - 1):
        longer = np.zeros_like(same)
        longer[1:, 1:] = matched[:-1, :-1]
        matched = longer & same
        yield matched


def cross_fitted(
    mixture: Mixture, one: list[np.ndarray], other: list[np.ndarray]
) -> tuple[float, float]:
    """Held-out cross entropy of order 5 and of the mixture.

    Each half of the sequences is scored with discounts and weights that were fitted on the other
    half.
    """
    losses = np.zeros(2)
    n = 0
    for fitted, scored in ((one, other), (other, one)):
        mixture.fit(fitted)
        tokens = sum(rows[:, 1:].size for rows in scored)
        losses += tokens * np.array(cross_entropies(mixture, scored))
        n += tokens
    order_5, best = losses / n
    return float(order_5), float(best)


def _spread(parts: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Evenly spaced sequences of `parts`, with at most FITTED tokens in all."""
    rows = parts[0]
    most = max(FITTED // rows.shape[1], 1)
    return parts if len(rows) <= most else [spread(rows, most)]


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` rows, spread evenly over all."""
    return rows if len(rows) <= most else rows[np.arange(most) * len(rows) // most]


def cross_entropies(mixture: Mixture, parts: Sequence[np.ndarray]) -> tuple[float, float]:
    """Cross entropy of order 5 and of the mixture over all sequences of `parts`."""
    found = [
        mixture.probabilities(block)
        for rows in parts
        for block in np.array_split(rows, -(-len(rows) // 64))
    ]
    order_5, best = (
        np.concatenate([p.ravel() for p in kind]) for kind in zip(*found, strict=True)
    )
    return float(-np.log(order_5).mean()), float(-np.log(best).mean())


def _shares(
    weights: np.ndarray, gate: np.ndarray, features: np.ndarray, hidden: np.ndarray
) -> np.ndarray:
    """The share of each distribution, [distributions, tokens]. The gate is for the last one."""
    x = weights @ features
    x[-1] += gate @ hidden
    e = np.exp(x - x.max(axis=0))
    return e / e.sum(axis=0)


def held_out_losses(
    mixture: Mixture, held_out: np.ndarray, seq_len: int, fit_on: np.ndarray | None
) -> tuple[float, float]:
    """Held-out cross entropy in nats per token, of order 5 and of the mixture.

    Args:
        mixture: a mixture that has counted the training text.
        held_out: ids [n], n at least 2, scored in sequences of `seq_len`.
        seq_len: the length of the sequences.
        fit_on: the held-out text to fit on. None fits on `held_out` itself: each half of its
            sequences is scored with weights fitted on the other half, so that no token influences
            the weights it is scored with. This needs at least two sequences.
    """
    parts = cut(held_out, seq_len)
    if fit_on is None:
        return cross_fitted(mixture, [parts[0][::2]], [parts[0][1::2], *parts[1:]])
    mixture.fit(cut(fit_on, seq_len))
    return cross_entropies(mixture, parts)
