"""The vocabulary head: from hidden states to logits, or to the loss without storing the logits.

Everything about the vocabulary is here: soft cap, bias, the embedding map, and the compact
vocabulary, in which all tokens that a run never reads share one row. Elsewhere only
`first_weights` and the training page know about that row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from hectogpt.errors import CheckpointError, Setting, UserError
from hectogpt.kernels import native
from hectogpt.model.fused_ce import How, Mixture, check_targets, fused_losses


@dataclass(frozen=True)
class LMHeadConfig:
    """Options of the vocabulary head.

    Attributes:
        bias: add one learned number per token, outside the cap.
        soft_cap: a bound c on the logits: z becomes c tanh(z / c) (2408.00118).
        tied: share the embedding's matrix.
        compact_vocab: let all tokens that the run never reads share one row. The head starts at
            zero, so the rows of these tokens would receive equal gradients and stay equal anyway.
            The result is the same (the normaliser counts the row once per token), and the cost
            depends only on the number of tokens in use.
        embedding_map: a scale s; 0 disables the map. It adds s E B^T to the matrix. E holds the
            token embeddings (plus the vectors of `Spelling`, if the model has that part), and B is
            a learned matrix that starts at zero. Tokens that are alike as inputs become alike as
            outputs (a linear form of 1808.10681). E gets no gradient here; otherwise every token's
            embedding would move at every step.
    """

    bias: bool = False
    soft_cap: float | None = None
    tied: bool = False
    compact_vocab: bool = False
    embedding_map: float = 0.0

    def __post_init__(self) -> None:
        if self.soft_cap is not None and not (self.soft_cap > 0 and math.isfinite(self.soft_cap)):
            raise UserError(
                Setting("model.lm_head.soft_cap", self.soft_cap),
                why="it must be positive and finite",
            )
        if not math.isfinite(self.embedding_map):
            raise UserError(
                Setting("model.lm_head.embedding_map", self.embedding_map),
                why="it multiplies weights, so it must be finite",
            )
        for name in ("embedding_map", "compact_vocab"):
            if self.tied and getattr(self, name):
                raise UserError(
                    f"model.lm_head.{name} with model.lm_head.tied",
                    why="a tied head is exactly the embeddings, with a row for every token",
                    fix="use one of the two",
                )


class LMHead(nn.Module):
    """Map hidden states [..., d] to logits [..., vocab].

    `weight` is [rows, d] and `bias` [rows] or None. rows is vocab_size; after `compact` it is the
    number of tokens in use plus one, and row_of_token [vocab] maps each token to its row. Methods
    that need the token embeddings [vocab, d_input], for the embedding map, take them as an
    argument.
    """

    row_of_token: Tensor | None
    kernels = False  # True: use the C++ kernels in training

    def __init__(self, config: LMHeadConfig, d_model: int, vocab_size: int, d_input: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if config.bias else None
        self.embedding_map = (
            nn.Linear(d_input, d_model, bias=False) if config.embedding_map else None
        )
        self.packed: nn.Module | None = None  # replaces `matrix` in the copies used for generation
        self.register_buffer("row_of_token", None)
        # Tokens that share the last row; 0 if every token is in use or the vocabulary is not
        # compact.
        self.unused = 0

    # --- the compact vocabulary ---

    @torch.no_grad()
    def compact(self, used: Int[Tensor, " used"]) -> None:
        """Keep a row for each of these ids (ascending) and one for all others, all zeros."""
        check_targets(used, self.vocab_size)
        rows = torch.full((self.vocab_size,), len(used), dtype=torch.long, device=used.device)
        rows[used] = torch.arange(len(used), device=used.device)
        self._set_rows(rows, len(used) + 1, self.vocab_size - len(used))

    def compact_like(self, row_of_token: Tensor, rows: int) -> None:
        """Adopt the compact vocabulary of a saved head.

        Raises UserError (CHECKPOINT) if the saved map is damaged.
        """
        sound = row_of_token.dtype == torch.int64 and tuple(row_of_token.shape) == (
            self.vocab_size,
        )
        sound = sound and 0 <= int(row_of_token.min()) <= int(row_of_token.max()) < rows
        if not sound or not bool((row_of_token.bincount(minlength=rows)[:-1] == 1).all()):
            raise CheckpointError(
                "the saved map from tokens to rows of the head is damaged",
                why=f"it should hold {self.vocab_size} whole numbers from 0 to {rows - 1}, each "
                "once except the last",
            )
        self._set_rows(row_of_token, rows, int((row_of_token == rows - 1).sum()))

    def _set_rows(self, row_of_token: Tensor, rows: int, unused: int) -> None:
        # A weight on the meta device is a placeholder for one loaded later; the map is real.
        self.row_of_token = (
            row_of_token if self.weight.is_meta else row_of_token.to(self.weight.device)
        )
        self.unused = unused
        self.weight = nn.Parameter(self.weight.new_zeros(rows, self.weight.shape[1]))
        self.bias = None if self.bias is None else nn.Parameter(self.bias.new_zeros(rows))

    def _counted_once(self, parameter: Tensor) -> Tensor:
        """The weight or bias, with the gradient of the shared row divided by its number of tokens.

        Differentiation would give the sum over these tokens. With the gradient of one token, every
        optimizer moves the shared row just as it would move a separate row of one token.
        """
        if self.row_of_token is None:
            return parameter
        divided: Tensor = _DivideLastRow.apply(parameter, max(self.unused, 1))
        return divided

    def full_gradient_norm(self, norm: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """A model's gradient norm, with the shared row counted once for each of its tokens.

        `norm` counts that row only once.
        """
        if not self.unused:
            return norm
        last = [
            p.grad[-1] for p in (self.weight, self.bias) if p is not None and p.grad is not None
        ]
        return (norm.square() + (self.unused - 1) * get_total_norm(last).square()).sqrt()

    # --- logits ---

    def matrix(self, embeddings: Float[Tensor, "vocab d_input"]) -> Float[Tensor, "rows d"]:
        """The weight plus the embedding map, which adds nothing to the shared row."""
        weight = self._counted_once(self.weight)
        if self.embedding_map is None:
            return weight
        used, rows = self._used_tokens()
        added = self.embedding_map(embeddings.detach()[used]).to(weight.dtype)
        return weight.index_add(0, rows, added, alpha=self.config.embedding_map)

    def _used_tokens(self) -> tuple[Int[Tensor, " used"], Int[Tensor, " used"]]:
        """The tokens that have their own row, and these rows."""
        if self.row_of_token is None:
            every = torch.arange(self.vocab_size, device=self.weight.device)
            return every, every
        used = (self.row_of_token < len(self.weight) - 1).nonzero().squeeze(1)
        return used, self.row_of_token[used]

    def forward(
        self, hidden: Float[Tensor, "*batch d"], embeddings: Float[Tensor, "vocab d_input"]
    ) -> Float[Tensor, "*batch vocab"]:
        """Logits over the whole vocabulary. The soft cap bounds the product, without the bias."""
        return self.finish(self.products(hidden, embeddings))

    def products(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """Multiply hidden states by `matrix(embeddings)`; the result is [..., rows]."""
        if self.packed is not None:
            packed: Tensor = self.packed(hidden)
            return packed
        products = F.linear(hidden, self._counted_once(self.weight))
        if self.embedding_map is not None:
            # Compute h (E B^T)^T as (h B) E^T. For the few rows of decoding, this is cheaper than
            # the whole matrix.
            used, rows = self._used_tokens()
            added = F.linear(hidden @ self.embedding_map.weight, embeddings.detach())[..., used]
            products = products.index_add(-1, rows, added, alpha=self.config.embedding_map)
        return products

    def finish(self, products: Tensor) -> Tensor:
        """Turn products [..., rows] into logits [..., vocab]."""
        cap = self.config.soft_cap
        logits = products if cap is None else cap * torch.tanh(products / cap)
        logits = logits if self.bias is None else logits + self._counted_once(self.bias)
        return logits if self.row_of_token is None else logits.index_select(-1, self.row_of_token)

    # --- the loss ---

    # m unused tokens share one logit u. Their part of the normaliser is m exp(u) = exp(u + ln m),
    # so ln m is added to the last row, outside the cap (`_bias_with_log_count`). The softmax then
    # gives the row m times the probability of one of these tokens, so `losses` adds the constant
    # ln m to their loss. That would also raise the pointer's part of the loss, so the pointer's
    # probability is first multiplied by m (`_scaled_pointer`).

    def losses(
        self,
        hidden: Float[Tensor, "*batch d"],
        targets: Int[Tensor, "*batch"],
        embeddings: Float[Tensor, "vocab d_input"],
        *,
        mixture: Mixture | None = None,
        weights: Float[Tensor, "*batch"] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        **options: Any,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "*batch"]]:
        """Cross entropy in nats over the whole vocabulary, and the loss of each target.

        The losses of the targets have no gradient. For the arguments, see `fused_losses`.
        """
        weight = self.matrix(embeddings)
        bias = None if self.bias is None else self._counted_once(self.bias)
        how = How(self.config.soft_cap, reduction, kernels=native.wanted(self), **options)
        if self.row_of_token is None:
            return fused_losses(
                hidden, weight, targets, bias=bias, mixture=mixture, weights=weights, how=how
            )
        check_targets(targets.reshape(-1), self.vocab_size)
        rows = self.row_of_token[targets]
        bias = self._bias_with_log_count(bias, weight)
        mixture = self._scaled_pointer(mixture, rows)
        loss, losses = fused_losses(
            hidden, weight, rows, bias=bias, mixture=mixture, weights=weights, how=how
        )
        is_unused = (rows == len(weight) - 1).to(loss.dtype)
        constant = (is_unused if weights is None else is_unused * weights).sum() * self._log_count
        constant = constant / rows.numel() if reduction == "mean" else constant
        return loss + constant, losses + is_unused * self._log_count

    @property
    def _log_count(self) -> float:
        return math.log(max(self.unused, 1))

    def _bias_with_log_count(self, bias: Tensor | None, weight: Tensor) -> Tensor:
        """The bias of the rows, with ln m added to the last.

        If every token is in use, the last is minus infinity.
        """
        extra = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
        extra[-1] = self._log_count if self.unused else -math.inf
        return extra if bias is None else bias + extra

    def _scaled_pointer(self, mixture: Mixture | None, rows: Tensor) -> Mixture | None:
        """The mixture, with its probability multiplied by m where the target is unused."""
        if mixture is None:
            return None
        raised = mixture.probability * max(self.unused, 1)
        return Mixture(
            torch.where(rows == len(self.weight) - 1, raised, mixture.probability), mixture.weight
        )


class _DivideLastRow(torch.autograd.Function):
    """The identity, whose backward pass divides the gradient of the last row by a number."""

    @staticmethod
    def forward(ctx, x: Tensor, divisor: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.divisor = divisor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return torch.cat((grad[:-1], grad[-1:] / ctx.divisor)), None
