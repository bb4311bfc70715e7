"""The library of C++ kernels for this processor, out of the package or compiled on first use.

A form is the source compiled for a kind of processor. The best form that this processor names is taken first. One that
cannot be had, loaded or used leaves its reason and gives way to the next; without any, torch's operations do the work.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hectogpt import files, hardware
from hectogpt.errors import UserError

FOLDER = Path(__file__).parent
PREBUILT = FOLDER / "prebuilt"  # in wheels for one platform
# Never -ffast-math, which makes exp wrong by 41 %.
OPTIONS = ("-w", "-O2", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=fast")

SECONDS = 180.0  # for all files together; most machines need 10
# Loads the OpenMP that torch brings, if there is one, then the library, and runs its check.
CHECK = """import ctypes, sys
if sys.argv[2]: ctypes.CDLL(sys.argv[2], ctypes.RTLD_GLOBAL)
sys.exit(ctypes.CDLL(sys.argv[1]).check(0))"""


class Form(NamedTuple):
    """A kind of processor. flags: what it names, in Linux's words; options: the compiler's for it."""

    name: str
    machine: str
    flags: tuple[str, ...]
    options: tuple[str, ...]


_V3 = ("-mavx2", "-mfma", "-mf16c")
_V4 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma")
_V4_FLAGS = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "fma")
FORMS = (
    Form("x86-64-v4-bf16", "x86_64", (*_V4_FLAGS, "avx512_bf16"), (*_V4, "-mavx512bf16")),
    Form("x86-64-v4", "x86_64", _V4_FLAGS, _V4),
    Form("x86-64-v3-vnni", "x86_64", ("avx2", "fma", "avx_vnni"), (*_V3, "-mavxvnni")),
    Form("x86-64-v3", "x86_64", ("avx2", "fma"), _V3),
    Form("armv8.2", "aarch64", ("asimddp",), ("-march=armv8.2-a+dotprod",)),
    Form("armv8", "aarch64", (), ("-march=armv8-a",)),
)


class Library(NamedTuple):
    """A library that is loaded. made: how it was had."""

    form: Form
    code: ctypes.CDLL
    made: str


class Found(NamedTuple):
    """The library of this machine, if there is one, and why each better form is not used."""

    library: Library | None
    reasons: tuple[str, ...]


def sources() -> list[Path]:
    """The C++ files."""
    return sorted(FOLDER.glob("*.cpp"))


def machine() -> str:
    """The kind of processor, as FORMS names it."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def forms() -> list[Form]:
    """Those that this processor names, the best one first."""
    here = [form for form in FORMS if form.machine == machine()]
    if sys.platform == "darwin" and machine() == "aarch64":
        return here  # every Apple processor; the system names no flags
    return [form for form in here if all(map(hardware.has_cpu_flag, form.flags))]


@cache
def find() -> Found:
    """The library for this processor, compiled if need be (about ten seconds, once on a machine)."""
    reasons: list[str] = []
    here = forms()
    if not here:
        known = "AVX2 or NEON" if machine() in ("x86_64", "aarch64") else "an x86 or ARM processor of 64 bits"
        return Found(None, (f"the kernels need {known}",))
    for path, form in [(PREBUILT / f"{form.name}.so", form) for form in here]:
        if path.exists() and (library := _use(form, path, "came with the package", reasons)):
            return Found(library, tuple(reasons))
    if sys.platform == "win32":
        return Found(None, (*reasons, "on Windows none are compiled"))
    for form in here:
        try:
            path = compiled(form)
        except (FileNotFoundError, TimeoutError) as error:  # as for every other form
            return Found(None, (*reasons, str(error)))
        except OSError as error:
            reasons.append(f"{form.name}: {error}")
            continue
        if library := _use(form, path, f"compiled by {cpp_compiler()}", reasons):
            return Found(library, tuple(reasons))
        if "cannot be loaded" in reasons[-1]:  # a folder from which nothing may be executed, as for every other form
            break
    return Found(None, tuple(reasons))


def compiled(form: Form, *more: str) -> Path:
    """The library of a form in the cache folder, compiled if it is not there. more: options of the compiler. Raises
    OSError as `compile_library` does, and for a folder that cannot be written."""
    options = (*OPTIONS, *form.options, *more)
    text = b"".join(path.read_bytes() for path in (*sorted(FOLDER.glob("*.h")), *sources()))
    text += " ".join((cpp_compiler(), *options)).encode()
    try:
        library = files.cache_dir() / "kernels" / f"{form.name}-{hashlib.sha256(text).hexdigest()[:16]}.so"
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(library) as temporary:
                compile_library(sources(), temporary, options)
    except UserError as error:  # no folder for the cache
        raise OSError(str(error)) from None
    return library


def _use(form: Form, path: Path, made: str, reasons: list[str]) -> Library | None:
    """Load a library that passes its check. What has passed on this kind of processor is not checked again."""
    key = hashlib.sha256(path.read_bytes() + hardware.cpu_name().encode()).hexdigest()[:16]
    passed = None
    with suppress(UserError):  # a user without a home folder: checked every time
        passed = files.cache_dir() / "kernels" / f"{key}.passed"
    if passed is None or not passed.exists():
        if fault := check_library(path, openmp_of_torch()):
            reasons.append(f"{form.name} ({made}): {fault}")
            return None
        if passed is not None:
            with suppress(OSError):
                passed.parent.mkdir(parents=True, exist_ok=True)
                passed.touch()
    try:
        return Library(form, ctypes.CDLL(str(path)), made)
    except OSError as error:
        reasons.append(f"{form.name} ({made}): it cannot be loaded: {error}")
        return None


def openmp_of_torch() -> Path | None:
    """The library of OpenMP that torch brings; kernels use it, so that there is one set of threads."""
    spec = importlib.util.find_spec("torch")
    folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    return next((path for folder in folders for path in sorted((folder / "lib").glob("libgomp*.so*"))), None)


def describe() -> str:
    """The form in use and why none better, in one line, for `hectogpt doctor`."""
    library, reasons = find()
    line = "none, torch's operations do the work" if library is None else f"{library.form.name}, {library.made}"
    return "; ".join([line, *reasons])


# --- the compiler, and a first use of what it compiles, in processes of their own -------------------------------------


def cpp_compiler() -> str:
    """The C++ compiler that is called: $CXX or the system's usual one."""
    return os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))


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
