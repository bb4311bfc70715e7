"""Device, dtypes and threads of a run: every "auto" is decided here, once, as a frozen Machine.
What malloc keeps.
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
from hectogpt.errors import UserError, set_to
from hectogpt.kernels.dtypes import prefers_bf16
from hectogpt.model import ModelConfig
from hectogpt.training.run import Data, Dtype, Run

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Machine:
    """The choices made for one run. `dtype` is that of the blocks' matrix products (weights stay
    float32, float64 if asked for); `head_dtype` that of the loss head's."""

    device: torch.device
    dtype: torch.dtype
    head_dtype: torch.dtype
    threads: int

    def describe(self) -> dict[str, str | int]:
        """The choices in words, for run.json, summary.json and records."""
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
        """bf16 products in the blocks where the machine wants them; weights and sums stay
        float32.
        """
        if self.dtype == torch.bfloat16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def choose(run: Run, chosen: Mapping[str, Any] = MappingProxyType({})) -> Machine:
    """Decide device, dtypes and threads, and set the number of threads. Raises UserError for what
    cannot be had.

    chosen: what was chosen when the run began, as `Machine.describe` has it, to choose the same as
    far as this machine has it. What the run itself names comes first."""

    def wanted(field: str, before: Any, usable: Container[Any]) -> Any:
        """What the run names, or else what was chosen before."""
        own = getattr(run, field)
        return before if own in ("auto", 0) and before in usable else own

    have = (
        ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    )  # a Mac's CPU has matrix units of its own
    name = wanted("device", chosen.get("kind"), have)
    if name != "auto" and name.partition(":")[0] not in have:
        why = f"this machine has {', '.join(have)}"
        raise UserError(f"device {name!r} is not available", why=why, fix=set_to("device", "auto"))
    device = torch.device(have[-1] if name == "auto" else name)
    named = {
        field: wanted(field, chosen.get(field), list(_DTYPES)) for field in ("dtype", "head_dtype")
    }
    check_memory(run.model, device, run.data, named["dtype"])
    threads = wanted("threads", chosen.get("threads"), range(1, hardware.usable_cores() + 1))
    threads = threads or hardware.physical_cores()
    torch.set_num_threads(threads)
    # On a CPU bf16 products in the blocks save time from d_model = 128 on, at equal held-out loss
    # (results/LOG.md, "precision").
    fast = fast_matmul_dtype(device)
    wide_enough = device.type != "cpu" or run.model.d_model >= 128
    dtype = _DTYPES.get(named["dtype"], fast if wide_enough else torch.float32)
    head_dtype = _DTYPES.get(named["head_dtype"], dtype if dtype == torch.float64 else fast)
    return Machine(device, dtype, head_dtype, threads)


def fast_matmul_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype in which large products are faster, those of the vocabulary head above all: bf16
    or float32. A rule, not a measurement: the bits of a run must not depend on what else the
    machine is doing."""
    if torch.device(device).type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    return (
        torch.bfloat16 if torch.device(device).type == "cpu" and prefers_bf16() else torch.float32
    )


def check_memory(
    config: ModelConfig, device: torch.device, data: Data, dtype: Dtype = "auto"
) -> None:
    """Refuse a run that cannot fit, before anything is allocated: weights, gradients and two Adam
    moments, the batch, and what the backward pass keeps of the rows that are computed at a time.

    All are lower bounds, so that no run is refused that would fit. Raises UserError (MEMORY).
    """
    parameters = config.min_parameters()
    have = hardware.free_memory(str(device))
    ids = data.batch_size * (8 * data.seq_len + 36)  # int64, and each row's place in a list
    need = 16 * parameters + ids + data.rows_at_once * _bytes_per_row(config, data.seq_len, dtype)
    if need > have:
        rows = f"{data.rows_at_once:,} rows of {data.seq_len:,} tokens at a time"
        raise UserError(
            f"a model of {parameters:,} parameters and {rows} do not fit",
            why=f"training takes at least {need / 2**30:,.1f} GiB, {have / 2**30:,.1f} GiB are "
            "free",
            fix="a smaller model.d_model, model.n_layers or model.vocab_size, "
            + f"{set_to('data.leaves', 'more parts of the batch')}, or "
            f"{set_to('data.batch_size', 'fewer rows')}",
            code=errors.MEMORY,
        )


def _bytes_per_row(config: ModelConfig, seq_len: int, dtype: Dtype) -> int:
    """At least what the backward pass needs of a row: per layer and token the input of each of the
    two norms, queries, keys, values, and the MLP's four times wider layer, d_model numbers
    each."""
    item = {"float64": 8, "float32": 4}.get(dtype, 2)
    return seq_len * config.d_model * (config.n_layers * 9 + 1) * item


def keep_freed_memory() -> None:
    """Let malloc keep the memory that this process frees from now on, where the C library is
    glibc.

    A training step frees its large tensors and asks for the same sizes again. As a rule each of
    them goes back to the system, which then clears every page anew: a tenth of a step and more."""
    trim_threshold = -1
    mmap_threshold = -3  # mallopt's settings, from malloc.h; in bytes
    if (libc := _glibc()) is not None:
        for setting in (trim_threshold, mmap_threshold):
            libc.mallopt(setting, (1 << 31) - 1)


def give_back_memory() -> None:
    """Give what `keep_freed_memory` has kept so far to the system."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


@cache
def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
