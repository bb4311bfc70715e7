"""The vocabulary head and its loss without the logits: chunked over rows, exact, with its own backward.

Gradients are made while the chunk of logits is in cache, then scaled in backward. The full matrix of
logits never exists. Higher derivatives are refused (once_differentiable), and so are targets out of range.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from hectogpt.errors import DATA, UserError
from hectogpt.model.softmax import Kernel, Options, Scratch, compiled_kernel, compiled_pass, eager_pass

# Bytes of one chunk of logits: larger ones leave the last-level cache, smaller ones repack the weight more often, which
# costs in proportion to d. Up to four times as much from d = 512 on.
CHUNK_BYTES = {"cpu": 52 << 20, "cuda": 512 << 20}
# The compiled pass subtracts (maximum of the raw logits) + (maximum of the bias), which is at most the spread
# of the bias above the true maximum: beyond this many nats probabilities of 1e-12 would underflow.
BIAS_SPREAD = 60.0

_kernels: dict[tuple[bool, torch.dtype, int], Kernel] = {}


class Mixture(NamedTuple):
    """A second distribution beside the softmax, as far as a loss needs it: for each row the probability it gives to the
    target, and its weight w in (1 - w) softmax + w other. Gradients flow into both."""

    probability: Float[Tensor, "*rows"]
    weight: Float[Tensor, "*rows"]


def head_loss(
    x: Float[Tensor, "*rows d"],
    weight: Float[Tensor, "vocab d"],
    targets: Int[Tensor, "*rows"],
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    soft_cap: float | None = None,
    token_weights: Float[Tensor, "*rows"] | None = None,
    mixture: Mixture | None = None,
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
    ignore_index, as F.cross_entropy does with class weights. With a mixture the loss is
    -log((1 - w) softmax + w probability). label_smoothing spreads the target uniformly (1512.00567; not together with a
    mixture). precision is the type of the matrix products (None: that of the inputs);
    the loss is summed in float64 and returned in float32 (float64 for float64 inputs).
    chunk_rows overrides the number of rows whose logits exist at a time.

    Raises UserError (data) for a target outside [0, vocab) and for a mean over no target at all, on the CPU;
    on CUDA, where looking would stall the queue, the first is a device assert and the second gives NaN.
    """
    vocab, d = weight.shape
    flat, target = x.reshape(-1, d), targets.reshape(-1)
    valid = target != ignore_index
    check_targets(target, valid, vocab)
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
    if mixture is not None and label_smoothing:
        raise ValueError("label smoothing does not go with a mixture")
    options = Options(product, soft_cap, label_smoothing, chunk_rows, kernel)
    chance, part = (None, None) if mixture is None else (t.reshape(-1).to(high) for t in mixture)
    inputs = (flat, weight, bias, chance, part)
    wanted = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in inputs)
    if not any(wanted):
        return _run(*inputs, target, share, options, wanted)[0]
    return _HeadLoss.apply(*inputs, target, share, options, wanted)


class _HeadLoss(torch.autograd.Function):
    """Loss and gradients in forward; backward only scales them."""

    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        loss, grads = _run(*inputs)
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
    chance: Tensor | None,
    mixed_in: Tensor | None,
    target: Tensor,
    share: Tensor,
    options: Options,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, list[Tensor | None]]:
    """Loss and the wanted gradients of rows [N, d], chunk by chunk.

    Per chunk three products: z = x W^T, then with dz (the gradient with respect to z, up to a factor per row)
    grad_x = (dz W) * factor and grad_W^T += (x * factor)^T dz. The factor folds the row's weight, and in the
    compiled pass 1 / sum(exp), into the small matrices, so that no pass over the logits normalises them. A mixture
    enters there too: it only scales a row's gradient, by the softmax's share of the target's probability.
    """
    rows, vocab, product, high = x.shape[0], weight.shape[0], options.product, share.dtype
    x, weight = x.detach(), weight.detach()
    d, odd = x.shape[1], x.shape[1] % 2 if product == torch.bfloat16 else 0
    # bf16 is multiplied in pairs: with d = 33 the three products take 0.48 s a step, padded to 34 only 0.34.
    x_low, weight_low = (F.pad(t.to(product), (0, odd)) for t in (x, weight))
    bias_high = None if bias is None else bias.detach().to(high)
    mixed = product != high
    room = CHUNK_BYTES.get(x.device.type, CHUNK_BYTES["cpu"]) * min(max(d, 128), 512) // 128
    limit = room // (vocab * x_low.element_size())
    size = max(1, min(options.chunk_rows or max(16, limit), rows))
    scratch = Scratch(size, vocab, options, high, bias is not None, x.device)
    grad_x = torch.empty_like(x) if wanted[0] else None
    grad_weight = torch.zeros(weight.shape[::-1], dtype=high, device=x.device) if wanted[1] else None
    grad_bias = torch.zeros(1, vocab, dtype=high, device=x.device) if wanted[2] else None
    partial = None
    if grad_weight is not None and mixed:
        partial = torch.empty(d + odd, vocab, dtype=product, device=x.device)
    losses = torch.empty(rows, dtype=high, device=x.device)
    grad_chance = torch.empty_like(losses) if wanted[3] else None
    grad_mixed_in = torch.empty_like(losses) if wanted[4] else None
    with _onednn_products(product):
        for start in range(0, rows, size):
            chunk = slice(start, min(start + size, rows))
            picked, part = target[chunk], share[chunk]
            z = scratch.logits[: chunk.stop - start]
            torch.mm(x_low[chunk], weight_low.t(), out=z)
            # bf16 rounds a logit to 8 bits: the target's own is recomputed, and used in the sum as well.
            exact = (x[chunk].to(high) * weight[picked].to(high)).sum(1) if mixed else None
            run = eager_pass if options.kernel is None else compiled_pass
            losses[chunk], scale, dz, dz_bias = run(z, picked, exact, bias_high, scratch, options)
            if chance is not None and mixed_in is not None:
                losses[chunk], kept, *slopes = _mix(losses[chunk], chance[chunk].detach(), mixed_in[chunk].detach())
                for grad, slope in zip((grad_chance, grad_mixed_in), slopes, strict=True):
                    if grad is not None:
                        grad[chunk] = part * slope
                part = part * kept
            factor = part if scale is None else part * scale
            if grad_bias is not None:
                grad_bias.add_(torch.mm(factor[None].to(product), dz_bias))
            if grad_x is not None:
                grad_x[chunk] = torch.mm(dz, weight_low)[:, :d] * factor[:, None]
            if grad_weight is not None:
                scaled = (x[chunk].to(high) * factor[:, None]).to(product)
                if partial is None:
                    grad_weight.addmm_(scaled.t(), dz)
                else:
                    torch.mm(F.pad(scaled, (0, odd)).t(), dz, out=partial)
                    grad_weight.add_(partial[:d])
    loss = torch.dot(losses.double(), share.double()).to(high)
    grads = [
        grad_x,
        None if grad_weight is None else grad_weight.t().contiguous().to(weight.dtype),
        None if grad_bias is None or bias is None else grad_bias[0].to(bias.dtype),
        grad_chance,
        grad_mixed_in,
    ]
    return loss, grads


def _mix(loss: Tensor, chance: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows' losses under the mixture; its derivatives with respect to the softmax's loss, `chance` and `weight`.

    In logarithms, because a softmax alone may give a target less than float32 can hold.
    """
    own = torch.log1p(-weight) - loss
    mixed = -torch.logaddexp(own, (weight * chance).log())
    inverse = mixed.clamp(max=80.0).exp()  # 1 / probability; beyond e^80 only a chance of 0 multiplies it
    return mixed, (own + mixed).exp(), -weight * inverse, (mixed - loss).exp() - chance * inverse


def prepare(
    vocab: int, *, precision: torch.dtype = torch.float32, soft_cap: float | None = None, bias: bool = False
) -> float | None:
    """Compile the element-wise pass for a vocabulary; from then on head_loss(backend="auto") uses it.

    Returns the seconds it took, or None where no C++ compiler works (head_loss then stays eager). The first
    compilation on a machine takes 10-16 s, later ones find it in the user's cache folder (about 1 s). It pays
    with a soft cap only: per 8,192 tokens and 50,257 words 2.5 CPU-s become 1.7 (d 33, bf16), against 1.24
    and 1.27 without a cap, where torch's own softmax is as quick.
    """
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "hectogpt"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    key, began = (bool(soft_cap), precision, vocab), time.perf_counter()
    if key not in _kernels:
        _kernels[key] = compiled_kernel(*key)
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
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
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


def check_targets(target: Tensor, valid: Tensor, vocab: int) -> None:
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
