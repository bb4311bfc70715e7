"""The losses that training minimises.

Reported losses, of training and of held-out text, are always plain cross entropy.
"""

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
    """A model's predictions for some rows of a batch, with the sums over tokens that a Loss needs.

    Attributes:
        model: the model.
        ids: the input tokens [rows, time].
        targets: the tokens to predict [rows, time].
        precision: the dtype of the head's products. None means the dtype of the head's weights.
        progress: the share of the run's steps that are done, from 0 to 1.
        converted: the head's matrix in `precision`, if several leaves share it.
        hidden: the last layer's normalised output [rows, time, d].
    """

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
        """The sum of the tokens' cross entropies in nats, computed by the fused head.

        The logits never exist all at once.

        Args:
            weights: a weight for each token; None gives all tokens the same weight.
            ahead: predict the token that comes this many positions after the next one.
        """
        end = self.ids.shape[1] - ahead
        how = {"precision": self.precision, "converted": self.converted, "reduction": "sum"}
        loss, each = self.model.losses_of(
            self.hidden[:, :end],
            self.ids[:, :end],
            self.targets[:, ahead:],
            weights=weights,
            **how,
        )
        if not ahead:
            self._plain = loss.detach() if weights is None else each.sum()
        return loss

    def sum(self, of: Callable[..., Tensor], *more: Tensor) -> Float[Tensor, ""]:
        """The sum of `of(logits [n, vocab], targets [n], ...)` over all tokens.

        It is computed in chunks of tokens, so that few logits exist at once. The backward pass
        recomputes the logits. They are the head's own, even if the model mixes in a pointer.

        Args:
            of: the function to sum.
            more: further arguments of `of`, with axes [rows, time] or more; they are cut into the
                same chunks.
        """
        from torch.utils.checkpoint import checkpoint

        head = self.model.lm_head
        matrix = head.matrix(self.model.token_vectors())

        def part(hidden: Tensor, *rows: Tensor) -> Tensor:
            return of(head.finish(hidden @ matrix.mT).float(), *rows).sum()

        rows = max(1, CHUNK // head.vocab_size)
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
    """A loss for training to minimise. It has no trained parameters; only the model does."""

    @abstractmethod
    def total(self, predictions: Predictions) -> Tensor:
        """The loss summed over the tokens of some rows, as a differentiable scalar.

        The run divides it by the number of tokens of the batch.
        """


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """The cross entropy of each next token, in nats."""

    def total(self, predictions: Predictions) -> Tensor:
        return predictions.cross_entropy()


def total_of(loss: Loss, predictions: Predictions) -> Tensor:
    """A loss's total. Raises UserError if it is not a scalar tensor."""
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
