"""Build wheels and a source archive from the tracked files and check them: `python -m tools.package [DIR]`.

Besides the wheel for all platforms, it builds one with compiled C++ kernels for each platform with a compiler here:
Linux on x86-64 and ARM (Debian: g++, g++-aarch64-linux-gnu) and macOS on ARM (pip install ziglang).

It needs no network, and only setuptools, which torch requires anyway. DIR is dist/ by default.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from hectogpt.kernels.build import FORMS, OPTIONS, sources
from tools import ROOT

# The compilers of the libraries: the wheel's tag for a platform, the kind of processor, the command. The version of
# the C library is added to manylinux tags.
ZIG = (sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-macos", "-mcpu=apple_m1", "-pthread")
COMPILERS = (
    ("manylinux_2_{glibc}_x86_64", "x86_64", ("x86_64-linux-gnu-g++", "-fopenmp")),
    ("manylinux_2_{glibc}_aarch64", "aarch64", ("aarch64-linux-gnu-g++", "-fopenmp")),
    ("macosx_11_0_arm64", "aarch64", ZIG),
)
LARGEST = 2_000_000  # bytes of either archive
BUILD = "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
WHEEL = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"

COPIES = "hectogpt/assignment/files/"  # of reference/, assignment/ and answers/, which setup.py puts into the wheel
COPIED = {"reference/model_solution.py", "assignment/tests/expected.json", "answers/attention.md"}  # some of them
SOURCES = {"hectogpt/ruff.toml"}  # files of the package's folder that are left out of the wheel
SOURCES |= {f"hectogpt/web/engine/{name}" for name in ("build.sh", "kernels.cpp", "kernels.wasm.txt")}


def tracked() -> set[str]:
    """The tracked files that exist."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return {name for name in names.split("\0") if (ROOT / name).is_file()}


def build(target: Path) -> tuple[Path, Path]:
    """Build both in `target` from a copy of the tracked files. Returns the wheel and the source archive."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "hectogpt"
        for name in tracked():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        sdist = _run(BUILD, copy, target)
        with tarfile.open(sdist) as archive:  # the wheel is built from it, so both must be complete
            archive.extractall(scratch, filter="data")
        (source,) = Path(scratch).glob("hectogpt-*")
        return _run(WHEEL, source, target), sdist


def _run(program: str, folder: Path, target: Path) -> Path:
    command = [sys.executable, "-W", "error", "-c", program, str(target.resolve())]
    environment = os.environ | {"SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", "1700000000")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: setuptools could not build\n{done.stdout}{done.stderr}")
    return target / done.stdout.strip().splitlines()[-1]


def add_kernels(wheel: Path, platform: str, machine: str, compiler: tuple[str, ...]) -> Path | None:
    """A copy of a wheel with the kernels for a platform; None if the compiler is not installed.

    On Linux the libraries need OpenMP, which torch brings, and the standard libraries.
    """
    is_zig = compiler == ZIG
    if (importlib.util.find_spec("ziglang") if is_zig else shutil.which(compiler[0])) is None:
        return None
    libraries: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in [form for form in FORMS if form.machine == machine][: 1 if is_zig else None]:
            library = Path(folder, f"{form.name}.so")
            options = [*OPTIONS, *(() if is_zig else form.options)]
            subprocess.run([*compiler, *options, *map(str, sources()), "-o", str(library)], check=True)
            libraries[f"hectogpt/kernels/prebuilt/{library.name}"] = library.read_bytes()
    glibc = max((int(n) for code in libraries.values() for n in re.findall(rb"GLIBC_2\.(\d+)", code)), default=0)
    tag = f"py3-none-{platform.format(glibc=glibc)}"
    result = wheel.with_name(wheel.name.replace("py3-none-any", tag))
    record: list[str] = []
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        for name in [*sorted(old.namelist(), key=lambda name: name.endswith("/RECORD")), *libraries]:
            if name.endswith("/RECORD"):
                place = name
                continue
            data = libraries[name] if name in libraries else old.read(name)
            if name.endswith("/WHEEL"):
                text = data.decode().replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
                data = text.replace("Tag: py3-none-any", f"Tag: {tag}").encode()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}")
            new.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        new.writestr(zipfile.ZipInfo(place), "\n".join([*record, f"{place},,", ""]))
    return result


def contents(archive: Path) -> list[str]:
    """The names of the files in a wheel or source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            return sorted(name for name in file.namelist() if not name.endswith("/"))
    with tarfile.open(archive) as file:
        return sorted(member.name for member in file.getmembers() if member.isfile())


def faults(wheel: Path, sdist: Path) -> list[str]:
    """The faults of the two, as sentences. A wheel holds the package's tracked files, the copies and its metadata."""
    large = [path for path in (wheel, sdist) if path.stat().st_size > LARGEST]
    names, there = {name.removeprefix(COPIES) for name in contents(wheel)}, tracked()
    facts = {name for name in names if ".dist-info/" in name}
    wanted = {name for name in there if name.startswith("hectogpt/")} - SOURCES | COPIED
    lacking = (wanted - names) | ({"LICENSE", "NOTICE", "entry_points.txt"} - {Path(name).name for name in facts})
    found = [f"{path.name} has {path.stat().st_size:,} bytes" for path in large]
    found += [f"{wheel.name} lacks {name}" for name in sorted(lacking)]
    return found + [f"{wheel.name} holds {name}" for name in sorted(names - facts - there)]


def main() -> None:
    """Build, list, check."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        raise SystemExit(__doc__)
    wheel, sdist = build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist")
    for_platforms = [add_kernels(wheel, *platform) for platform in COMPILERS]
    for path in (wheel, sdist, *filter(None, for_platforms)):
        print(f"{path}  {path.stat().st_size:,} bytes, {len(contents(path))} files")
    if found := faults(wheel, sdist):
        raise SystemExit("\n".join(["error: the package has faults", *found]))


if __name__ == "__main__":
    main()
