"""Facts about this machine and its processes: names, cores, memory.

This module makes no decisions. It imports torch only to ask about GPUs.
"""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "not enough memory",
    "can't allocate memory",
    "CUDA out of memory",
)


def usable_cores() -> int:
    """The number of logical cores that this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def physical_cores() -> int:
    """The number of physical cores that this process may use.

    Two threads on one core share its multipliers.
    """
    allowed = usable_cores()
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def cpu_name() -> str:
    """The CPU's own name, such as "AMD EPYC"."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """The vector instructions of this CPU that matter for matrix products."""
    return [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if has_cpu_flag(flag)]


def has_cpu_flag(flag: str) -> bool:
    """True if Linux lists this flag for the CPU; False on other systems."""
    # ARM calls them Features.
    return flag in (cpu_facts().get("flags") or cpu_facts().get("Features", "")).split()


def device_name(device: str) -> str:
    """The name of the CPU, or of a GPU such as "cuda:1" ("NVIDIA H100")."""
    if device.partition(":")[0] == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return cpu_name()


def free_memory(device: str = "cpu") -> int:
    """Free bytes on a device; main memory for the CPU."""
    if device.partition(":")[0] == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def is_out_of_memory(error: BaseException) -> bool:
    """True if an exception means that memory has run out, which torch reports in several ways."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        # OutOfMemoryError is torch's own class.
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def processes_with(name: str, value: str) -> list[int]:
    """Ids of this user's other processes that have this environment variable with this value.

    A process's environment is the one that it was started with, or inherited when it was forked.
    """
    alive = (
        process
        for process in psutil.process_iter(["environ", "status"])
        if process.pid != os.getpid()
    )
    found = [process for process in alive if (process.info["environ"] or {}).get(name) == value]
    return [process.pid for process in found if process.info["status"] != psutil.STATUS_ZOMBIE]


def peak_memory_mb(device: str = "cpu") -> float:
    """Peak memory in MiB: torch's allocations on a GPU, else this process's resident size.

    The latter is read from VmHWM where it exists, because ru_maxrss starts at the size of the
    process that forked this one.
    """
    if device.partition(":")[0] == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    status = _fields(_read("/proc/self/status"))
    if "VmHWM" in status:
        return int(status["VmHWM"].split()[0]) / 2**10
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def taken_by(pid: int) -> tuple[float, float]:
    """Return the MiB that a process and its children hold now, and the CPU seconds they have used.

    The seconds include children that have ended. Both are 0 once the process has ended.
    """
    megabytes = 0.0
    seconds = 0.0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for one in (parent, *parent.children(recursive=True)):
            megabytes += one.memory_info().rss / 2**20
            # User and system time, of the process and of the children that it has waited for.
            seconds += sum(one.cpu_times()[:4])
    return megabytes, seconds


def limit_this_process(memory: int, file_size: int) -> None:
    """Limit the memory of this process and the files that it writes.

    Args:
        memory: bytes of address space beyond what the process has now.
        file_size: the largest file, in bytes.

    Does nothing where the system has no such limits (Windows).
    """
    with suppress(ImportError, OSError, ValueError):
        import resource

        if sys.platform == "linux":
            # Other systems ignore the limit on address space, or count memory already in use.
            size = psutil.Process().memory_info().vms + memory
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@cache
def cpu_facts() -> dict[str, str]:
    """The entries of the first core in Linux's /proc/cpuinfo."""
    return _fields(_read("/proc/cpuinfo").partition("\n\n")[0])


def _fields(text: str) -> dict[str, str]:
    """Parse lines "name : value" into a dict."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _read(path: str) -> str:
    """The contents of a file in /proc; "" where there is none (macOS, Windows)."""
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return ""
