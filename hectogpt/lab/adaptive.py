"""The track *adaptive*: a model that goes on learning while it is scored.

A few windows of the held-out text are scored, then the run's own optimizer takes one step on them, and so on to the
end of the text: the dynamic evaluation of Mikolov et al. (2010) and Krause et al. (arXiv:1709.07432). And what followed
similar places of the windows before is looked up, as in lab/retrieval.py: the unbounded cache of Grave et al.
(arXiv:1711.02604). Every token is scored by what was known before it, so the losses are those of an honest code: who
receives the text could do the same.

Such a loss says how well a model learns from a text that it is reading, not what it knew before. So it is never ranked
with other tracks.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from hectogpt.kernels import native
from hectogpt.lab.counting import Scored, mix
from hectogpt.lab.retrieval import Places, interpolated, join, look_up, places_scored
from hectogpt.training import loop
from hectogpt.training.evaluate import SEQ_LEN, evaluate
from hectogpt.training.session import Session
from hectogpt.training.state import put_state, take_state

WINDOWS = 8  # that are scored, and then learned from, at a time
# Of the schedule, which has ended near 0; rows of tables keep their own rates. Both were found on the dev text of sotu,
# with `minute`.
FACTOR = 0.1


def scores_adapting(session: Session, splits: Sequence[str]) -> dict[str, float]:
    """Loss and bits per byte of a trained run that learns from these splits while it reads them, each from the weights
    at the end of training, as `Session.result` has them without. The weight of what is looked up is fitted on dev. The
    session's weights are afterwards as they were."""
    before, scored, fields = take_state(session.model, session.optimizer), dict[str, Scored](), dict[str, float]()
    for split in {"dev", *splits}:
        if split not in session.scores:
            session.evaluate(split)
        losses, places = read_on(session, session.corpus.tokens[split])
        put_state(session.model, session.optimizer, deepcopy(before))  # an optimizer works in the tensors it is given
        scored[split] = interpolated(losses, look_up(places, places, earlier=True))
    for split in splits:
        loss, alone = mix(scored[split], None if split == "dev" else scored["dev"]).loss, session.scores[split]
        fields |= {f"{split}_loss": loss, f"{split}_bpb": loss * alone.bits_per_byte / alone.loss}
    return fields


def read_on(
    session: Session, tokens: np.ndarray, windows: int = WINDOWS, factor: float = FACTOR
) -> tuple[np.ndarray, Places]:
    """Score every token after the first as `evaluate` does, and learn from what was scored. tokens: ids [n]; gives the
    loss of each [n - 1], and the places as the model saw them."""
    seq_len = min(SEQ_LEN, session.model.config.context_length, len(tokens) - 1)
    stream, losses, seen = tokens.astype(np.int64), [], []
    for number, begin in enumerate(range(0, len(tokens) - 1, windows * seq_len)):
        part = stream[begin : begin + windows * seq_len + 1]
        losses.append(evaluate(session.model, part, session.corpus.tokenizer.token_bytes, seq_len).losses)
        seen.append(places_scored(session, part, number))
        if begin + len(part) < len(stream):
            rows = np.stack([part[at : at + seq_len + 1] for at in range(0, windows * seq_len, seq_len)])
            learn(session, torch.from_numpy(rows), number, factor)
    return np.concatenate(losses), join(seen)


def learn(session: Session, rows: Tensor, number: int, factor: float) -> None:
    """Take one more step of the run's optimizer, the number-th from 0 after its last, on rows [rows, seq_len + 1]."""
    run, model, optimizer = session.run, session.model, session.optimizer
    rows = rows.to(session.machine.device)
    n_targets = rows.shape[0] * (rows.shape[1] - 1)
    with native.using(session.head == "native"):
        for part, some in enumerate(rows.split(run.data.rows_at_once)):
            loop.backward(run, model, some, session.machine, run.steps + number, part, n_targets)
    if run.gradient_clipping is not None:
        clip_grads_with_norm_(model.parameters(), run.gradient_clipping, model.gradient_norm())
    optimizer.step(run.steps + number, factor)
    optimizer.zero_grad()
