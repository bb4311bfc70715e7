"""The C++ compiler of this machine, and a first use of what it compiles, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROBE = "#include <Python.h>\n#include <vector>\nint probe() { return std::vector<int>(1).size(); }\n"
SECONDS = 180.0  # for all files together; most machines need 10
# Loads the OpenMP that torch brings, if there is one, then the library, and runs its check.
CHECK = """import ctypes, sys
if sys.argv[2]: ctypes.CDLL(sys.argv[2], ctypes.RTLD_GLOBAL)
sys.exit(ctypes.CDLL(sys.argv[1]).check(0))"""


def cpp_compiler() -> str:
    """The C++ compiler that is called, by torch.compile too: $CXX or the system's usual one."""
    return os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))


def cpp_compiler_fault() -> str | None:
    """Why the C++ compiler does not work; None if it does. Compiles a probe of three lines, which takes about half a
    second. Like torch's code, the probe includes Python's header."""
    include = [f"-I{sysconfig.get_path(path)}" for path in ("include", "platinclude")]
    options = [] if sys.platform == "win32" else ["-std=c++17", "-fPIC"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(PROBE, encoding="utf-8")
            _run([*options, *include, "-c", str(source), "-o", str(Path(folder, "probe.o"))], 60.0)
    except OSError as error:
        missing = "Python.h" in str(error)
        return "Python.h is missing, which generated code includes" if missing else str(error)
    return None


def compile_library(sources: Sequence[Path], library: Path, options: Sequence[str]) -> None:
    """Compile C++ files into a library, with OpenMP where the compiler has it, else with the system's threads.

    Raises FileNotFoundError without a compiler, TimeoutError for one that takes minutes, and OSError with the
    compiler's words for another failure.
    """
    command = [*options, *map(str, sources), "-o", str(library)]
    try:
        _run(["-fopenmp", *command], SECONDS)
    except (FileNotFoundError, TimeoutError):
        raise
    except OSError as error:
        if "openmp" not in str(error) and "omp" not in str(error):
            raise
        _run(["-pthread", *command], SECONDS)


def _run(arguments: Sequence[str], seconds: float) -> None:
    name = cpp_compiler()
    if shutil.which(name) is None:
        raise FileNotFoundError(f"there is no program {name} on the PATH")
    try:
        done = subprocess.run([name, *arguments], capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{name} has not compiled within {seconds:.0f} s") from None
    except OSError as error:
        raise OSError(f"{name} cannot be run: {error.strerror or error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = [line for line in lines if "error" in line] or lines or [f"exit code {done.returncode}"]
        raise OSError(f"{name} failed: {said[0][:300]}")


def check_library(library: Path, openmp: Path | None) -> str | None:
    """Why a library cannot be used on this processor; None if it can. Its check runs in a process of its own, because
    an instruction that the processor lacks ends the process."""
    command = [sys.executable, "-I", "-S", "-c", CHECK, str(library), str(openmp or "")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"its check cannot be run: {error}"
    if done.returncode < 0:
        return f"its check was ended by signal {-done.returncode} (4: an instruction that the processor lacks)"
    if done.returncode and done.stderr:
        return f"it cannot be loaded: {done.stderr.strip().splitlines()[-1][:200]}"
    return f"{done.returncode} of its kernels are wrong here" if done.returncode else None
