"""This package's own files and what they need, for a place where it is to grade: an image, Gradescope.

So the grader there is the one here, whether this version has been published or not. The assignment's solution, which a
wheel holds beside the code, stays out.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from hectogpt import errors
from hectogpt.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
SOLUTION = PACKAGE / "assignment" / "files"
WHEELS = "https://download.pytorch.org/whl/cpu"  # torch for processors alone: a tenth of the size


def package_files() -> dict[str, bytes]:
    """Path below a folder that is to be on PYTHONPATH -> content."""
    found = {}
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and SOLUTION not in path.parents:
            found[path.relative_to(PACKAGE.parent).as_posix()] = path.read_bytes()
    return found


def requirements() -> str:
    """A requirements.txt: what the package needs, without extras. Raises UserError if it was not installed by pip."""
    try:
        needed = importlib.metadata.requires("hectogpt") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "it is not known what hectogpt needs",
            why="it runs from a folder that was never installed",
            fix="pip install -e . in that folder",
            code=errors.DATA,
        ) from None
    lines = [line for line in needed if "extra ==" not in line]
    return "\n".join([f"--extra-index-url {WHEELS}", *sorted(lines)]) + "\n"
