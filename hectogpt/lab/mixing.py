"""A second distribution mixed in where a model is scored, as three tracks allow it:

    p(y) = (1 - w_k) q(y) + w_k c(y)

q is the network's distribution; c and k are defined below. q and c sum to 1 over the
vocabulary and w_k does not depend on y, so p sums to 1. This is the interpolation of Jelinek and
Mercer (1980). The weights are fitted on dev.

*counting*: c is modified Kneser-Ney of order 5 on the tokens that the run read
(`ngram.KneserNey`), and k is the number of context tokens, 0 to 4, that have counts.

*retrieval* looks up what followed similar places of the text that the run read:

    c(y) = sum over i with y_i = y of softmax_i(SHARPNESS h h_i / sqrt(d))

h: the model's last hidden state. i: all places of the text with the same current token; h_i is the
hidden state there, y_i the token that followed. k: by how many such places there are. It is the
nearest-neighbour language model of Khandelwal et al. (arXiv:1911.00172) without a search: places
with another current token are left out, and no other is.

*adaptive* goes on learning: a few windows of the held-out text are scored, then the run's own
optimizer takes one step on them, and so on to the end of the text (dynamic evaluation: Mikolov et
al. 2010; Krause et al., arXiv:1709.07432). And it looks up similar places of the windows before:
the unbounded cache of Grave et al. (arXiv:1711.02604). Weights and places are those of the text
before, so the losses are those of an honest code: who receives the text could do the same. (On dev
the five weights of what is looked up are fitted on its other half.)

The last two are ranked with no other track.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hectogpt.kernels import native
from hectogpt.lab.ngram import ORDER, KneserNey, neighbours
from hectogpt.model.transformer import evaluating
from hectogpt.training import setup
from hectogpt.training.checkpoint import put_state, take_state
from hectogpt.training.evaluate import SEQ_LEN, EvalResult, cut, evaluate
from hectogpt.training.loop import Gradients, update
from hectogpt.training.session import Session

Scoring = Literal["alone", "counting", "retrieval", "adaptive"]  # of a track

HALVINGS = 30  # bisections of the interval that contains a weight, 0 to 1 at first
FIRST = 0.2  # every weight before fitting; one whose k never occurs keeps it

# These were found on the dev text of sotu, with `minute`.
SHARPNESS = 4.0
WINDOWS = 8  # that are scored, and then learned from, at a time
# On every learning rate; a schedule has ended near 0 by then. Rows of tables keep rates of their
# own, which it does not reach.
FACTOR = 0.1

MANY = (
    1,
    16,
    256,
    4096,
)  # numbers of places from which on another weight is used: with 0 as many as counting has
ROWS = 256  # contexts that are compared with all their places at a time


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
    score = {"counting": with_counts, "retrieval": with_lookup, "adaptive": adapting}[scoring]
    alone = {
        split: session.scores.get(split) or session.evaluate(split) for split in {"dev", *splits}
    }
    scored = score(session, alone)
    fields = dict[str, float]()
    for split in splits:
        loss = mix(scored[split], None if split == "dev" else scored["dev"])[0]
        found = alone[split]
        fields |= {f"{split}_loss": loss, f"{split}_bpb": loss * found.bits_per_byte / found.loss}
    return fields


# --- counting


def score_both(
    model: KneserNey, held_out: np.ndarray, found: EvalResult, seq_len: int = SEQ_LEN
) -> Scored:
    """The n-grams' side beside what `evaluate` found on the same tokens, in sequences of the same
    length.
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


# --- retrieval


class Places(NamedTuple):
    """Places of a text: hidden states [n, d] in float16, the current token and the one that
    followed, int64 [n].
    """

    hidden: Tensor
    token: Tensor
    following: Tensor


@torch.no_grad()
def places(session: Session, parts: Sequence[np.ndarray]) -> Places:
    """The places of rows of token ids [rows, time + 1]: all but the last token of each."""
    model = session.model
    found = []
    with evaluating(model):
        for rows in parts:
            for ids in torch.from_numpy(rows).to(session.machine.device).long().split(8):
                hidden = model.hidden(ids[:, :-1]).flatten(0, 1).half().cpu()
                found.append(
                    Places(hidden, ids[:, :-1].flatten().cpu(), ids[:, 1:].flatten().cpu())
                )
    return join(found)


def join(several: Sequence[Places]) -> Places:
    """All of them, in order."""
    return Places(*map(torch.cat, zip(*several, strict=True)))


def places_read(session: Session) -> Places:
    """The places of all that a run has read."""
    batches = setup.make_batches(session.run, session.corpus)
    return places(session, [batches.at(step) for step in range(session.step)])


def places_scored(session: Session, tokens: np.ndarray) -> Places:
    """The places of a held-out text, in the rows that `evaluate` scores. tokens: ids [n]; gives n
    - 1 places."""
    return places(
        session, cut(tokens.astype(np.int64), min(SEQ_LEN, session.model.config.context_length))
    )


def look_up(known: Places, asked: Places, window: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """c of the token that followed each place `asked`, and the number of its weight, 0 where no
    place has the same token; float64 and int64 [n]. window: of the same text in windows of so many
    places, those before are known."""
    order = torch.argsort(known.token, stable=True)
    found = np.zeros(len(asked.token))
    count = np.zeros(len(asked.token), np.int64)
    ids, sizes = torch.unique_consecutive(known.token[order], return_counts=True)
    groups = dict(zip(ids.tolist(), order.split(sizes.tolist()), strict=True))
    for token in set(asked.token.tolist()) & groups.keys():
        group = groups[token]
        keys = known.hidden[group].float()
        following = known.following[group]
        for rows in (asked.token == token).nonzero()[:, 0].split(ROWS):
            scores = asked.hidden[rows].float() @ keys.T * (SHARPNESS * keys.shape[1] ** -0.5)
            if window:
                scores = scores.masked_fill(group // window >= rows[:, None] // window, -torch.inf)
            hits = following == asked.following[rows, None]
            found[rows.numpy()] = (
                (scores.softmax(dim=1).nan_to_num() * hits).sum(dim=1).double().numpy()
            )
            count[rows.numpy()] = scores.isfinite().sum(dim=1).numpy()
    return found, np.searchsorted(MANY, count, side="right")


def beside(network: np.ndarray, looked_up: tuple[np.ndarray, np.ndarray]) -> Scored:
    """Losses of a network [n] beside what was looked up. Where nothing is known, the network stays
    alone.
    """
    found, many = looked_up
    own = np.exp(-network)
    return Scored(
        own, np.where(many > 0, found, own), many, np.arange(len(own)) // min(SEQ_LEN, len(own))
    )


def with_lookup(session: Session, alone: dict[str, EvalResult]) -> dict[str, Scored]:
    """Each split with the text that the run read."""
    known = places_read(session)
    tokens = session.corpus.tokens
    return {
        split: beside(one.losses, look_up(known, places_scored(session, tokens[split])))
        for split, one in alone.items()
    }


# --- adaptive


def adapting(session: Session, alone: dict[str, EvalResult]) -> dict[str, Scored]:
    """Each split by a model that learns from it while it reads it, from the weights at the end of
    training; they are the session's again afterwards."""
    before = take_state(session.model, session.optimizer)
    scored = {}
    for split in alone:
        read, seen, window = read_on(session, session.corpus.tokens[split])
        put_state(
            session.model, session.optimizer, *deepcopy(before)
        )  # an optimizer works in the tensors it is given
        scored[split] = beside(read, look_up(seen, seen, window))
    return scored


def read_on(session: Session, tokens: np.ndarray) -> tuple[np.ndarray, Places, int]:
    """Score every token after the first as `evaluate` does, and learn from what was scored.
    tokens: ids [n]; gives the loss of each [n - 1], the places as the model saw them, and how many
    are scored between two steps."""
    seq_len = min(SEQ_LEN, session.model.config.context_length, len(tokens) - 1)
    stream = tokens.astype(np.int64)
    losses = []
    seen = []
    size = WINDOWS * seq_len
    batches = setup.make_batches(session.run, session.corpus)
    gradients = RowsScored(session.run, session.model, batches, session.machine)
    for number, begin in enumerate(range(0, len(tokens) - 1, size)):
        part = stream[begin : begin + size + 1]
        losses.append(
            evaluate(session.model, part, session.corpus.tokenizer.token_bytes, seq_len).losses
        )
        seen.append(places_scored(session, part))
        if begin + len(part) < len(stream):
            gradients.rows = cut(part, seq_len)[0]
            with native.using(session.kernels == "native"):
                update(gradients, session.optimizer, session.run.steps + number, FACTOR)
    return np.concatenate(losses), join(seen), size


class RowsScored(Gradients):
    """Gradients of rows that were scored, [rows, seq_len + 1], instead of a batch of the training
    text.
    """

    rows: np.ndarray

    def compute(self, step: int) -> Tensor:
        return self.of_batch(self.rows, step)
