"""The softmax of a chunk of logits: losses of its rows and the gradient with respect to the logits, in one pass.

Three forms: torch's own operations over blocks of rows that fit the last-level cache, functions for torch.compile, and
the C++ kernel of native.py, for bf16 logits only.
For bf16 logits the caller passes the target's logit in float32, because the one in the chunk is rounded.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hectogpt import torch_private
from hectogpt.model import native

# The eager form works on this much at a time. On a processor whose last-level cache is slow (Intel, 2 MB of second
# level a core) 16 MB cost a fifth more processor time. Below 2 MB the thread barriers of every operation cost more.
BLOCK_BYTES = 4 << 20
# The compiled form subtracts (maximum of the raw logits) + (maximum of the bias), which is at most the spread of the
# bias above the true maximum: beyond this many nats probabilities of 1e-12 would underflow.
BIAS_SPREAD = 60.0
Kernel = Callable[..., tuple[Tensor, Tensor]]

_kernels: dict[tuple[bool, torch.dtype, int], Kernel] = {}


class Options(NamedTuple):
    """The choices of one call of the fused cross entropy. matmul_dtype: dtype of the products and of the logits.
    kernel: the compiled softmax; native: that of native.py, which needs none. Neither: the eager one."""

    matmul_dtype: torch.dtype
    soft_cap: float | None
    chunk_rows: int | None
    kernel: Kernel | None
    native: bool = False


class Scratch:
    """Buffers that all chunks of a call share: fresh ones would cost a page fault per 4 KiB."""

    def __init__(
        self,
        rows: int,
        vocab: int,
        options: Options,
        acc_dtype: torch.dtype,
        with_bias: bool,
        device: torch.device,
    ) -> None:
        def buffer(count: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(count, vocab, dtype=dtype, device=device)

        low, mixed = options.matmul_dtype, options.matmul_dtype != acc_dtype
        self.acc_dtype = acc_dtype
        self.block = min(rows, max(1, BLOCK_BYTES // (vocab * acc_dtype.itemsize)))
        if device.type != "cpu":
            self.block = rows
        if options.kernel is not None:
            rows = max(rows, 2)  # torch.compile would specialise on a single row
        self.rows = torch.arange(rows, device=device)
        self.logits = buffer(rows, low)
        self.bias_side = buffer(rows, low) if options.soft_cap and with_bias else None
        if options.native:
            return
        if options.kernel is None:
            self.work = buffer(self.block, acc_dtype) if mixed else None
            self.spare = buffer(self.block, acc_dtype) if options.soft_cap else None
        else:
            # bf16 in place would stall: a masked store is not forwarded to the overlapping next load.
            self.exp = buffer(rows, low) if mixed else None
            self.no_bias = torch.zeros(vocab, dtype=acc_dtype, device=device)


# --- native -----------------------------------------------------------------------------------------------------------


def native_softmax(
    z: Tensor,
    target: Tensor,
    target_logit: Tensor | None,
    bias: Tensor | None,
    scratch: Scratch,
    options: Options,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Losses of the rows, the factor 1 / sum, dz without that factor, and the same with respect to the bias."""
    assert target_logit is not None
    side = None if scratch.bias_side is None else scratch.bias_side[: len(z)]
    losses, scale = native.head_softmax(z, side, target.contiguous(), target_logit, bias, options.soft_cap)
    return losses, scale, z, z if side is None else side


# --- eager ------------------------------------------------------------------------------------------------------------


def eager_softmax(
    z: Tensor,
    target: Tensor,
    target_logit: Tensor | None,
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
        if target_logit is not None:
            f[here] = target_logit[rows]
        side = None if scratch.bias_side is None else scratch.bias_side[rows]
        losses[rows] = _softmax_rows(f, here, bias, scratch.spare, side, options.soft_cap)
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


# --- compiled ---------------------------------------------------------------------------------------------------------


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


def compiled_softmax(
    z: Tensor,
    target: Tensor,
    target_logit: Tensor | None,
    bias: Tensor | None,
    scratch: Scratch,
    options: Options,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Losses of the rows, the factor 1 / sum, dz without that factor, and the same with respect to the bias."""
    assert options.kernel is not None
    count, cap = z.shape[0], options.soft_cap
    here = (scratch.rows[:count], target)
    rows = max(count, 2)
    bias = scratch.no_bias if bias is None else bias
    rounded = z[here].to(bias.dtype)
    exact = rounded if target_logit is None else target_logit
    e = None if scratch.exp is None else scratch.exp[:rows]
    side = None if scratch.bias_side is None else scratch.bias_side[:rows]
    buffers = (scratch.logits[:rows], e, side)
    for buffer in buffers:
        if buffer is not None:
            torch_private.mark_dynamic(buffer, 0)
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


def find_kernel(soft_cap: float | None, dtype: torch.dtype, vocab: int, bias: Tensor | None) -> Kernel | None:
    """The kernel compiled for such a head, if there is one and the spread of this bias allows its use."""
    kernel = _kernels.get((bool(soft_cap), dtype, vocab))
    return None if kernel is None or not _spread_allows(bias) else kernel


def native_fits(soft_cap: float | None, dtype: torch.dtype, bias: Tensor | None) -> bool:
    """Whether the C++ kernel is in use and takes such logits; with a cap the spread of this bias must allow it."""
    return native.in_use() and dtype == torch.bfloat16 and (soft_cap is None or _spread_allows(bias))


def _spread_allows(bias: Tensor | None) -> bool:
    return bias is None or bool(bias.detach().amax() - bias.detach().amin() <= BIAS_SPREAD)


def compile_kernel(soft_cap: float | None, dtype: torch.dtype, vocab: int, bias: bool) -> bool:
    """Compile the kernel for heads of this kind and size; False where no C++ compiler works.

    The first compilation on a machine takes 10 to 16 s, later ones about 1 s (torch keeps the code on disk).
    """
    key = (bool(soft_cap), dtype, vocab)
    kernel = _kernels.get(key) or _new_kernel(*key)
    options = Options(dtype, soft_cap, None, kernel)
    scratch = Scratch(32, vocab, options, torch.float32, bias, torch.device("cpu"))
    scratch.logits.zero_()
    z, target = scratch.logits, torch.zeros(32, dtype=torch.long)
    logit = torch.zeros(32) if dtype != torch.float32 else None
    try:
        with torch.no_grad():  # as in the loss: the code is compiled for one grad mode
            compiled_softmax(z, target, logit, torch.zeros(vocab) if bias else None, scratch, options)
    except RuntimeError:  # what torch._inductor raises where the compiler is missing or fails
        return False
    _kernels[key] = kernel
    return True


def _new_kernel(capped: bool, dtype: torch.dtype, vocab: int) -> Kernel:
    """A kernel of its own for each head, compiled at its first call; rows are symbolic, so any chunk fits it."""
    kernel = inspect.unwrap(_capped_kernel if capped else _plain_kernel)  # run-time type checks do not compile
    # Its own code object: torch.compile counts versions per code object and gives up at 8.
    code = kernel.__code__.replace(co_name=f"{kernel.__name__}_{vocab}_{dtype.itemsize}")
    compiled: Kernel = torch.compile(types.FunctionType(code, kernel.__globals__), fullgraph=True)
    return compiled


# --- products ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def float32_by_onednn(dtype: torch.dtype) -> Iterator[None]:
    """Within the context, float32 products go to oneDNN, 2 to 3 times MKL's speed at these shapes on AMD processors.

    The switch is the permission to use bf16 inside. Without AMX tiles oneDNN has no such kernel and computes in float32
    (difference 1e-7, tested). With AMX it would round, so there MKL stays. Other dtypes are left alone.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    if dtype != torch.float32 or torch_private.has_amx_tiles():
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
