"""Choose the faster way to multiply on this CPU: with which library, and in which dtype."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

from hectogpt import hardware
from hectogpt.kernels.build import machine


@contextlib.contextmanager
def float32_by_onednn(dtype: torch.dtype) -> Iterator[None]:
    """Context manager: let oneDNN compute float32 products on AMD CPUs.

    There it takes half of MKL's time at the shapes used here; on Intel, MKL is faster.
    torch uses oneDNN if it is allowed to use bf16 internally. On x86 without AMX tiles, oneDNN has
    no kernel that does so, and still computes in float32 (difference 1e-7, tested). With AMX tiles
    it would round to bf16, and on ARM it may. Nothing is changed there, nor for other dtypes.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    if dtype != torch.float32 or not prefers_onednn():
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@functools.cache
def prefers_onednn() -> bool:
    """True if oneDNN is faster for float32 products and still exact.

    That is the case on AMD's x86 CPUs without AMX tiles.
    """
    return (
        machine() == "x86_64"
        and "amd" in hardware.cpu_name().lower()
        and not hardware.has_cpu_flag("amx_tile")
    )


def prefers_bf16() -> bool:
    """True if large products are faster in bf16 than in float32.

    That is the case with AMX tiles, and with AVX512-BF16 on AMD (895 GFLOP/s in bf16, 373 in
    float32), but not on Intel without AMX (150 and 250). Without such instructions, and on ARM, a
    product in bf16 takes 12 to 400 times as long (pytorch issue 146508).
    """
    is_amd = "amd" in hardware.cpu_name().lower()
    return hardware.has_cpu_flag("amx_tile") or (is_amd and hardware.has_cpu_flag("avx512_bf16"))
