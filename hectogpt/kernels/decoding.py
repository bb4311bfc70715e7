"""The kernels of decoding as functions: products with small weights, attention over a cache.

Weights are float32, bf16 or int8; all is on the CPU, without gradients. torch 2.13 has no operator that reads small
weights as fast as memory delivers them: its own widen them to float32, and those of the quantized dtypes, which do not,
are deprecated (pytorch issue 184982).
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int32, Int64, UInt8
from torch import Tensor

from hectogpt.kernels.build import find
from hectogpt.kernels.native import call

COLUMNS, GROUP = 64, 32  # as in linear.cpp


class Packed(NamedTuple):
    """A matrix W [out, in] of int8 as linear.cpp reads it: panels of 64 rows, scales, and the sums of the rows."""

    panels: UInt8[Tensor, " bytes"]
    scale: Float[Tensor, " out"]
    sums: Int32[Tensor, " out"]


def are_there() -> bool:
    """Whether this machine has the kernels. The first call on a machine compiles for some seconds."""
    return find().library is not None


def most_rows(dtype: torch.dtype) -> int:
    """Up to so many rows `linear` is faster than torch's products, as measured at 768 x 3072 with AVX-512 and with
    AVX2."""
    library = find().library
    if library is None:
        return 0
    few = library.form.name.startswith("x86-64-v4")
    return (2 if few else 6) if dtype == torch.float32 else (4 if few else 16)


def pack(numbers: Int8[Tensor, "out in"], scale: Float[Tensor, "out 1"]) -> Packed:
    """Whole numbers times scales, one a row."""
    out, width = numbers.shape
    rows = F.pad(numbers, (0, -width % GROUP, 0, -out % COLUMNS))
    panels = rows.view(-1, COLUMNS, rows.shape[1] // 4, 4).transpose(1, 2).contiguous().view(torch.uint8).flatten()
    return Packed(panels, scale[:, 0].float().contiguous(), numbers.sum(dim=1, dtype=torch.int32))


def linear_int8(
    x: Float[Tensor, "*rows in"], weights: Packed, bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "*rows out"]:
    """x W^T + bias in float32; each row of x is rounded to multiples of max|row| / 127."""
    x, width, out = x.float().contiguous(), x.shape[-1], len(weights.scale)
    y = torch.empty(*x.shape[:-1], out)
    _call("linear_int8", x, x.numel() // width, width, out, *weights, bias, y)
    return y


def linear(
    x: Float[Tensor, "*rows in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "*rows out"]:
    """x W^T + bias in float32, for weights in float32 or bf16, which are widened as they are read."""
    x, width, out = x.float().contiguous(), x.shape[-1], len(weight)
    y = torch.empty(*x.shape[:-1], out)
    is_bf16 = ctypes.c_int(weight.dtype == torch.bfloat16)
    _call("linear", is_bf16, x, x.numel() // width, width, out, weight, bias, y)
    return y


def attend(
    q: Float[Tensor, "batch head time d"],
    keys: Float[Tensor, "batch head slot d"],
    values: Float[Tensor, "batch head slot d"],
    starts: Int64[Tensor, " batch"],
    first: int,
    scale: float,
) -> Float[Tensor, "batch time head_d"]:
    """Causal attention of the queries at slots first, first + 1 ... over float32 keys and values that lie in a cache's
    buffers. Row b sees slots from starts[b] on; before them its result is 0."""
    batch, heads, time, d = q.shape
    q, capacity = q.contiguous(), keys.stride(1) // d
    assert keys.stride() == values.stride() == (heads * capacity * d, capacity * d, d, 1)
    out = torch.empty(batch, time, heads * d)
    sizes = (batch, heads, time, d, capacity, first)
    _call("attend", q, keys, values, starts, out, *sizes, float(scale))
    return out


def _call(name: str, *arguments: object) -> None:
    library = find().library
    assert library is not None
    call(library, name, *arguments)
