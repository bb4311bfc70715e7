"""Device, dtypes and threads of a run, and the memory that malloc keeps.

Every "auto" is decided here, once. The result is a frozen Machine.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Container, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch

from hectogpt import errors, hardware
from hectogpt.errors import SetTo, UserError
from hectogpt.kernels.dtypes import prefers_bf16
from hectogpt.model import ModelConfig
from hectogpt.training.run import Data, Dtype, Run

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Machine:
    """The device, dtypes and threads chosen for one run.

    Attributes:
        device: the device.
        dtype: the dtype of the blocks' matrix products. Weights are float32, or float64 if `dtype`
            is float64.
        head_dtype: the dtype of the loss head's matrix products.
        threads: the number of threads.
    """

    device: torch.device
    dtype: torch.dtype
    head_dtype: torch.dtype
    threads: int

    def describe(self) -> dict[str, str | int]:
        """The choices as plain values, for run.json, summary.json and records."""
        return {
            "kind": self.device.type,
            "device": hardware.device_name(str(self.device)),
            "dtype": str(self.dtype).removeprefix("torch."),
            "head_dtype": str(self.head_dtype).removeprefix("torch."),
            "threads": self.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def autocast(self) -> AbstractContextManager[object]:
        """Context manager: compute products in bf16 in the blocks if `dtype` is bfloat16.

        Weights and sums stay float32.
        """
        if self.dtype == torch.bfloat16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def choose(run: Run, chosen: Mapping[str, Any] = MappingProxyType({})) -> Machine:
    """Decide device, dtypes and threads, and set the number of threads.

    Args:
        run: the run; the fields that it sets take precedence.
        chosen: the choices made when the run began, from `Machine.describe`. They are repeated as
            far as this machine allows.

    Raises UserError if the run asks for something that this machine does not have.
    """

    def wanted(field: str, before: Any, usable: Container[Any]) -> Any:
        """The run's own value, or else the one chosen before if it is usable."""
        own = getattr(run, field)
        return before if own in ("auto", 0) and before in usable else own

    # No "mps": a Mac's CPU has matrix units of its own.
    cards = torch.cuda.device_count()
    have = ["cpu", *(f"cuda:{n}" for n in range(cards)), *["cuda"][:cards]]
    name = wanted("device", chosen.get("kind"), have)
    if name not in ("auto", *have):
        why = f"this machine has {', '.join(have)}"
        raise UserError(f"device {name!r} is not available", why=why, fix=SetTo("device", "auto"))
    device = torch.device(have[-1] if name == "auto" else name)
    named = {
        field: wanted(field, chosen.get(field), list(_DTYPES)) for field in ("dtype", "head_dtype")
    }
    check_memory(run.model, device, run.data, named["dtype"])
    threads = wanted("threads", chosen.get("threads"), range(1, hardware.usable_cores() + 1))
    threads = threads or hardware.physical_cores()
    torch.set_num_threads(threads)
    # On a CPU, bf16 products in the blocks save time for d_model >= 128, at equal held-out loss
    # (results/LOG.md, "precision").
    fast = fast_matmul_dtype(device)
    wide_enough = device.type != "cpu" or run.model.d_model >= 128
    dtype = _DTYPES.get(named["dtype"], fast if wide_enough else torch.float32)
    head_dtype = _DTYPES.get(named["head_dtype"], dtype if dtype == torch.float64 else fast)
    return Machine(device, dtype, head_dtype, threads)


def fast_matmul_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype, bf16 or float32, that makes large products faster, above all the head's.

    A rule decides it, not a measurement: the bits of a run must not depend on what else the
    machine is doing.
    """
    on_cpu = torch.device(device).type == "cpu"
    quick = prefers_bf16() if on_cpu else torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if quick else torch.float32


def check_memory(
    config: ModelConfig, device: torch.device, data: Data, dtype: Dtype = "auto"
) -> None:
    """Refuse a run that cannot fit into memory, before anything is allocated.

    The estimate counts weights, gradients, two Adam moments, the batch, and what the backward pass
    keeps for the rows that are computed at a time. All of these are lower bounds, so no run that
    would fit is refused.

    Raises UserError (MEMORY).
    """
    parameters = config.min_parameters()
    have = hardware.free_memory(str(device))
    ids = data.batch_size * (8 * data.seq_len + 36)  # int64, and each row's place in a list
    need = 16 * parameters + ids + data.rows_at_once * _bytes_per_row(config, data.seq_len, dtype)
    if need > have:
        rows = f"{data.rows_at_once:,} rows of {data.seq_len:,} tokens at a time"
        raise UserError(
            f"a model of {parameters:,} parameters and {rows} do not fit",
            why=f"training takes at least {need / 2**30:,.1f} GiB; {have / 2**30:,.1f} GiB are "
            "free",
            fix=(
                "a smaller model.d_model, model.n_layers or model.vocab_size, ",
                SetTo("data.leaves", "more parts of the batch"),
                ", or ",
                SetTo("data.batch_size", "fewer rows"),
            ),
            code=errors.MEMORY,
        )


def _bytes_per_row(config: ModelConfig, seq_len: int, dtype: Dtype) -> int:
    """A lower bound on the bytes that the backward pass keeps per row.

    Per layer and token, in units of d_model values: the inputs of the two norms (2), queries, keys
    and values (3), and the MLP's layer (4).
    """
    item = {"float64": 8, "float32": 4}.get(dtype, 2)
    return seq_len * config.d_model * (config.n_layers * 9 + 1) * item


def keep_freed_memory() -> None:
    """Let malloc keep the memory that this process frees from now on, if the C library is glibc.

    A training step frees its large tensors and asks for the same sizes again. Normally each of
    them goes back to the system, which then clears every page again: this takes at least a tenth
    of a step.
    """
    trim_threshold = -1
    mmap_threshold = -3  # malloc.h defines both numbers
    if (libc := _glibc()) is not None:
        for setting in (trim_threshold, mmap_threshold):
            libc.mallopt(setting, (1 << 31) - 1)


def give_back_memory() -> None:
    """Return to the system what `keep_freed_memory` has kept so far."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


@cache
def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
