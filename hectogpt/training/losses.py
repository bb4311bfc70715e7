"""What training minimises. Losses that are reported, of training and held-out text, are plain
cross entropy always."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hectogpt.errors import UserError
from hectogpt.model import Transformer
from hectogpt.serialization import Value

CHUNK = 1 << 24  # logits that exist at a time in `Predictions.sum`


class Predictions:
    """What a model makes of rows of a batch, and the sums over their tokens of which a Loss is
    made.

    ids, targets: [rows, time]; hidden: the last layer's normalised output [rows, time, d].
    progress: the share of the run's steps that are done. converted: the head's matrix, converted
    to `precision`, where several rows in turn share it."""

    def __init__(
        self,
        model: Transformer,
        ids: Int[Tensor, "rows time"],
        targets: Int[Tensor, "rows time"],
        precision: torch.dtype | None = None,
        progress: float = 0.0,
        converted: Tensor | None = None,
    ) -> None:
        self.model = model
        self.ids = ids
        self.targets = targets
        self.precision = precision
        self.progress = progress
        self.converted = converted
        self.hidden: Float[Tensor, "rows time d"] = model.hidden(ids)
        self._plain: Tensor | None = None

    def cross_entropy(
        self, weights: Float[Tensor, "rows time"] | None = None, ahead: int = 0
    ) -> Float[Tensor, ""]:
        """The sum of the tokens' cross entropies in nats, each times its weight, from the fused
        head: the logits never exist as a whole. ahead: so many tokens further ahead, each
        position's next one left out."""
        end = self.ids.shape[1] - ahead
        hidden = self.hidden[:, :end]
        ids = self.ids[:, :end]
        targets = self.targets[:, ahead:]
        how = {"precision": self.precision, "converted": self.converted, "reduction": "sum"}
        loss, each = self.model.losses_of(hidden, ids, targets, weights=weights, **how)
        if not ahead:
            self._plain = loss.detach() if weights is None else each.sum()
        return loss

    def sum(self, of: Callable[..., Tensor], *more: Tensor) -> Float[Tensor, ""]:
        """The sum of of(logits [n, vocab], targets [n], ...) over all tokens, some at a time, so
        that few logits exist; the backward pass computes them again. `more`, of [rows, time] or
        more axes, is cut alike. The logits are the softmax's, also where a pointer is mixed in."""
        from torch.utils.checkpoint import checkpoint

        head = self.model.lm_head
        table = self.model.embeddings.weight

        def part(hidden: Tensor, *rows: Tensor) -> Tensor:
            return of(head(hidden, table).float(), *rows).sum()

        rows = max(1, CHUNK // self.model.config.vocab_size)
        chunks = zip(
            *(t.flatten(0, 1).split(rows) for t in (self.hidden, self.targets, *more)), strict=True
        )
        return torch.stack(
            [checkpoint(part, *chunk, use_reentrant=False) for chunk in chunks]
        ).sum()

    @property
    def plain(self) -> Float[Tensor, ""]:
        """The sum of the plain cross entropies, without a gradient."""
        if self._plain is None:
            with torch.no_grad():
                self.cross_entropy()
        assert self._plain is not None
        return self._plain


@dataclass(frozen=True)
class Loss(Value):
    """What training minimises. It has no weights of its own; the model has."""

    @abstractmethod
    def total(self, predictions: Predictions) -> Tensor:
        """The loss summed over the tokens of some rows, a differentiable number; the run divides
        by the number of tokens of the batch."""


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """The cross entropy of each next token, in nats."""

    def total(self, predictions: Predictions) -> Tensor:
        return predictions.cross_entropy()


def total_of(loss: Loss, predictions: Predictions) -> Tensor:
    """A loss's total. Raises UserError for one that is not a number."""
    total = loss.total(predictions)
    if not isinstance(total, Tensor) or total.dim():
        what = (
            f"of shape {tuple(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
        )
        raise UserError(
            f"loss: {type(loss).__name__}.total returned {what}",
            why="a loss is one number",
            fix="return the sum over all tokens as a tensor, without .item()",
        )
    return total
