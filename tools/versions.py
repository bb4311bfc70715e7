"""The exact versions that make and the container install: `python -m tools.versions` renews those of this Python.

    python3.11 -m tools.versions     constraints/py311.txt: the oldest torch that pyproject.toml allows
    python3.13 -m tools.versions     constraints/py313.txt: the newest of all

It installs the package with what its tests and its site need into an environment of its own, which is removed, and
writes what pip chose. Build marks of torch ("+cpu") are left out, so that any build of that version fits.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tools import ROOT

FOLDER = ROOT / "constraints"
OLDEST = (3, 11)  # the Python on which the oldest torch is installed, the others get the newest


def file_for(version: tuple[int, int]) -> Path:
    """The file of a Python: 3.11 has its own, later ones share that of 3.13."""
    return FOLDER / ("py311.txt" if version <= OLDEST else "py313.txt")


def oldest_torch(project: str) -> str:
    """The lower end of torch's range in the text of pyproject.toml, as a requirement: "torch==2.13.*"."""
    found = re.search(r'"torch>=(\d+\.\d+)', project)
    if found is None:
        raise ValueError("pyproject.toml has no range of torch")
    return f"torch=={found[1]}.*"


def without_marks(frozen: str) -> str:
    """The lines of `pip freeze` that are versions, without build marks."""
    lines = [line.split("+")[0] for line in frozen.splitlines() if re.match(r"[\w.-]+==", line)]
    return "\n".join([*lines, ""])


def main() -> int:
    """Write the file of this Python."""
    path = file_for(sys.version_info[:2])
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [str(Path(folder) / "bin" / "python"), "-m", "pip"]
        wanted = [oldest_torch((ROOT / "pyproject.toml").read_text(encoding="utf-8"))]
        wanted = wanted if path.name == "py311.txt" else []
        subprocess.run([*pip, "install", "--editable", f"{ROOT}[dev,site]", *wanted], check=True)
        frozen = subprocess.run([*pip, "freeze", "--exclude-editable"], check=True, capture_output=True, text=True)
    FOLDER.mkdir(exist_ok=True)
    path.write_text(without_marks(frozen.stdout), encoding="utf-8")
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
