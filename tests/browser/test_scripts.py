"""The scripts of the pages: their types, and the module of kernels, which is what its source and compiler give."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

WEB = ROOT / "hectogpt" / "web"
OPTIONS = ["--allowJs", "--checkJs", "--noEmit", "--strict", "false", "--skipLibCheck"]
OPTIONS += ["--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler"]
pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("scripts", "library"), [("pages/*.js", "dom"), ("engine/worker.js", "webworker")])
def test_the_types_of_scripts_agree(scripts: str, library: str) -> None:
    """TypeScript's compiler reads the types in comments: npm install --prefix .venv/npm typescript"""
    here = ROOT / ".venv" / "npm" / "node_modules" / ".bin" / "tsc"
    compiler = str(here) if here.exists() else shutil.which("tsc")
    if compiler is None:
        pytest.skip("no TypeScript compiler here")
    command = [compiler, *OPTIONS, "--lib", f"es2022,{library}", *map(str, WEB.glob(scripts))]
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_modules_are_what_their_compiler_makes_of_their_source(tmp_path: Path) -> None:
    folder = WEB / "engine"
    made_by = (folder / "kernels.wasm.txt").read_text(encoding="utf-8").strip()
    clang = shutil.which("clang")
    version = clang and subprocess.run([clang, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    if version != made_by or shutil.which("wasm-ld") is None:
        pytest.skip(f"the module was made by {made_by} and wasm-ld; here is {version}")
    subprocess.run(["sh", str(folder / "build.sh"), str(tmp_path)], check=True)
    for name in ("kernels.wasm", "kernels64.wasm"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert sum(path.stat().st_size for path in folder.glob("*.wasm")) <= 100_000
