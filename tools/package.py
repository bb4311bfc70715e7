"""Builds wheel and source archive from the tracked files, and checks what is in them: `python -m tools.package [DIR]`.

Needs no network: it calls setuptools, which torch requires, and no other tool. DIR is dist/ unless it is named.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tools import ROOT

LARGEST = 2_000_000  # bytes of either archive
BUILD = "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
WHEEL = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"

# What must be in the wheel beside the modules, each pattern at least once.
NEEDED = (
    r"hectogpt/py\.typed",
    r"hectogpt/data/vocab\.bpe\.xz",
    r"hectogpt/lab/baselines/.*\.json",
    r"hectogpt/lab/examples/.*\.py",
    r"hectogpt/kernels/.*\.(cpp|h)",
    r"hectogpt/web/(engine|kit|pages)/.*\.(html|css|js|wasm)",
    r"hectogpt/assignment/files/reference/model_solution\.py",
    r"hectogpt/assignment/files/assignment/tests/expected\.json",
    r"hectogpt-.*\.dist-info/licenses/(LICENSE|NOTICE)",
    r"hectogpt-.*\.dist-info/entry_points\.txt",
)
KINDS = re.compile(
    r".*(\.(py|pyi|typed|xz|json|cpp|h|html|css|js|wasm|md|svg|png|sh|txt)|/(METADATA|WHEEL|RECORD|LICENSE|NOTICE))"
)


def build(target: Path) -> tuple[Path, Path]:
    """Build both below `target` in a copy of the tracked files; returns the wheel and the source archive."""
    target.mkdir(parents=True, exist_ok=True)
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "hectogpt"
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():  # a file that was removed and not committed
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        sdist = _run(BUILD, copy, target)
        with tarfile.open(sdist) as archive:  # the wheel is built from the source archive: both are complete
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


def contents(archive: Path) -> list[str]:
    """The names of the files in a wheel or source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            return sorted(name for name in file.namelist() if not name.endswith("/"))
    with tarfile.open(archive) as file:
        return sorted(member.name for member in file.getmembers() if member.isfile())


def faults(wheel: Path, sdist: Path) -> list[str]:
    """What is wrong with the two, in words."""
    found = [
        f"{path.name} has {path.stat().st_size:,} bytes" for path in (wheel, sdist) if path.stat().st_size > LARGEST
    ]
    names = contents(wheel)
    found += [f"{wheel.name} has nothing like {p}" for p in NEEDED if not any(re.fullmatch(p, name) for name in names)]
    found += [f"{wheel.name} holds {name}" for name in names if not KINDS.fullmatch(name)]
    found += [f"{wheel.name} holds {name}" for name in names if not name.startswith(("hectogpt/", "hectogpt-"))]
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "hectogpt").rglob("*.py")}
    found += [f"{wheel.name} lacks {name}" for name in sorted(modules - set(names)) if _is_tracked(name)]
    return found


def _is_tracked(name: str) -> bool:
    command = ["git", "ls-files", "--error-unmatch", name]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Build, list, check."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        raise SystemExit(__doc__)
    wheel, sdist = build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist")
    for path in (wheel, sdist):
        print(f"{path}  {path.stat().st_size:,} bytes, {len(contents(path))} files")
    if found := faults(wheel, sdist):
        raise SystemExit("\n".join(["error: the package is not as it should be", *found]))


if __name__ == "__main__":
    main()
