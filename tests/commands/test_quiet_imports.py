"""Importing hectogpt reaches nobody, and what is slow to load is loaded by what uses it alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "programs" / "quiet_imports.py"
LOADED = PROGRAM.with_name("loaded_modules.py")


@pytest.mark.thorough
def test_no_import_opens_a_socket_or_starts_a_process() -> None:
    """J3, for every module of the package."""
    pytest.importorskip("marimo")
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, cwd=PROGRAM.parents[2])
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_what_is_slow_to_load_waits_until_it_is_used(tmp_path: Path) -> None:
    """Neither a first token nor a first step needs what draws or tests; torch.optim loads torch's compiler."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"A line of words, number {n}." for n in range(300)), encoding="utf-8")
    command = [sys.executable, str(LOADED), str(text), str(tmp_path / "model")]
    (tmp_path / "model").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROGRAM.parents[2])
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith(("train", "generate"))]
    assert told[:3] == ["generate, imported", "train, imported", "generate, a token"]
    assert told[3] in ("train, a step", "train, a step sympy torch._dynamo")
