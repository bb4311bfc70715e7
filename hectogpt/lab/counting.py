"""Counting mixed in where a model is scored: its probabilities interpolated with those of n-grams that it has read.

    p(y) = (1 - w_k) q(y) + w_k c(y)

q: the network's distribution. c: modified Kneser-Ney of order 5 of the tokens that the run read (`ngram.KneserNey`).
k: how many tokens of the context, 0 to 4, have counts. q and c sum to 1 over the vocabulary and w_k does not depend on
y, so p sums to 1. This is the interpolation of Jelinek and Mercer (1980), with the network as one of the models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hectogpt.lab.ngram import ORDER, KneserNey, check_ids, neighbours
from hectogpt.training import setup
from hectogpt.training.evaluate import SEQ_LEN, EvalResult, cut
from hectogpt.training.session import Session

HALVINGS = 30  # of the interval that a weight lies in, 0 to 1 at first
FIRST = 0.2  # every weight before it is fitted; one whose context length never occurs stays there


@dataclass(frozen=True)
class WithCounts:
    """Held-out loss of network and n-grams together, nats per token; and the weights w_0 to w_4 of the n-grams."""

    loss: float
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Scored:
    """What is known of the targets of a held-out text, arrays [targets] in its order: the network's probability, that
    of the n-grams (or of what was looked up, lab/retrieval.py), the number of the weight, and that of the sequence.
    The weight's number is how many tokens of the context the n-grams know, 0 to 4."""

    network: np.ndarray
    counted: np.ndarray
    known: np.ndarray
    sequence: np.ndarray

    def part(self, chosen: np.ndarray) -> Scored:
        """The chosen targets alone. chosen: bool [targets]."""
        return Scored(self.network[chosen], self.counted[chosen], self.known[chosen], self.sequence[chosen])


def score_both(model: KneserNey, held_out: np.ndarray, found: EvalResult, seq_len: int = SEQ_LEN) -> Scored:
    """The n-grams' side beside what `evaluate` found on the same tokens, in sequences of the same length."""
    stream = check_ids(held_out, model.vocab)
    counted, known = model.score(cut(stream, seq_len))
    return Scored(np.exp(-found.losses), counted, known, np.arange(len(counted)) // min(seq_len, len(counted)))


def fit_weights(scored: Scored) -> np.ndarray:
    """[ORDER] weights with the lowest loss on the scored text. The loss is convex in each weight, so the
    sign of its slope says on which side of the middle of an interval the best one lies."""
    weights = np.full(ORDER, FIRST)
    for length in np.unique(scored.known):
        part = scored.part(scored.known == length)
        more, low, high = part.counted - part.network, 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            gains = (more / (part.network + middle * more)).mean() > 0
            low, high = (middle, high) if gains else (low, middle)
        weights[length] = (low + high) / 2
    return weights


def losses(scored: Scored, weights: np.ndarray) -> np.ndarray:
    """-log p of every target."""
    w = weights[scored.known]
    return -np.log((1 - w) * scored.network + w * scored.counted)


def mix(scored: Scored, fit_on: Scored | None = None) -> WithCounts:
    """The loss of both together. fit_on: the text that the weights are fitted on (dev, where test is scored).

    None: the odd sequences are scored with weights fitted on the even ones and the other way round, so that no token is
    scored with weights that it has influenced; the weights given are those of the whole text.
    """
    if fit_on is not None:
        weights = fit_weights(fit_on)
        return WithCounts(float(losses(scored, weights).mean()), tuple(weights.tolist()))
    even = scored.sequence % 2 == 0
    total = 0.0
    for fitted, judged in ((even, ~even), (~even, even)):
        total += float(losses(scored.part(judged), fit_weights(scored.part(fitted))).sum())
    return WithCounts(total / len(even), tuple(fit_weights(scored).tolist()))


def scores_with_counts(session: Session, splits: Sequence[str]) -> dict[str, float]:
    """Loss and bits per byte of a trained run on these splits with what it read mixed in, as `Session.result` has them
    without. The weights are fitted on dev."""
    run, corpus = session.run, session.corpus
    model = KneserNey(setup.training_tokens(run, corpus), run.model.vocab_size, neighbours(ORDER))
    return fields_of(session, splits, lambda split, alone: score_both(model, corpus.tokens[split], alone))


def fields_of(session: Session, splits: Sequence[str], score: Callable[[str, EvalResult], Scored]) -> dict[str, float]:
    """Loss and bits per byte of each split, as `score` has it beside the network alone; weights are fitted on dev."""
    alone = {split: session.scores.get(split) or session.evaluate(split) for split in {"dev", *splits}}
    scored, fields = {split: score(split, found) for split, found in alone.items()}, dict[str, float]()
    for split in splits:
        loss, found = mix(scored[split], None if split == "dev" else scored["dev"]).loss, alone[split]
        fields |= {f"{split}_loss": loss, f"{split}_bpb": loss * found.bits_per_byte / found.loss}
    return fields
