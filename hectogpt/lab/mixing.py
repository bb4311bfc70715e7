"""N-grams mixed in where a model is scored, as the track *closed+counting* allows it:

    p(y) = (1 - w_k) q(y) + w_k c(y)

q is the network's distribution. c is modified Kneser-Ney of order 5 on the tokens that the run
read (`ngram.KneserNey`). k is the number of context tokens, 0 to 4, that have counts. q and c sum
to 1 over the vocabulary and w_k does not depend on y, so p sums to 1. This is the interpolation of
Jelinek and Mercer (1980). The weights are fitted on dev.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hectogpt.lab.ngram import ORDER, KneserNey, neighbours
from hectogpt.training import setup
from hectogpt.training.evaluate import SEQ_LEN, EvalResult, cut
from hectogpt.training.session import Session

Scoring = Literal["alone", "counting"]  # the ways in which a track scores

HALVINGS = 30  # bisections of the interval that contains a weight, 0 to 1 at first
FIRST = 0.2  # every weight before fitting; one whose k never occurs keeps it


@dataclass(frozen=True)
class Scored:
    """Both probabilities of the targets of a held-out text, arrays [targets] in the text's order.

    Attributes:
        network: probability by the network.
        other: probability by the other distribution.
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


def losses(scored: Scored, weights: np.ndarray) -> np.ndarray:
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
        return float(losses(scored, weights).mean()), tuple(weights.tolist())
    even = scored.sequence % 2 == 0
    total = 0.0
    for fitted, judged in ((even, ~even), (~even, even)):
        total += float(losses(scored.part(judged), fit_weights(scored.part(fitted))).sum())
    return total / len(even), tuple(fit_weights(scored).tolist())


def scores_of(scoring: Scoring, session: Session, splits: Sequence[str]) -> dict[str, float]:
    """Loss and bits per byte of a trained run on these splits by the rules of a track.

    The keys are those of a record; {} for "alone", which the record has already.
    """
    if scoring == "alone":
        return {}
    alone = {
        split: session.scores.get(split) or session.evaluate(split) for split in {"dev", *splits}
    }
    scored = with_counts(session, alone)
    fields = dict[str, float]()
    for split in splits:
        loss = mix(scored[split], None if split == "dev" else scored["dev"])[0]
        found = alone[split]
        fields |= {f"{split}_loss": loss, f"{split}_bpb": loss * found.bits_per_byte / found.loss}
    return fields


def score_both(
    model: KneserNey, held_out: np.ndarray, found: EvalResult, seq_len: int = SEQ_LEN
) -> Scored:
    """The probabilities of the tokens that `evaluate` scored, by the network and by n-grams.

    Both use sequences of the same length.
    """
    counted, known = model.score(cut(held_out, seq_len))
    return Scored(
        np.exp(-found.losses),
        counted,
        known,
        np.arange(len(counted)) // min(seq_len, len(counted)),
    )


def with_counts(session: Session, alone: dict[str, EvalResult]) -> dict[str, Scored]:
    """Each split mixed with n-grams of the tokens that the run read."""
    run = session.run
    corpus = session.corpus
    model = KneserNey(setup.training_tokens(run, corpus), run.model.vocab_size, neighbours(ORDER))
    return {
        split: score_both(model, corpus.tokens[split], found) for split, found in alone.items()
    }
