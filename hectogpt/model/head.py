"""The vocabulary head and its loss without the logits: chunked over rows, exact, with its own backward.

Gradients are made while the chunk of logits is in cache, then scaled in backward. The full matrix of
logits never exists. Higher derivatives are refused (once_differentiable), and so are targets out of range.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
import types
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from hectogpt.errors import DATA, UserError

# Bytes of one chunk of logits (it should stay in the last-level cache; a GPU only wants it large), and of
# the block of rows whose element-wise part runs at a time in the eager path (second-level cache).
CHUNK_BYTES = {"cpu": 26 << 20, "cuda": 512 << 20}
BLOCK_BYTES = 2 << 20
# The compiled pass subtracts (maximum of the raw logits) + (maximum of the bias), which is at most the spread
# of the bias above the true maximum: beyond this many nats probabilities of 1e-12 would underflow.
BIAS_SPREAD = 60.0

_kernels: dict[tuple[bool, torch.dtype, int], Callable[..., tuple[Tensor, Tensor]]] = {}


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
    product = precision or torch.promote_types(x.dtype, weight.dtype)
    kernel = None
    if backend != "eager":
        kernel = _kernels.get((bool(soft_cap), product, vocab))
        if kernel is None and backend == "compiled":
            raise ValueError(f"no compiled pass for {vocab} words in {product}: call prepare() first")
        if x.device.type != "cpu" or label_smoothing or not _narrow(bias):
            kernel = None
    options = _Options(product, soft_cap, label_smoothing, chunk_rows, kernel)
    wanted = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (x, weight, bias))
    if not any(wanted):
        return _run(flat, weight, bias, target, share, options, wanted)[0]
    return _HeadLoss.apply(flat, weight, bias, target, share, options, wanted)


class _Options(NamedTuple):
    """The closed choices of one call."""

    product: torch.dtype
    soft_cap: float | None
    smoothing: float
    chunk_rows: int | None
    kernel: Callable[..., tuple[Tensor, Tensor]] | None


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
    """Loss and the wanted gradients of rows [N, d], chunk by chunk.

    Per chunk three products: z = x W^T, then with dz (the gradient with respect to z, up to a factor per row)
    grad_x = (dz W) * factor and grad_W^T += (x * factor)^T dz. The factor folds the row's weight, and in the
    compiled pass 1 / sum(exp), into the small matrices, so that no pass over the logits normalises them.
    """
    rows, vocab, product, high = x.shape[0], weight.shape[0], options.product, share.dtype
    x, weight = x.detach(), weight.detach()
    x_low, weight_low = x.to(product), weight.to(product)
    bias_high = None if bias is None else bias.detach().to(high)
    mixed = product != high
    limit = CHUNK_BYTES.get(x.device.type, CHUNK_BYTES["cpu"]) // (vocab * x_low.element_size())
    size = max(1, min(options.chunk_rows or max(16, limit), rows))
    scratch = _Scratch(size, vocab, options, high, bias is not None, x.device)
    grad_x = torch.empty_like(x) if wanted[0] else None
    grad_weight = torch.zeros(weight.shape[::-1], dtype=high, device=x.device) if wanted[1] else None
    grad_bias = torch.zeros(1, vocab, dtype=high, device=x.device) if wanted[2] else None
    partial = torch.empty_like(grad_weight, dtype=product) if grad_weight is not None and mixed else None
    losses = torch.empty(rows, dtype=high, device=x.device)
    with _onednn_products(product):
        for start in range(0, rows, size):
            chunk = slice(start, min(start + size, rows))
            picked, part = target[chunk], share[chunk]
            z = scratch.logits[: chunk.stop - start]
            torch.mm(x_low[chunk], weight_low.t(), out=z)
            # bf16 rounds a logit to 8 bits: the target's own is recomputed, and used in the sum as well.
            exact = (x[chunk].to(high) * weight[picked].to(high)).sum(1) if mixed else None
            run = _eager_pass if options.kernel is None else _compiled_pass
            losses[chunk], scale, dz, dz_bias = run(z, picked, exact, bias_high, scratch, options)
            factor = part if scale is None else part * scale
            if grad_bias is not None:
                grad_bias.add_(torch.mm(factor[None].to(product), dz_bias))
            if grad_x is not None:
                grad_x[chunk] = torch.mm(dz, weight_low) * factor[:, None]
            if grad_weight is not None:
                scaled = (x[chunk].to(high) * factor[:, None]).to(product)
                if partial is None:
                    grad_weight.addmm_(scaled.t(), dz)
                else:
                    grad_weight.add_(torch.mm(scaled.t(), dz, out=partial))
    loss = torch.dot(losses.double(), share.double()).to(high)
    return (
        loss,
        grad_x,
        None if grad_weight is None else grad_weight.t().contiguous().to(weight.dtype),
        None if grad_bias is None or bias is None else grad_bias[0].to(bias.dtype),
    )


class _Scratch:
    """Buffers that all chunks of a call share: fresh ones would cost a page fault per 4 KiB."""

    def __init__(
        self,
        rows: int,
        vocab: int,
        options: _Options,
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


def _eager_pass(
    z: Tensor,
    target: Tensor,
    exact: Tensor | None,
    bias: Tensor | None,
    scratch: _Scratch,
    options: _Options,
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
    options: _Options,
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


def _compiled_pass(
    z: Tensor,
    target: Tensor,
    exact: Tensor | None,
    bias: Tensor | None,
    scratch: _Scratch,
    options: _Options,
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


def prepare(
    vocab: int, *, precision: torch.dtype = torch.float32, soft_cap: float | None = None, bias: bool = False
) -> float | None:
    """Compile the element-wise pass for a vocabulary; from then on head_loss(backend="auto") uses it.

    Returns the seconds it took, or None where no C++ compiler works (head_loss then stays eager). The first
    compilation on a machine takes about 15 s, later processes find it in the user's cache folder (about 2 s).
    Measured gain on 2 cores: about 0.2 s per 8,192 tokens and 50,257 words, 1.3 s with a soft cap; a
    run too short to earn that back should not call this.
    """
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "hectogpt"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    key, began = (bool(soft_cap), precision, vocab), time.perf_counter()
    if key not in _kernels:
        kernel = _capped_kernel if soft_cap else _plain_kernel
        # A code object of its own: torch.compile counts versions per code object and gives up at 8.
        code = kernel.__code__.replace(co_name=f"{kernel.__name__}_{vocab}_{precision.itemsize}")
        own = types.FunctionType(code, kernel.__globals__)
        _kernels[key] = torch.compile(own, fullgraph=True)
    x, weight = torch.zeros(32, 2), torch.zeros(vocab, 2)
    try:
        head_loss(
            x.requires_grad_(), weight, torch.zeros(32, dtype=torch.long), bias=torch.zeros(vocab) if bias else None,
            soft_cap=soft_cap, precision=precision, backend="compiled", chunk_rows=32,
        )  # fmt: skip
    except RuntimeError:  # what torch._inductor raises where the compiler is missing or fails
        del _kernels[key]
        return None
    return time.perf_counter() - began


def fastest_precision(d: int, vocab: int, device: torch.device | str = "cpu") -> torch.dtype:
    """bf16 or float32 for the products of a head, by timing both on a slice of it (under half a second)."""
    rows, words = 256, min(vocab, 8192)
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32):
        x, weight = (torch.ones(n, d, dtype=dtype, device=device) for n in (rows, words))
        out = torch.empty(rows, words, dtype=dtype, device=device)
        tries = []
        with _onednn_products(dtype):
            for _ in range(7):
                _finish(device)
                began = time.perf_counter()
                torch.mm(x, weight.t(), out=out)
                torch.mm(out, weight)
                torch.mm(x.t(), out)
                _finish(device)
                tries.append(time.perf_counter() - began)
        seconds[dtype] = min(tries)
    return min(seconds, key=lambda dtype: seconds[dtype])


def _finish(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _onednn_products(product: torch.dtype) -> Iterator[None]:
    """Routes float32 products to oneDNN, 2-3 times MKL's speed at these shapes on AMD processors.

    The switch is the permission to use bf16 inside; without AMX tiles oneDNN has no such kernel and computes in
    float32 (difference 1e-7, measured and tested). With AMX it would round, so there MKL stays.
    """
    matmul = torch.backends.mkldnn.matmul
    if product != torch.float32 or torch.cpu._is_amx_tile_supported():
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _narrow(bias: Tensor | None) -> bool:
    """Whether the compiled pass's bound on the row maximum is close enough (see BIAS_SPREAD)."""
    return bias is None or bool(bias.detach().amax() - bias.detach().amin() <= BIAS_SPREAD)


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
