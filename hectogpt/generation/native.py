"""Products with weights of 8 bits (int_linear.cpp), and attention over a cache (attend.cpp): compiled once on
this machine and called through ctypes.

torch 2.13 has no operator that reads such weights as fast as memory delivers them: its own widen them to float32, and
those of the quantized dtypes, which do not, are deprecated (pytorch issue 184982).
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int32, Int64, UInt8
from torch import Tensor

from hectogpt import hardware
from hectogpt.model.native import load_library

# Written out rather than "native": the cache folder may be shared by machines with different processors.
OPTIONS = ("-ffp-contract=off", "-mavx512f", "-mavx512bw", "-mavx512vnni")
INSTRUCTIONS = ("avx512f", "avx512bw", "avx512_vnni")
COLUMNS, GROUP = 64, 32  # as in int_linear.cpp


class PackedWeights(NamedTuple):
    """A matrix W [out, in] as int_linear.cpp reads it: panels of 64 rows, scales, 128 times the sums of the rows."""

    panels: UInt8[Tensor, " bytes"]
    scale: Float[Tensor, " out"]
    excess: Int32[Tensor, " out"]
    bias: Float[Tensor, " out"] | None = None


def pack(numbers: Int8[Tensor, "out in"], scale: Float[Tensor, "out 1"]) -> PackedWeights:
    """Whole numbers times scales, one a row."""
    out, width = numbers.shape
    rows = F.pad(numbers, (0, -width % GROUP, 0, -out % COLUMNS))
    panels = rows.view(-1, COLUMNS, rows.shape[1] // 4, 4).transpose(1, 2).contiguous().view(torch.uint8).flatten()
    return PackedWeights(panels, scale[:, 0].float().contiguous(), 128 * numbers.sum(dim=1, dtype=torch.int32))


def linear(x: Float[Tensor, "*rows in"], out: int, weights: PackedWeights) -> Float[Tensor, "*rows out"]:
    """x W^T + bias in float32; each row of x is rounded to multiples of max|row| / 127."""
    library = _load()
    assert isinstance(library, ctypes.CDLL)
    x, width = x.float().contiguous(), x.shape[-1]
    y = torch.empty(*x.shape[:-1], out)
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in (*weights, y)]
    library.int_linear(8, x.data_ptr(), x.numel() // width, width, out, *addresses, torch.get_num_threads())
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
    library = _load()
    assert isinstance(library, ctypes.CDLL)
    batch, heads, time, d = q.shape
    q, capacity = q.contiguous(), keys.stride(1) // d
    assert keys.stride() == values.stride() == (heads * capacity * d, capacity * d, d, 1)
    out = torch.empty(batch, time, heads * d)
    addresses = [tensor.data_ptr() for tensor in (q, keys, values, starts, out)]
    library.attend(*addresses, batch, heads, time, d, capacity, first, scale, torch.get_num_threads())
    return out


def fault() -> str | None:
    """Why `linear` cannot be used here; None if it can. The first call on a machine compiles for a few seconds."""
    library = _load()
    return library if isinstance(library, str) else None


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    missing = [name for name in INSTRUCTIONS if not hardware.has_cpu_flag(name)]
    if missing:
        return f"the processor has no {missing[0]}"
    try:
        library = load_library("decoding", Path(__file__).parent, OPTIONS)
    except OSError as error:
        return hardware.cpp_compiler_fault() or f"compiling: {error}".partition("\n")[0]
    number, address = ctypes.c_int, ctypes.c_void_p
    library.int_linear.argtypes = [number, address, *[number] * 3, *[address] * 5, number]
    library.attend.argtypes = [*[address] * 5, *[number] * 6, ctypes.c_float, number]
    library.int_linear.restype = library.attend.restype = None
    return library
