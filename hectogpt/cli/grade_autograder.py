"""What `hectogpt grade --make-autograder` writes for Gradescope: setup.sh, run_autograder, and this package.

So the grader there is the one here, with the versions that it has here, whether this one has been published or not.
"""

from __future__ import annotations

import importlib.metadata
import io
import platform
import re
import zipfile
from pathlib import Path

from hectogpt import errors
from hectogpt.assignment import kit
from hectogpt.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
WHEELS = "https://download.pytorch.org/whl/cpu"  # torch for processors alone: a tenth of the size
TEXTBOOK = "hectogpt/assignment/files/reference"
SCRIPTS = PACKAGE / "grade" / "gradescope"  # PYTHON, HINTS and VISIBILITY stand for what archive knows
DATE = (2026, 1, 1, 0, 0, 0)


def archive(visibility: str, hints: int) -> bytes:
    """A .zip with both scripts at its root, executable, with fixed dates: the same bytes for the same arguments."""
    words = {"PYTHON": ".".join(platform.python_version_tuple()[:2]), "HINTS": str(hints), "VISIBILITY": visibility}
    scripts = {path.name: path.read_text(encoding="utf-8") for path in sorted(SCRIPTS.iterdir())}
    filled = {
        name: re.sub(rf"\b({'|'.join(words)})\b", lambda found: words[found[0]], text) for name, text in scripts.items()
    }
    content = {name: text.encode() for name, text in filled.items()}
    content |= {"requirements.txt": requirements().encode(), **package_files()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            info = zipfile.ZipInfo(name, DATE)
            info.external_attr = (0o755 if name in scripts else 0o644) << 16
            info.create_system = 3  # POSIX, so that the permissions count
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, data)
    return out.getvalue()


def package_files() -> dict[str, bytes]:
    """Path below a folder that is to be on PYTHONPATH -> content: the package, and the solution that it is tried on."""
    solution = PACKAGE / "assignment" / "files"
    found = {}
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and solution not in path.parents:
            found[path.relative_to(PACKAGE.parent).as_posix()] = path.read_bytes()
    return found | {f"{TEXTBOOK}/{name}": (kit.find("reference") / name).read_bytes() for name in kit.SOURCES}


def requirements() -> str:
    """A requirements.txt: what the package needs, without extras, in the versions that are installed here. Raises
    UserError if it was not installed by pip."""
    try:
        needed = [line for line in importlib.metadata.requires("hectogpt") or [] if "extra ==" not in line]
        names = sorted(found[0] for line in needed if (found := re.match(r"[\w.-]+", line)))
        versions = {name: importlib.metadata.version(name).partition("+")[0] for name in names}
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "it is not known what hectogpt needs",
            why="it runs from a folder that was never installed",
            fix="pip install -e . in that folder",
            code=errors.DATA,
        ) from None
    return "\n".join([f"--extra-index-url {WHEELS}", *(f"{name}=={has}" for name, has in versions.items())]) + "\n"
