"""The vocabulary head and its loss without the logits: chunked over rows, exact, with its own backward.

Gradients are made while the chunk of logits is in cache, then scaled in backward. The full matrix of
logits never exists. Higher derivatives are refused (once_differentiable), and so are targets out of range.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from hectogpt.errors import DATA, UserError

# One chunk of logits and the block of rows whose element-wise part runs while it is in the second-level cache.
CHUNK_BYTES = 26 << 20
BLOCK_BYTES = 2 << 20


def head_loss(
    x: Float[Tensor, "*rows d"],
    weight: Float[Tensor, "vocab d"],
    targets: Int[Tensor, "*rows"],
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    soft_cap: float | None = None,
    token_weights: Float[Tensor, "*rows"] | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
    precision: torch.dtype | None = None,
    backend: Literal["auto", "eager", "compiled"] = "auto",
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Cross entropy in nats of targets under softmax(cap(x weight^T) + bias), with cap(z) = c tanh(z / c).

    The bias stays outside the cap, so that a log-unigram prior keeps its range (Gemma-2's cap, 2408.00118).
    token_weights multiply the rows' losses; "mean" divides by their sum over rows whose target is not
    ignore_index, as F.cross_entropy does with class weights. label_smoothing mixes in the uniform
    distribution (1512.00567). precision is the type of the matrix products (None: that of the inputs);
    the loss is summed in float64 and returned in float32 (float64 for float64 inputs).
    chunk_rows overrides the number of rows whose logits exist at a time.

    Raises UserError (data) for a target outside [0, vocab) and for a mean over no target at all, on the CPU;
    on CUDA, where looking would stall the queue, the first is a device assert and the second gives NaN.
    """
    vocab, d = weight.shape
    flat, target = x.reshape(-1, d), targets.reshape(-1)
    valid = target != ignore_index
    _check_targets(target, valid, vocab)
    target = torch.where(valid, target, 0)
    high = torch.float64 if torch.promote_types(x.dtype, weight.dtype) == torch.float64 else torch.float32
    share = valid.to(high)
    if token_weights is not None:
        share = share * token_weights.detach().reshape(-1).to(high)
    if reduction == "mean":
        total = share.sum(dtype=torch.float64)
        if x.device.type == "cpu" and total.item() == 0.0:
            raise UserError(
                "no target to learn from: the mean loss over zero tokens does not exist",
                why=f"all {target.numel()} targets are ignored (ignore_index {ignore_index}) or weigh 0",
                fix="give data with at least one target, or use reduction='sum'",
                code=DATA,
            )
        share = (share / total).to(high)
    options = _Options(precision or torch.promote_types(x.dtype, weight.dtype), soft_cap, label_smoothing, chunk_rows)
    grads_on = torch.is_grad_enabled()
    wanted = tuple(grads_on and t is not None and t.requires_grad for t in (flat, weight, bias))
    if not any(wanted):
        return _run(flat, weight, bias, target, share, options, wanted)[0]
    return _HeadLoss.apply(flat, weight, bias, target, share, options, wanted)


class _Options:
    """The closed choices of one call."""

    def __init__(self, product: torch.dtype, soft_cap: float | None, smoothing: float, chunk_rows: int | None) -> None:
        self.product, self.soft_cap, self.smoothing = product, soft_cap, smoothing
        self.chunk_rows = chunk_rows


class _HeadLoss(torch.autograd.Function):
    """Loss and gradients in forward; backward only scales them."""

    @staticmethod
    def forward(ctx, x, weight, bias, target, share, options, wanted):  # type: ignore[no-untyped-def]
        loss, *grads = _run(x, weight, bias, target, share, options, wanted)
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        # On the CPU a factor of 1 costs no pass; on CUDA looking at it would be a sync.
        unit = grad_output.device.type == "cpu" and grad_output.item() == 1.0
        scaled = (g if g is None or unit else g * grad_output.to(g.dtype) for g in ctx.saved_tensors)
        return (*scaled, None, None, None, None)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    share: Tensor,
    options: _Options,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Loss and the wanted gradients of rows [N, d], chunk by chunk."""
    rows, vocab, product, high = x.shape[0], weight.shape[0], options.product, share.dtype
    x, weight = x.detach(), weight.detach()
    x_low, weight_low = x.to(product), weight.to(product)
    bias_high = None if bias is None else bias.detach().to(high)
    size = options.chunk_rows or max(16, CHUNK_BYTES // (vocab * x_low.element_size()))
    size = min(size, max(rows, 1))
    block = max(1, BLOCK_BYTES // (vocab * share.element_size()))
    logits = torch.empty(size, vocab, dtype=product, device=x.device)
    mixed = product != high
    work = torch.empty(min(block, size), vocab, dtype=high, device=x.device) if mixed else logits
    spare = torch.empty(min(block, size), vocab, dtype=high, device=x.device) if options.soft_cap else None
    grad_x = torch.empty_like(x) if wanted[0] else None
    grad_weight = torch.zeros(weight.shape, dtype=high, device=x.device) if wanted[1] else None
    grad_bias = torch.zeros(vocab, dtype=high, device=x.device) if wanted[2] else None
    partial = torch.empty_like(weight_low) if wanted[1] and mixed else None
    losses = torch.empty(rows, dtype=high, device=x.device)
    for start in range(0, rows, size):
        chunk = slice(start, min(start + size, rows))
        z = logits[: chunk.stop - start]
        torch.mm(x_low[chunk], weight_low.t(), out=z)
        for low in range(start, chunk.stop, block):
            piece = slice(low, min(low + block, chunk.stop))
            inner = slice(low - start, piece.stop - start)
            f = z[inner]
            picked = target[piece]
            if mixed:
                f = work[: piece.stop - low].copy_(f)
                # bf16 rounds a logit to 8 bits: the target's own is recomputed, and used everywhere.
                exact = (x[piece].to(high) * weight[picked].to(high)).sum(1, keepdim=True)
                f.scatter_(1, picked[:, None], exact)
            losses[piece] = _elementwise(f, picked, share[piece], bias_high, spare, options, any(wanted), grad_bias)
            if mixed and any(wanted):
                z[inner].copy_(f)
        if grad_x is not None:
            grad_x[chunk] = torch.mm(z, weight_low) * share[chunk, None]
        if grad_weight is not None:
            scaled = (x[chunk].to(high) * share[chunk, None]).to(product)
            if partial is None:
                grad_weight.addmm_(z.t(), scaled)
            else:
                grad_weight.add_(torch.mm(z.t(), scaled, out=partial))
    loss = torch.dot(losses.double(), share.double()).to(high)
    if grad_weight is not None:
        grad_weight = grad_weight.to(weight.dtype)
    if grad_bias is not None and bias is not None:
        grad_bias = grad_bias.to(bias.dtype)
    return loss, grad_x, grad_weight, grad_bias


def _elementwise(
    z: Tensor,
    target: Tensor,
    share: Tensor,
    bias: Tensor | None,
    spare: Tensor | None,
    options: _Options,
    grads: bool,
    grad_bias: Tensor | None,
) -> Tensor:
    """Loss of each row; z, the raw logits, becomes the gradient with respect to them (before row weights).

    With p the softmax and s the smoothing: dz = (p - (1 - s) onehot - s / V) (1 - tanh^2).
    """
    cap, smoothing, column = options.soft_cap, options.smoothing, target[:, None]
    tanh = None
    if cap and spare is not None:
        tanh = torch.div(z, cap, out=spare[: z.shape[0]]).tanh_()
        torch.mul(tanh, cap, out=z)
    if bias is not None:
        z.add_(bias)
    top = z.amax(1)
    wanted = z.gather(1, column)[:, 0]
    if smoothing:
        wanted = wanted.mul(1 - smoothing).add_(z.mean(1), alpha=smoothing)
    torch._softmax(z, 1, False, out=z)
    loss = top - z.amax(1).log() - wanted  # log-sum-exp: the largest p is exp(top) / sum
    if grads:
        if smoothing:
            z.sub_(smoothing / z.shape[1])
        z.scatter_add_(1, column, torch.full_like(z[:, :1], smoothing - 1))
        if grad_bias is not None:
            grad_bias.addmv_(z.t(), share)
        if tanh is not None:
            z.mul_(torch.mul(tanh, tanh, out=tanh).neg_().add_(1))
    return loss


def _check_targets(target: Tensor, valid: Tensor, vocab: int) -> None:
    """Names the first target outside the vocabulary; on the CPU only, since it needs the values."""
    if target.device.type != "cpu":
        return
    wrong = valid & ((target < 0) | (target >= vocab))
    if bool(wrong.any()):
        where = int(wrong.nonzero()[0])
        raise UserError(
            f"target id {int(target[where])} at flat position {where} is outside the vocabulary",
            why=f"ids run from 0 to {vocab - 1}",
            fix="tokenise the text with the tokenizer of this model, or enlarge vocab_size",
            code=DATA,
        )
