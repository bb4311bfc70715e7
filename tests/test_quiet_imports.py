"""Importing hectogpt reaches nobody: no socket is opened and no process is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "quiet_imports.py"


@pytest.mark.thorough
def test_no_import_opens_a_socket_or_starts_a_process() -> None:
    """J3, for every module of the package."""
    pytest.importorskip("marimo")
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, cwd=PROGRAM.parents[2])
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
