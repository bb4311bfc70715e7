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


class ChunkSoftmax:
    """The softmax of chunks of logits, and the buffers that all chunks of a call share: fresh ones would cost a page
    fault per 4 KiB. logits: [rows, vocab], where the chunks' products go; bias: [vocab], in acc_dtype."""

    def __init__(
        self, logits: Tensor, acc_dtype: torch.dtype, bias: Tensor | None, soft_cap: float | None, native: bool
    ) -> None:
        self.logits, self.acc_dtype, self.bias, self.soft_cap, self.native = logits, acc_dtype, bias, soft_cap, native
        self.bias_side = torch.empty_like(logits) if soft_cap and bias is not None else None
        rows, vocab = logits.shape
        on_cpu = logits.device.type == "cpu"
        self.block = min(rows, max(1, BLOCK_BYTES // (vocab * acc_dtype.itemsize))) if on_cpu else rows
        self.rows = torch.arange(rows, device=logits.device)
        block = (self.block, vocab)
        self.work = logits.new_empty(block, dtype=acc_dtype) if logits.dtype != acc_dtype and not native else None
        self.spare = logits.new_empty(block, dtype=acc_dtype) if soft_cap and not native else None

    def __call__(
        self, z: Tensor, target: Tensor, target_logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Losses of the rows of `logits` in z, the factor that dz lacks (1 / sum, or None), dz in place of the logits,
        and dz with respect to the bias."""
        side = None if self.bias_side is None else self.bias_side[: len(z)]
        scale = None
        if self.native:
            losses, scale = native.head_softmax(z, side, target.contiguous(), target_logit, self.bias, self.soft_cap)
        else:
            losses = self._by_torch(z, side, target, target_logit)
        return losses, scale, z, z if side is None else side

    def _by_torch(self, z: Tensor, side: Tensor | None, target: Tensor, target_logit: Tensor | None) -> Tensor:
        """Losses of the rows; z becomes dz, side dz with respect to the bias."""
        losses = torch.empty(len(z), dtype=z.dtype if self.work is None else torch.float32, device=z.device)
        for start in range(0, len(z), self.block):
            rows = slice(start, min(start + self.block, len(z)))
            f = z[rows] if self.work is None else self.work[: rows.stop - start].copy_(z[rows])
            here = (self.rows[: len(f)], target[rows])
            if target_logit is not None:
                f[here] = target_logit[rows]
            losses[rows] = self._rows_by_torch(f, here, None if side is None else side[rows])
            if self.work is not None:
                z[rows].copy_(f)
        return losses

    def _rows_by_torch(self, z: Tensor, here: tuple[Tensor, Tensor], side: Tensor | None) -> Tensor:
        """Loss of each row; z, the raw logits, becomes (softmax - onehot) (1 - tanh^2), the gradient with respect to
        them. here: row numbers and targets. side, if there is one, gets softmax - onehot, the gradient of the bias."""
        tanh = None
        if self.soft_cap and self.spare is not None:
            tanh = torch.div(z, self.soft_cap, out=self.spare[: len(z)]).tanh_()
            torch.mul(tanh, self.soft_cap, out=z)
        if self.bias is not None:
            z.add_(self.bias)
        top = z.amax(1)
        target_logit = z[here]
        torch_private.softmax_(z)
        loss = top - z.amax(1).log() - target_logit  # log-sum-exp: the largest p is exp(top) / sum
        z[here] += -1  # indexing: scatter_ copies the whole matrix twice
        if side is not None:
            side.copy_(z)
        if tanh is not None:
            z.mul_(torch.mul(tanh, tanh, out=tanh).neg_().add_(1))
        return loss


def native_softmax_fits(soft_cap: float | None, dtype: torch.dtype, bias: Tensor | None) -> bool:
    """Whether the C++ kernel is in use and takes such logits; with a cap the spread of this bias must allow it."""
    if not (native.in_use() and dtype in native.DTYPES):
        return False
    return soft_cap is None or bias is None or bool(bias.detach().amax() - bias.detach().amin() <= BIAS_SPREAD)
