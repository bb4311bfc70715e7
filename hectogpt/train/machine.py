"""What this machine offers a run: device, number formats, threads, memory. Everything "auto" is decided here."""

from __future__ import annotations

import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.model import ModelConfig
from hectogpt.model.head import fastest_precision
from hectogpt.train.run import Dtype, Run

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Machine:
    """Choices made for one run. `dtype` is that of the blocks' matrix products (weights stay float32, float64 if asked
    for); `head_dtype` that of the loss head's."""

    device: torch.device
    dtype: torch.dtype
    head_dtype: torch.dtype
    threads: int

    def describe(self) -> dict[str, str | int]:
        """The choices in words, for run.json and summary.json."""
        return {
            "device": device_name(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "head_dtype": str(self.head_dtype).removeprefix("torch."),
            "threads": self.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


def choose(run: Run) -> Machine:
    """Decide device, formats and threads, and set the thread count. Raises UserError for what cannot be had."""
    device = torch.device(_device(run.device))
    threads = run.threads or physical_cores()
    torch.set_num_threads(threads)
    dtype = _dtype(run.dtype, torch.bfloat16 if _multiplies_bf16(device, run.model.d_model) else torch.float32)
    if run.head_dtype != "auto":
        head_dtype = _dtype(run.head_dtype, torch.float32)
    elif dtype == torch.float64:
        head_dtype = dtype
    else:
        head_dtype = fastest_precision(run.model.d_model, run.model.vocab_size, device)
    check_memory(run.model, device)
    return Machine(device, dtype, head_dtype, threads)


def _device(name: str) -> str:
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.partition(":")[0]
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(kind, False):
        have = ", ".join(k for k, ok in available.items() if ok)
        raise UserError(f"device {name!r} is not available", why=f"this machine has {have}", fix="--device auto")
    return name


def _dtype(name: Dtype, automatic: torch.dtype) -> torch.dtype:
    return automatic if name == "auto" else _DTYPES[name]


def _multiplies_bf16(device: torch.device, d_model: int) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # Seconds a step, float32 to bf16: matrix tiles (Xeon) 1.03 to .72 at d 256 and .51 to .41 at d 128, dev loss the
    # same to 2e-4; AVX512-BF16 alone (EPYC, one thread) 6.7 to 5.0 at d 256, 4 layers, 2.13 to 2.08 at d 128.
    # A processor with neither gained nothing; smaller blocks were not measured.
    return d_model >= 128 and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def physical_cores() -> int:
    """Physical cores this process may use: two threads of one core share its multipliers."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for block in info.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            fields = dict(line.split(":", 1) for line in block.splitlines() if ":" in line)
            fields = {key.strip(): value.strip() for key, value in fields.items()}
            if "core id" in fields:
                cores.add((fields.get("physical id"), fields["core id"]))
    return max(1, min(allowed, len(cores) or allowed))


def device_name(device: torch.device) -> str:
    """The processor's own name, such as "AMD EPYC" or "NVIDIA H100"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def available_memory(device: torch.device) -> int:
    """Free bytes on the device (main memory for the CPU)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(config: ModelConfig, device: torch.device) -> None:
    """Refuse a model whose weights, gradients and two Adam moments cannot fit, before anything is allocated."""
    parameters = config.parameter_floor()
    need, have = 16 * parameters, available_memory(device)
    if need > have:
        raise UserError(
            f"a model of {parameters:,} parameters does not fit",
            why=f"training it takes at least {need / 2**30:,.1f} GiB, {have / 2**30:,.1f} GiB are free",
            fix="a smaller --model.d-model, --model.n-layers or --model.vocab-size",
            code=errors.MEMORY,
        )


def peak_memory_mb() -> float:
    """This process's largest resident size so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
