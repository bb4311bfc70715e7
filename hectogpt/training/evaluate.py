"""Held-out loss: every token scored once, in float32. And which trained tensors have never moved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.model import Transformer
from hectogpt.training.first_weights import hash_state

SEQ_LEN = 512  # of every score that is compared with others


@dataclass(frozen=True)
class EvalResult:
    """Held-out cross entropy: nats per token, bits per byte of the text, how many tokens were scored, and the nats of
    each, float64 [tokens]."""

    loss: float
    bits_per_byte: float
    tokens: int
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)


@torch.no_grad()
def evaluate(
    model: Transformer, tokens: np.ndarray, token_bytes: np.ndarray, seq_len: int = SEQ_LEN, rows: int = 8
) -> EvalResult:
    """Score every token after the first once, in rows of `seq_len` that do not overlap; products in float32 and sums in
    float64.

    tokens: ids [n]. token_bytes: bytes of text that each id stands for [vocab]; end-of-text tokens are targets without
    bytes. A token is predicted from those before it in its row (at most `seq_len`, at most the context length).
    Raises UserError (DATA) for fewer than two tokens.
    """
    seq_len = min(seq_len, model.config.context_length, len(tokens) - 1)
    if seq_len < 1:
        raise UserError(f"{len(tokens)} held-out tokens", why="scoring takes at least 2", code=errors.DATA)
    device = model.embeddings.weight.device
    stream = torch.from_numpy(tokens.astype(np.int64))
    total, losses = 0.0, []
    n_full = (len(tokens) - 1) // seq_len
    inputs = stream[: n_full * seq_len].view(-1, seq_len)
    targets = stream[1 : n_full * seq_len + 1].view(-1, seq_len)
    with evaluating(model):
        for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
            loss, each = model.losses(x.to(device), y.to(device), reduction="sum")
            total += loss.item()
            losses.append(each.cpu().double().numpy().ravel())
        if rest := (len(tokens) - 1) % seq_len:
            tail = stream[-rest - 1 :].to(device)[None]
            loss, each = model.losses(tail[:, :-1], tail[:, 1:], reduction="sum")
            total += loss.item()
            losses.append(each.cpu().double().numpy().ravel())
    n, n_bytes = len(tokens) - 1, int(token_bytes[tokens[1:]].sum())
    return EvalResult(total / n, total / (math.log(2) * max(n_bytes, 1)), n, np.concatenate(losses))


@contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    """Within the context the model is in evaluation mode; afterwards it is as it was, whatever happened."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class FirstNumbers:
    """The hashes of a model's trained tensors as they are now, to be compared with what they are later.

    A hash of all costs about 0.5 s a GB. What has moved is left out from then on, so later looks cost next to nothing.
    """

    def __init__(self, model: Transformer) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad and p.numel()}
        self._hashes = {name: hash_state({name: p.detach().cpu()}) for name, p in trained.items()}

    def unmoved(self, model: Transformer) -> list[str]:
        """Names of the tensors whose numbers are still all the same."""
        now = {
            name: hash_state({name: p.detach().cpu()}) for name, p in model.named_parameters() if name in self._hashes
        }
        self._hashes = {name: first for name, first in self._hashes.items() if now[name] == first}
        return list(self._hashes)
