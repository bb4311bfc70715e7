"""What pyproject.toml cannot say: a wheel holds copies of reference/, assignment/ and answers/.

The copies are made when a wheel is built, and exist nowhere else. hectogpt/assignment/kit.py finds
them for `hectogpt assignment`.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PATTERNS = (
    "reference/*.py",
    "reference/*.sh",
    "assignment/*.md",
    "assignment/tests/*.py",
    "assignment/tests/*.json",
    "answers/*.md",
    "answers/*.png",
    "answers/figures/*.svg",
)


class BuildWithMaterials(build_py):
    """Also copies the folders into the package that is built; an editable installation reads them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "hectogpt" / "assignment" / "files"
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for file in materials():
            copy = target / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy)


def materials() -> list[Path]:
    """The files that are copied."""
    return sorted(file for pattern in PATTERNS for file in ROOT.glob(pattern) if ".template." not in file.name)


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithMaterials})
