"""The C++ kernels as torch operations.

The kernels of a training step support bf16 and float32: the softmax of a chunk of logits, causal
attention, norm with rotation, and GELU. The row-wise AdamW supports only float32. A model trains
with kernels after `Transformer.use_kernels(True)`. The kernels for decoding are at the end.
Without kernels, torch's own operations do the same work; results differ in the last place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, Int32, Int64, UInt8
from torch import Tensor, nn

from hectogpt.kernels.build import find

DTYPES = (torch.float32, torch.bfloat16)
Heads = Float[Tensor, "batch head time d"]
Slots = Float[Tensor, "batch head slot d"]
# Columns and rows that are computed at a time, as in cross_entropy.cpp.
PANEL = 256
BLOCK = 32

# On the CPU, a training step with kernels uses them for the head's softmax (model/fused_ce.py),
# causal attention and norm with rotation (model/attention.py), GELU (model/parts.py) and the
# row-wise AdamW (training/optim/adamw.py). Each caller asks whether its tensors fit, and otherwise
# uses torch's operations.


def wanted(part: nn.Module) -> bool:
    """True if a part of a model should use the kernels; torch's compiler does not support them."""
    return bool(part.kernels) and part.training and not torch.compiler.is_compiling()


# --- the softmax of the head


def head_softmax(
    z: Tensor,
    dz_bias: Tensor | None,
    target: Int[Tensor, " rows"],
    target_logit: Float[Tensor, " rows"] | None,
    bias: Float[Tensor, " vocab"] | None,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor]:
    """Compute the losses of rows of logits, and replace the logits by their gradient.

    Args:
        z: logits [rows, vocab]; they are replaced by the gradient, up to a factor per row.
        dz_bias: with a soft cap, a tensor to fill with the gradient that the bias needs.
        target: the targets.
        target_logit: for bf16 logits, the targets' logits in float32.
        bias, soft_cap: as in `fused_losses`.

    Returns the losses, and the factors to multiply the rows of the gradient by.
    """
    rows, vocab = z.shape
    losses, scale = z.new_empty(2, rows, dtype=torch.float32)
    top = 0.0 if bias is None else float(bias.amax())
    call(
        "head_softmax",
        _is_bf16(z),
        z,
        dz_bias,
        rows,
        vocab,
        bias,
        top,
        target,
        target_logit,
        float(soft_cap or 0.0),
        losses,
        scale,
    )
    return losses, scale


def cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    dtype: torch.dtype,
    chunk: int,
    mix: Callable[[slice, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute losses [rows] and the gradients of x and weight. Kernels compute all products.

    Args:
        x: the hidden states, [rows, d].
        weight: the matrix of the head, [vocab, d].
        bias: [vocab], added to the logits. It gets no gradient.
        target: the targets, [rows].
        dtype: the dtype of the products.
        chunk: the number of rows whose exp(logits) exist at the same time.
        mix: called with a slice of the rows and their losses, which it may change in place. It
            returns the factors of these rows' gradients.
    """
    x, weight, target = (t.contiguous() for t in (x.float(), weight.float(), target))
    vocab, d = sizes = weight.shape
    columns = vocab + -vocab % PANEL
    bias = x.new_zeros(vocab) if bias is None else bias.float()
    bias = F.pad(bias, (0, columns - vocab), value=-torch.inf)
    chunk += -chunk % BLOCK
    # Memory for two copies of the weight: one with d rounded up to an even number, and one with d
    # rounded up to a multiple of 16 (see Head in cross_entropy.cpp).
    packed, e = (x.new_empty(columns * n, dtype=dtype) for n in (2 * d + 16, chunk))
    losses, scale = x.new_empty(2, len(x))
    grad_x = torch.empty_like(x)
    grad = x.new_zeros(d, columns)
    is_bf16 = _is_bf16(packed)
    call("head_pack", is_bf16, weight, *sizes, packed)
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        part = x[rows]
        dx = grad_x[rows]
        where = (len(part), *sizes)
        out = (e, losses[rows], scale[rows], dx)
        call("head_rows", is_bf16, part, weight, packed, bias, target[rows], *where, *out)
        factor = mix(rows, losses[rows]) * scale[rows]
        dx *= factor[:, None]
        call("head_columns", is_bf16, part, factor, e, *where, grad)
    del packed, e
    return losses, grad_x, grad[:, :vocab].t().contiguous()


# --- attention


def attention_fits(dtype: torch.dtype, d_head: int) -> bool:
    """True if `causal_attention` supports heads of this dtype and size.

    Without AVX-512, torch's attention in float32 is as fast for large heads (measured).
    """
    library = find().library
    if library is None:
        return False
    large = 128 if library.form.name.startswith("x86-64-v4") or dtype != torch.float32 else 64
    return dtype in DTYPES and d_head <= large


def causal_attention(
    q: Heads, k: Heads, v: Heads, scale: float, first: Int[Tensor, "batch time"] | None = None
) -> Heads:
    """softmax(scale q k^T) v under the causal mask, like torch's scaled_dot_product_attention.

    Scores are never stored (2205.14135). Products of bf16 values are summed in float32.

    Args:
        q, k, v: queries, keys and values.
        scale: the factor of the scores.
        first: the first key that each query sees. It must not decrease along a text. None means 0.
    """
    attended: Tensor = _CausalAttention.apply(q, k, v, float(scale), first)
    return attended


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, scale, first):  # type: ignore[no-untyped-def]
        first = None if first is None else first.contiguous()
        q, k, v = map(_in_rows, (q, k, v))
        out = _like(q)
        lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
        sizes = _sizes(q, (q, k, v, out))
        call(
            "causal_attention",
            _is_bf16(q),
            q,
            k,
            v,
            out,
            *(None,) * 4,
            lse,
            first,
            *sizes,
            scale,
        )
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        ctx.first = first
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        refuse_second_derivatives("this attention")
        q, k, v, out, lse = ctx.saved_tensors
        grad = _in_rows(grad)
        grads = [_like(t) for t in (q, k, v)]
        tensors = (q, k, v, out, grad, *grads)
        call(
            "causal_attention",
            _is_bf16(q),
            *tensors,
            lse,
            ctx.first,
            *_sizes(q, tensors),
            ctx.scale,
        )
        return (*grads, None, None)


# --- norm and rotation of queries and keys, GELU


def norm_rotate_fits(dtype: torch.dtype, d_head: int, cosines: Tensor) -> bool:
    """True if `norm_rotate` supports heads of this dtype and size, and these angles."""
    fits = d_head in (64, 128) and dtype in DTYPES and cosines.device.type == "cpu"
    return fits and cosines.shape[0] == 1 and cosines.shape[-1] % 16 == 0


def norm_rotate(
    x: Heads, cosines: Float[Tensor, "1 1 time pairs"], sines: Tensor, eps: float
) -> Heads:
    """x divided by its root mean square, then rotated; computed in float32."""
    turned: Tensor = _NormRotate.apply(
        x, cosines.float().contiguous(), sines.float().contiguous(), float(eps)
    )
    return turned


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cosines, sines, eps):  # type: ignore[no-untyped-def]
        x = _in_rows(x)
        ctx.save_for_backward(x, cosines, sines)
        ctx.eps = eps
        return _norm_rotate(x, None, cosines, sines, eps)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        refuse_second_derivatives("this norm")
        x, cosines, sines = ctx.saved_tensors
        grad = _in_rows(grad)
        return _norm_rotate(x, grad, cosines, sines, ctx.eps), None, None, None


def _norm_rotate(
    x: Tensor, grad: Tensor | None, cosines: Tensor, sines: Tensor, eps: float
) -> Tensor:
    out = _like(x)
    sizes = _sizes(x, (x, out) if grad is None else (x, out, grad))
    call(
        "norm_rotate",
        _is_bf16(x),
        x,
        grad,
        out,
        cosines,
        sines,
        *sizes,
        cosines.shape[-1],
        eps,
    )
    return out


def gelu_fits(x: Tensor) -> bool:
    """True if `gelu` supports this tensor."""
    return x.dtype in DTYPES and x.device.type == "cpu" and x.is_contiguous()


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """GELU in its tanh form; computed in float32."""
    activated: Tensor = _GELU.apply(x)
    return activated


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return _gelu(x, None)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        refuse_second_derivatives("this GELU")
        (x,) = ctx.saved_tensors
        return _gelu(x, grad.contiguous())


def _gelu(x: Tensor, grad: Tensor | None) -> Tensor:
    out = torch.empty_like(x)
    call("gelu", _is_bf16(x), x, grad, out, x.numel())
    return out


# --- the row-wise AdamW


def row_adam_fits(p: Tensor) -> bool:
    """True if `row_adam` supports this table."""
    fits = p.device.type == "cpu" and p.dtype == torch.float32 and p.is_contiguous()
    return fits and p.shape[-1] % 16 == 0


# --- decoding: products with bf16 or int8 weights, attention over a cache

# torch 2.13 has no operator that reads such weights at the speed of memory: its operators widen
# the weights to float32, or use the deprecated quantized dtypes (pytorch issue 184982). On the CPU
# and without gradients, these kernels are used whenever they are available, regardless of
# `use_kernels`.
COLUMNS = 64
GROUP = 32  # as in linear.cpp


class Packed(NamedTuple):
    """An int8 matrix W [out, in] as linear.cpp reads it.

    Attributes:
        panels: panels of 64 rows.
        scale: the scales of the rows.
        sums: the sums of the rows.
    """

    panels: UInt8[Tensor, " bytes"]
    scale: Float[Tensor, " out"]
    sums: Int32[Tensor, " out"]


def most_rows(dtype: torch.dtype) -> int:
    """The number of rows up to which `linear` is faster than torch's products.

    Measured at 768 x 3072 with AVX-512 and with AVX2.
    """
    library = find().library
    if library is None:
        return 0
    few = library.form.name.startswith("x86-64-v4")
    return (2 if few else 6) if dtype == torch.float32 else (4 if few else 16)


def pack(numbers: Int8[Tensor, "out in"], scale: Float[Tensor, "out 1"]) -> Packed:
    """Pack integers and one scale per row for `linear`."""
    out, width = numbers.shape
    rows = F.pad(numbers, (0, -width % GROUP, 0, -out % COLUMNS))
    panels = (
        rows.view(-1, COLUMNS, rows.shape[1] // 4, 4)
        .transpose(1, 2)
        .contiguous()
        .view(torch.uint8)
        .flatten()
    )
    return Packed(panels, scale[:, 0].float().contiguous(), numbers.sum(dim=1, dtype=torch.int32))


def linear(
    x: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"] | Packed,
    bias: Float[Tensor, " out"] | None,
) -> Float[Tensor, "*rows out"]:
    """x W^T + bias in float32.

    bf16 weights are widened as they are read. With int8 weights, each row of x is rounded to
    multiples of max|row| / 127.
    """
    out = len(weight.scale if isinstance(weight, Packed) else weight)
    x = x.float().contiguous()
    y = x.new_empty(*x.shape[:-1], out)
    sizes = (x.numel() // x.shape[-1], x.shape[-1], out)
    if isinstance(weight, Packed):
        call("linear_int8", x, *sizes, *weight, bias, y)
    else:
        call("linear", _is_bf16(weight), x, *sizes, weight, bias, y)
    return y


def attend(
    q: Heads, keys: Slots, values: Slots, starts: Int64[Tensor, " batch"], first: int, scale: float
) -> Float[Tensor, "batch time head_d"]:
    """Causal attention over float32 keys and values in the buffers of a cache.

    The queries are at slots first, first + 1, ... Row b sees slots from starts[b] on; for queries
    before that slot, the result is 0.
    """
    batch, heads, time, d = q.shape
    q = q.contiguous()
    capacity = keys.stride(1) // d
    assert keys.stride() == values.stride() == (heads * capacity * d, capacity * d, d, 1)
    out = q.new_empty(batch, time, heads * d)
    sizes = (batch, heads, time, d, capacity, first)
    call("attend", q, keys, values, starts.contiguous(), out, *sizes, float(scale))
    return out


# --- calls


def refuse_second_derivatives(what: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(f"{what} has no second derivatives: leave out create_graph=True")


def _in_rows(t: Tensor) -> Tensor:
    """The tensor if its rows are contiguous, otherwise a contiguous copy."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _like(x: Tensor) -> Tensor:
    """An empty tensor [batch, head, time, d], stored as linear maps need it: time before head."""
    batch, heads, time, d = x.shape
    return x.new_empty(batch, time, heads, d).transpose(1, 2)


def _sizes(q: Tensor, tensors: tuple[Tensor, ...]) -> list[object]:
    """The strides of the tensors, then batch, heads, time and d."""
    strides = [stride for t in tensors for stride in t.stride()[:3]]
    return [(ctypes.c_int64 * len(strides))(*strides), *q.shape]


def _is_bf16(t: Tensor) -> ctypes.c_int:
    return ctypes.c_int(t.dtype == torch.bfloat16)


def call(name: str, *arguments: object) -> None:
    """Call a kernel with torch's number of threads.

    Tensors are passed by address, integers as int64, other numbers as float32. Raises MemoryError.
    """
    library = find().library
    assert library is not None
    converted = [_convert(argument) for argument in arguments]
    if getattr(library.code, name)(*converted, ctypes.c_int(torch.get_num_threads())):
        raise MemoryError(f"no memory for {name}")


def _convert(argument: object) -> object:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return ctypes.c_int64(argument) if isinstance(argument, int) else argument
