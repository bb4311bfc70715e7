"""A vocabulary head in which all words that the training text never uses share one row: exact, and cheaper."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hectogpt.model.head import Mixture, check_targets, head_loss


def used_vocabulary(tokens: Int[Tensor, "*tokens"], vocab: int) -> tuple[Int[Tensor, " used"], Int[Tensor, " vocab"]]:
    """The ids that occur in tokens, ascending, and for every id its row in a head of used + 1 rows.

    Ids that never occur get the last row, which they share.
    """
    used = torch.unique(tokens.reshape(-1).long())
    check_targets(used, torch.ones_like(used, dtype=torch.bool), vocab)
    rows = torch.full((vocab,), len(used), dtype=torch.long)
    rows[used] = torch.arange(len(used))
    return used, rows


def shared_head_loss(
    x: Float[Tensor, "*rows d"],
    weight: Float[Tensor, "used_and_one d"],
    targets: Int[Tensor, "*rows"],
    rows: Int[Tensor, " vocab"],
    *,
    bias: Float[Tensor, " used_and_one"] | None = None,
    token_weights: Float[Tensor, "*rows"] | None = None,
    mixture: Mixture | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Any,
) -> Float[Tensor, ""]:
    """head_loss over the whole vocabulary, at the cost of the words in use, with rows from used_vocabulary.

    Equal in value and gradient to head_loss(x, weight[rows], targets, bias=bias[rows]), the head in which m
    unused words have one logit u in common. Their share of the normaliser is m exp(u) = exp(u + ln m): so the
    last row counts with ln m added outside the cap. Softmax then gives it m times the probability of one
    such word, whose loss is therefore larger by ln m, a constant. Label smoothing is refused: it would
    spread over rows rather than over words.
    """
    last = weight.shape[0] - 1
    unused = int((rows == last).sum())
    if options.get("label_smoothing"):
        raise ValueError("label smoothing does not go with a shared row")
    valid = targets != ignore_index
    check_targets(targets.reshape(-1), valid.reshape(-1), rows.shape[0])
    row = torch.where(valid, rows[torch.where(valid, targets, 0)], ignore_index)
    log_count = math.log(max(unused, 1))
    extra = torch.zeros(last + 1, dtype=weight.dtype, device=weight.device)
    extra[last] = log_count if unused else -math.inf
    if mixture is not None:
        # The constant is added to the whole loss below, so the other distribution's part is raised by as much here.
        raised = torch.where(row == last, mixture.probability * max(unused, 1), mixture.probability)
        mixture = Mixture(raised, mixture.weight)
    loss = head_loss(
        x, weight, row, bias=extra if bias is None else bias + extra, token_weights=token_weights,
        mixture=mixture, ignore_index=ignore_index, reduction=reduction, **options,
    )  # fmt: skip
    share = valid.to(loss.dtype) if token_weights is None else valid * token_weights.detach().to(loss.dtype)
    constant = (share * (row == last)).sum() * log_count
    return loss + (constant / share.sum() if reduction == "mean" else constant)
