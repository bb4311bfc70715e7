"""What pyproject.toml cannot say: a wheel holds copies of reference/, assignment/ and answers/, and names a repository.

The copies are made when a wheel is built, and exist nowhere else. hectogpt/assignment/kit.py finds
them for `hectogpt assignment`.
"""

import os
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


def addresses() -> dict[str, str]:
    """The addresses of the repository that a workflow of GitHub builds in; none elsewhere."""
    repository = os.environ.get("GITHUB_REPOSITORY")
    if not repository:
        return {}
    home = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
    return {"Repository": home, "Issues": f"{home}/issues", "Changelog": f"{home}/blob/main/CHANGELOG.md"}


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithMaterials}, project_urls=addresses())
