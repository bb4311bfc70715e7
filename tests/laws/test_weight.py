"""The weight of the house. Nobody exceeds it: who needs more raises the number, and names what went out for it.

The package is counted in characters of code, without comments, docstrings and spaces, so that neither packing lines nor
leaving out explanations pays.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

from tools import layers

# Of these `yardstick` 17,300, the best counting 6,400, which was in tools/, `check --repair` 2,400, `bisect` 14,300.
# The drill and the exam, which ask about the grader's mistakes: 24,590, 68 lines of pages, 290 of tests, 5 files.
# Runs in TransformerLens and nnsight, bisect on GPT-2 folders, pictures: 80 lines of tests.
# The time machine took 12,000 (history.py, --branch, --series, --step of every command) and 230 lines of tests; what
# `check --replay` and `--diagnose` computed by themselves, and bisect's own look for a shared checkpoint, went out.
# The atlas: 527 lines of tools, 150 of pages, 120 of tests. The race against eight libraries: 341 lines of bench.
# A replay that compares the optimizer, and a bisection before a branch begins: 750. A signal sent back too early: 41.
# Both arms of a judgement scored side by side: 720. A model loaded without torch's compiler: 300.
# The head: in blocks 550, in C++ 1,190. The rungs induction_spelling and width_384: 7,720. One-sided SOAP: 476.
CHARACTERS = 721_176
LINES = {
    "C++": (2_359, ("hectogpt/**/*.cpp", "hectogpt/**/*.h")),
    "pages": (3_877, ("hectogpt/**/*.js", "hectogpt/**/*.html", "hectogpt/**/*.css")),
    "tools and bench": (7_400, ("tools/**/*.py", "bench/**/*.py")),
    "tests": (16_613, ("tests/**/*.py",)),
    "textbook and kit": (1_811, ("reference/**/*.py", "assignment/**/*.py")),
}
FILES = 138  # of the package
TRAIN = 55  # modules that `hectogpt train` may load, see below
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_characters(source: str) -> int:
    """Characters of the tokens that are code: no comments, no docstrings, no spaces between them."""
    docstrings = {line for node in ast.walk(ast.parse(source)) for line in lines_of_a_text_alone(node)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(len(t.string) for t in tokens if t.type not in LAYOUT and t.start[0] not in docstrings)


def lines_of_a_text_alone(node: ast.AST) -> Iterator[int]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def sources(*patterns: str) -> list[Path]:
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return [path for path in found if "__pycache__" not in path.parts and path.is_file()]


def test_the_package_keeps_to_its_characters() -> None:
    paths = sources("hectogpt/**/*.py")
    assert sum(code_characters(path.read_text(encoding="utf-8")) for path in paths) <= CHARACTERS


@pytest.mark.parametrize("kind", LINES)
def test_all_else_keeps_to_its_lines(kind: str) -> None:
    most, patterns = LINES[kind]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*patterns)) <= most


def test_the_package_has_few_files() -> None:
    assert len(sources("hectogpt/**/*.py")) <= FILES


def test_training_needs_few_modules() -> None:
    """What `hectogpt/__main__.py` and `hectogpt/cli/train.py` import, what these import, and so on; imports inside
    functions count. A package's __init__ is not counted. No run loads all of them."""
    imports = layers.read_imports()
    found = layers.closure("hectogpt.__main__", imports) | layers.closure("hectogpt.cli.train", imports)
    assert len({name for name in found if (ROOT / f"{name.replace('.', '/')}.py").exists()}) <= TRAIN
