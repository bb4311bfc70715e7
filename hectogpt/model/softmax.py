"""The element-wise part of the vocabulary head: a chunk of logits becomes losses and a gradient.

Two forms of the same pass: torch built-ins over blocks of rows that fit the last-level cache, and functions
for torch.compile. Both take the target's logit from the caller, who knows it better than a bf16 chunk does.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# The eager pass works on this much at a time. On a processor whose last-level cache is slow (Intel, 2 MB of second
# level a core) 16 MB cost a fifth more CPU time. Below 2 MB the thread barriers of every operation and block cost more
# than they save, seconds when other programs want the same cores.
BLOCK_BYTES = 4 << 20
Kernel = Callable[..., tuple[Tensor, Tensor]]


class Options(NamedTuple):
    """The closed choices of one call."""

    product: torch.dtype
    soft_cap: float | None
    smoothing: float
    chunk_rows: int | None
    kernel: Callable[..., tuple[Tensor, Tensor]] | None


class Scratch:
    """Buffers that all chunks of a call share: fresh ones would cost a page fault per 4 KiB."""

    def __init__(
        self,
        rows: int,
        vocab: int,
        options: Options,
        high: torch.dtype,
        with_bias: bool,
        device: torch.device,
    ) -> None:
        def buffer(count: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(count, vocab, dtype=dtype, device=device)

        low, mixed = options.product, options.product != high
        self.block = min(rows, max(1, BLOCK_BYTES // (vocab * high.itemsize)))
        if device.type != "cpu":
            self.block = rows
        if options.kernel is not None:
            rows = max(rows, 2)  # torch.compile would specialise on a single row
        self.rows = torch.arange(rows, device=device)
        self.logits = buffer(rows, low)
        self.bias_side = buffer(rows, low) if options.soft_cap and with_bias else None
        if options.kernel is None:
            self.work = buffer(self.block, high) if mixed else None
            self.spare = buffer(self.block, high) if options.soft_cap else None
        else:
            # bf16 in place would stall: a masked store is not forwarded to the overlapping next load.
            self.exp = buffer(rows, low) if mixed else None
            self.no_bias = torch.zeros(vocab, dtype=high, device=device)


def eager_pass(
    z: Tensor,
    target: Tensor,
    exact: Tensor | None,
    bias: Tensor | None,
    scratch: Scratch,
    options: Options,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Losses of the rows, no factor, dz in place of the logits, and dz with respect to the bias."""
    losses = torch.empty(z.shape[0], dtype=torch.float32 if scratch.work is not None else z.dtype, device=z.device)
    for start in range(0, z.shape[0], scratch.block):
        rows = slice(start, min(start + scratch.block, z.shape[0]))
        f = z[rows]
        if scratch.work is not None:
            f = scratch.work[: rows.stop - start].copy_(f)
        here = (scratch.rows[: f.shape[0]], target[rows])
        if exact is not None:
            f[here] = exact[rows]
        side = None if scratch.bias_side is None else scratch.bias_side[rows]
        losses[rows] = _softmax_rows(f, here, bias, scratch.spare, side, options)
        if scratch.work is not None:
            z[rows].copy_(f)
    return losses, None, z, z if scratch.bias_side is None else scratch.bias_side[: z.shape[0]]


def _softmax_rows(
    z: Tensor,
    here: tuple[Tensor, Tensor],
    bias: Tensor | None,
    spare: Tensor | None,
    bias_side: Tensor | None,
    options: Options,
) -> Tensor:
    """Loss of each row; z, the raw logits, becomes the gradient with respect to them.

    With p the softmax and s the smoothing: dz = (p - (1 - s) onehot - s / V) (1 - tanh^2).
    """
    cap, smoothing = options.soft_cap, options.smoothing
    tanh = None
    if cap and spare is not None:
        tanh = torch.div(z, cap, out=spare[: z.shape[0]]).tanh_()
        torch.mul(tanh, cap, out=z)
    if bias is not None:
        z.add_(bias)
    top = z.amax(1)
    wanted = z[here]
    if smoothing:
        wanted = wanted.mul(1 - smoothing).add_(z.mean(1), alpha=smoothing)
    torch._softmax(z, 1, False, out=z)
    loss = top - z.amax(1).log() - wanted  # log-sum-exp: the largest p is exp(top) / sum
    if smoothing:
        z.sub_(smoothing / z.shape[1])
    z[here] += smoothing - 1  # indexing: scatter_ copies the whole matrix twice
    if bias_side is not None:
        bias_side.copy_(z)
    if tanh is not None:
        z.mul_(torch.mul(tanh, tanh, out=tanh).neg_().add_(1))
    return loss


def _plain_kernel(bias: Tensor, bias_top: Tensor, z: Tensor, e: Tensor | None, side: None) -> tuple[Tensor, Tensor]:
    """e (None: in place of z) = exp(z + bias - top); returns top and the row sums of e before rounding."""
    top = z.amax(1).to(bias.dtype) + bias_top
    f = torch.exp(z.to(bias.dtype) + bias - top[:, None])
    (z if e is None else e).copy_(f)
    return top, f.sum(1)


def _capped_kernel(
    bias: Tensor, bias_top: Tensor, z: Tensor, e: Tensor | None, side: Tensor | None, cap: Tensor
) -> tuple[Tensor, Tensor]:
    """As above for cap(z); e holds exp times (1 - tanh^2), side the exp alone.

    tanh(u) = y / (y + 2) and 1 - tanh^2 = 4 (y + 1) / (y + 2)^2 with y = exp(2 u) - 1: a third of tanh's time.
    """
    top = cap * torch.tanh(z.amax(1).to(bias.dtype) / cap) + bias_top
    y = torch.expm1((z.to(bias.dtype) * (2 / cap)).clamp_max(40.0))
    q = 1 / (y + 2)
    f = torch.exp(cap * (y * q) + bias - top[:, None])
    (z if e is None else e).copy_(f * (4 * q * q * (y + 1)))
    if side is not None:
        side.copy_(f)
    return top, f.sum(1)


def compiled_pass(
    z: Tensor,
    target: Tensor,
    exact: Tensor | None,
    bias: Tensor | None,
    scratch: Scratch,
    options: Options,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Losses of the rows, 1 / sum, and unnormalised dz, dz with respect to the bias."""
    assert options.kernel is not None
    count, cap = z.shape[0], options.soft_cap
    here = (scratch.rows[:count], target)
    rows = max(count, 2)
    bias = scratch.no_bias if bias is None else bias
    rounded = z[here].to(bias.dtype)
    exact = rounded if exact is None else exact
    e = None if scratch.exp is None else scratch.exp[:rows]
    side = None if scratch.bias_side is None else scratch.bias_side[:rows]
    buffers = (scratch.logits[:rows], e, side)
    for buffer in buffers:
        if buffer is not None:
            torch._dynamo.maybe_mark_dynamic(buffer, 0)
    slope = None
    if cap:
        top, total = options.kernel(bias, bias.amax(), *buffers, torch.tensor(cap, dtype=bias.dtype))
        tanh = torch.tanh(exact / cap)
        slope = 1 - tanh * tanh
        exact, rounded = cap * tanh, cap * torch.tanh(rounded / cap)
    else:
        top, total = options.kernel(bias, bias.amax(), *buffers)
    top, total, e = top[:count], total[:count], z if e is None else e[:count]
    shift = bias[target] - top
    mine = torch.exp(exact + shift)
    total = total + (mine - torch.exp(rounded + shift))
    losses = total.log() - exact - shift
    hit = mine - total  # (p - 1) * total: set as a whole, so that p near 1 keeps its digits in bf16
    e[here] = (hit if slope is None else hit * slope).to(e.dtype)
    if side is not None:
        side = side[:count]
        side[here] = hit.to(side.dtype)
    return losses, 1 / total, e, e if side is None else side


def compiled_kernel(capped: bool, precision: torch.dtype, vocab: int) -> Kernel:
    """A kernel of its own for each head, compiled at its first call; rows are symbolic, so any chunk fits it."""
    kernel = inspect.unwrap(_capped_kernel if capped else _plain_kernel)  # run-time type checks do not compile
    # Its own code object: torch.compile counts versions per code object and gives up at 8.
    code = kernel.__code__.replace(co_name=f"{kernel.__name__}_{vocab}_{precision.itemsize}")
    compiled: Kernel = torch.compile(types.FunctionType(code, kernel.__globals__), fullgraph=True)
    return compiled
