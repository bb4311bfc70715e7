"""The softmax of a chunk of logits: losses of its rows and the gradient with respect to the logits, in one pass.

Two forms: torch's own operations over blocks of rows that fit the last-level cache, and the C++ kernel of native.py.
For bf16 logits the caller passes the target's logit in float32, because the one in the chunk is rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hectogpt import torch_private
from hectogpt.kernels import native

# The eager form works on this much at a time. On a processor whose last-level cache is slow (Intel, 2 MB of second
# level a core) 16 MB cost a fifth more processor time. Below 2 MB the thread barriers of every operation cost more.
BLOCK_BYTES = 4 << 20
# With a soft cap the C++ kernel subtracts (maximum of the raw logits) + (maximum of the bias), which is at most the
# spread of the bias above the true maximum: beyond this many nats probabilities of 1e-12 would underflow.
BIAS_SPREAD = 60.0


class Scratch:
    """Buffers that all chunks of a call share: fresh ones would cost a page fault per 4 KiB."""

    def __init__(
        self,
        rows: int,
        vocab: int,
        dtype: torch.dtype,
        acc_dtype: torch.dtype,
        device: torch.device,
        *,
        soft_cap: float | None,
        with_bias: bool,
        native: bool,
    ) -> None:
        def buffer(count: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(count, vocab, dtype=dtype, device=device)

        self.acc_dtype, self.soft_cap, self.native = acc_dtype, soft_cap, native
        self.logits = buffer(rows, dtype)
        self.bias_side = buffer(rows, dtype) if soft_cap and with_bias else None
        if native:
            return
        self.block = min(rows, max(1, BLOCK_BYTES // (vocab * acc_dtype.itemsize))) if device.type == "cpu" else rows
        self.rows = torch.arange(rows, device=device)
        self.work = buffer(self.block, acc_dtype) if dtype != acc_dtype else None
        self.spare = buffer(self.block, acc_dtype) if soft_cap else None


# --- native -----------------------------------------------------------------------------------------------------------


def native_softmax(
    z: Tensor,
    target: Tensor,
    target_logit: Tensor | None,
    bias: Tensor | None,
    scratch: Scratch,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Losses of the rows, the factor 1 / sum, dz without that factor, and the same with respect to the bias."""
    side = None if scratch.bias_side is None else scratch.bias_side[: len(z)]
    losses, scale = native.head_softmax(z, side, target.contiguous(), target_logit, bias, scratch.soft_cap)
    return losses, scale, z, z if side is None else side


# --- eager ------------------------------------------------------------------------------------------------------------


def eager_softmax(
    z: Tensor,
    target: Tensor,
    target_logit: Tensor | None,
    bias: Tensor | None,
    scratch: Scratch,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Losses of the rows, no factor, dz in place of the logits, and dz with respect to the bias."""
    losses = torch.empty(z.shape[0], dtype=torch.float32 if scratch.work is not None else z.dtype, device=z.device)
    for start in range(0, z.shape[0], scratch.block):
        rows = slice(start, min(start + scratch.block, z.shape[0]))
        f = z[rows]
        if scratch.work is not None:
            f = scratch.work[: rows.stop - start].copy_(f)
        here = (scratch.rows[: f.shape[0]], target[rows])
        if target_logit is not None:
            f[here] = target_logit[rows]
        side = None if scratch.bias_side is None else scratch.bias_side[rows]
        losses[rows] = _softmax_rows(f, here, bias, scratch.spare, side, scratch.soft_cap)
        if scratch.work is not None:
            z[rows].copy_(f)
    return losses, None, z, z if scratch.bias_side is None else scratch.bias_side[: z.shape[0]]


def _softmax_rows(
    z: Tensor,
    here: tuple[Tensor, Tensor],
    bias: Tensor | None,
    spare: Tensor | None,
    bias_side: Tensor | None,
    soft_cap: float | None,
) -> Tensor:
    """Loss of each row; z, the raw logits, becomes (softmax - onehot) (1 - tanh^2), the gradient with respect to them.

    here: row numbers and targets. bias_side, if there is one, gets softmax - onehot, the gradient of the bias.
    """
    tanh = None
    if soft_cap and spare is not None:
        tanh = torch.div(z, soft_cap, out=spare[: z.shape[0]]).tanh_()
        torch.mul(tanh, soft_cap, out=z)
    if bias is not None:
        z.add_(bias)
    top = z.amax(1)
    target_logit = z[here]
    torch_private.softmax_(z)
    loss = top - z.amax(1).log() - target_logit  # log-sum-exp: the largest p is exp(top) / sum
    z[here] += -1  # indexing: scatter_ copies the whole matrix twice
    if bias_side is not None:
        bias_side.copy_(z)
    if tanh is not None:
        z.mul_(torch.mul(tanh, tanh, out=tanh).neg_().add_(1))
    return loss


def native_fits(soft_cap: float | None, dtype: torch.dtype, bias: Tensor | None) -> bool:
    """Whether the C++ kernel is in use and takes such logits; with a cap the spread of this bias must allow it."""
    return native.in_use() and dtype in native.DTYPES and (soft_cap is None or _spread_allows(bias))


def _spread_allows(bias: Tensor | None) -> bool:
    return bias is None or bool(bias.detach().amax() - bias.detach().amin() <= BIAS_SPREAD)
