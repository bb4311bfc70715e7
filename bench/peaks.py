"""The peaks of this machine, to compare other figures with: the best of several tries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bench.race import best
from hectogpt.kernels.dtypes import float32_by_onednn


def matmul_flops(dtype: torch.dtype, n: int = 1536) -> float:
    """Floating point operations per second of an n x n matrix product."""
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    out = torch.empty(n, n, dtype=dtype)
    with float32_by_onednn(dtype):
        return 2 * n**3 / best(lambda: torch.mm(a, b, out=out))


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes per second that are read and written in a copy too large for the caches."""
    source = torch.ones(megabytes << 18)  # not zeros, whose pages would all be one page in the cache
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / best(lambda: target.copy_(source))


def exponentials() -> float:
    """Exponentials per second, of numbers that are in the cache."""
    numbers = torch.randn(1 << 17)
    out = torch.empty_like(numbers)
    return numbers.numel() / best(lambda: torch.exp(numbers, out=out), 200)


PEAKS: dict[str, Callable[[], float]] = {
    "float32": partial(matmul_flops, torch.float32),
    "bfloat16": partial(matmul_flops, torch.bfloat16),
    "copy": copy_bandwidth,
    "exp": exponentials,
}
