"""Find the library of C++ kernels for this CPU: from the package, or compiled on first use.

A form is the source compiled for one kind of CPU. The best form that this CPU supports is tried
first. If it cannot be compiled, loaded or used, the reason is recorded and the next form is tried.
If none works, torch's operations are used.
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
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hectogpt import files, hardware
from hectogpt.errors import UserError, first_line

FOLDER = Path(__file__).parent
PREBUILT = FOLDER / "prebuilt"  # only in wheels for a single platform
# Never use -ffast-math: it makes exp wrong by 41 %.
OPTIONS = ("-w", "-O2", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=fast")

SECONDS = 180.0  # the time limit for compiling all files; most machines need 10 s
# Loads torch's OpenMP if there is one, then the library, and runs its check.
CHECK = """import ctypes, sys
if sys.argv[2]: ctypes.CDLL(sys.argv[2], ctypes.RTLD_GLOBAL)
sys.exit(ctypes.CDLL(sys.argv[1]).check(0))"""


class Form(NamedTuple):
    """A kind of CPU, and how to compile the source for it.

    Attributes:
        name: the name of the form.
        machine: the architecture.
        flags: the CPU features that it needs, as Linux names them.
        options: compiler options.
    """

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
    """A loaded library. `made` says where it came from."""

    form: Form
    code: ctypes.CDLL
    made: str


class Found(NamedTuple):
    """This machine's library, if there is one, and why each better form is not used."""

    library: Library | None
    reasons: tuple[str, ...]


def sources() -> list[Path]:
    """The C++ files."""
    return sorted(FOLDER.glob("*.cpp"))


def machine() -> str:
    """The architecture of this machine, as FORMS names it."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def forms() -> list[Form]:
    """The forms that this CPU supports, best first; none on Windows."""
    here = [form for form in FORMS if form.machine == machine() and sys.platform != "win32"]
    if sys.platform == "darwin":
        return here  # macOS does not list flags, but every Apple CPU has them
    return [form for form in here if all(map(hardware.has_cpu_flag, form.flags))]


@cache
def find() -> Found:
    """The library for this CPU, compiled if necessary (about ten seconds, once per machine)."""
    reasons: list[str] = []
    for form in forms():
        path = PREBUILT / f"{form.name}.so"
        try:
            if path.exists():
                check_library(path)
                made = "came with the package"
            else:
                path = compiled(form)
                made = f"compiled by {cpp_compiler()}"
            return Found(Library(form, ctypes.CDLL(str(path)), made), tuple(reasons))
        except (
            FileNotFoundError,
            TimeoutError,
            UserError,
        ) as error:  # every other form would fail in the same way
            return Found(None, (*reasons, first_line(error)))
        except OSError as error:
            reasons.append(f"{form.name}: {error}")
    return Found(None, tuple(reasons or ["the kernels need Linux or macOS, and AVX2 or NEON"]))


def compiled(form: Form, *more: str) -> Path:
    """Return the library of a form in the cache folder.

    The library is compiled and checked if it is missing or has changed since its check. Its name
    contains a hash of its contents, which reveals a change.

    Args:
        form: the form.
        more: additional compiler options.

    Raises OSError as `compile_library` and `check_library` do, or if the folder cannot be written.
    """
    options = (*OPTIONS, *form.options, *more)
    key = " ".join((files.code_hash([FOLDER]), hardware.cpu_name(), cpp_compiler(), *options))
    name = f"{form.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder = files.cache_dir() / "kernels"
    for library in folder.glob(f"{name}-*.so"):
        if library.name == f"{name}-{_content_hash(library)}.so":
            return library
        library.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        new = Path(place, f"{name}.so")
        compile_library(sources(), new, options)
        check_library(new)
        library = folder / f"{name}-{_content_hash(new)}.so"
        with files.replacing(library) as copy:
            copy.write_bytes(new.read_bytes())
    return library


def _content_hash(library: Path) -> str:
    """The hash of a library's contents, as it appears in the library's name."""
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def describe() -> str:
    """A line for `hectogpt doctor`: the form in use, and why each better form is not used."""
    library, reasons = find()
    line = (
        "none; torch's operations are used"
        if library is None
        else f"{library.form.name}, {library.made}"
    )
    return "; ".join([line, *reasons])


# --- compile a library and try it, in separate processes


def cpp_compiler() -> str:
    """The C++ compiler: $CXX, or the system's usual one."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def compile_library(sources: Sequence[Path], library: Path, options: Sequence[str]) -> None:
    """Compile C++ files into a library, with OpenMP if the compiler has it, else with threads.

    Raises FileNotFoundError if there is no compiler, TimeoutError if compiling takes minutes, and
    OSError with the compiler's message for any other failure.
    """
    name = cpp_compiler()
    said = ""
    if shutil.which(name) is None:
        raise FileNotFoundError(f"there is no program {name} on the PATH")
    for threads in ("-fopenmp", "-pthread"):
        command = [name, threads, *options, *map(str, sources), "-o", str(library)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{name} did not finish within {SECONDS:.0f} s") from None
        if not done.returncode:
            return
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [
            f"exit code {done.returncode}"
        ]
        said = next((line for line in lines if "error" in line), lines[0])
    raise OSError(f"{name} failed: {said[:300]}")


def check_library(library: Path) -> None:
    """Raise OSError for a library that cannot be used on this CPU.

    Its check runs in a separate process, because an unsupported instruction kills the process.
    """
    command = [sys.executable, "-I", "-S", "-c", CHECK, str(library), str(openmp_of_torch() or "")]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=60
        )
    except subprocess.TimeoutExpired:
        raise OSError("its check did not finish") from None
    if done.returncode < 0:
        raise OSError(
            f"its check was ended by signal {-done.returncode} (4: the CPU lacks an instruction)"
        )
    if done.returncode and done.stderr:
        raise OSError(f"it cannot be loaded: {done.stderr.strip().splitlines()[-1][:200]}")
    if done.returncode:
        raise OSError(f"{done.returncode} of its kernels give wrong results")


def openmp_of_torch() -> Path | None:
    """torch's OpenMP library, which the kernels use so that there is only one pool of threads."""
    spec = importlib.util.find_spec("torch")
    folders = (spec and spec.submodule_search_locations) or ()
    return next(
        (path for folder in folders for path in sorted(Path(folder, "lib").glob("libgomp*.so*"))),
        None,
    )
