"""The weight of the house: lines of Python for each part of it, numbers of files and modules. Nobody exceeds them.

Who needs more raises the number in the same commit, and says in its message what went out for it; who takes something
out lowers it. All lines count, blank ones too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import ROOT

from tools import layers

LINES = {
    "hectogpt": 2284,  # the ground, and what Python users call
    "hectogpt/cli": 2762,
    "hectogpt/lab": 3774,
    "hectogpt/grade": 3128,
    "hectogpt/assignment": 369,
    "hectogpt/training": 3598,
    "hectogpt/web": 332,
    "hectogpt/interop": 1352,
    "hectogpt/generation": 586,
    "hectogpt/data": 1181,
    "hectogpt/kernels": 548,
    "hectogpt/model": 2086,
    "tests": 14317,
    "tools": 5285,
    "bench": 1734,
    "reference": 817,
    "assignment": 919,
}
FILES = 132  # of the package
TRAIN = 62  # modules that `hectogpt train` may load, see below


def count(paths: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


@pytest.mark.parametrize("folder", LINES)
def test_a_part_keeps_to_its_lines(folder: str) -> None:
    path = ROOT / folder
    assert count(list(path.glob("*.py") if folder == "hectogpt" else path.rglob("*.py"))) <= LINES[folder]


def test_every_part_has_a_number() -> None:
    folders = {f"hectogpt/{path.parent.name}" for path in (ROOT / "hectogpt").glob("*/__init__.py")}
    assert folders <= set(LINES)


def test_the_package_has_few_files() -> None:
    assert len(list((ROOT / "hectogpt").rglob("*.py"))) <= FILES


def test_training_needs_few_modules() -> None:
    """What `hectogpt/__main__.py` and `hectogpt/cli/train.py` import, what these import, and so on; imports inside
    functions count. A package's __init__ is not counted. No run loads all of them."""
    imports = layers.read_imports()
    found = layers.closure("hectogpt.__main__", imports) | layers.closure("hectogpt.cli.train", imports)
    assert len({name for name in found if (ROOT / f"{name.replace('.', '/')}.py").exists()}) <= TRAIN
