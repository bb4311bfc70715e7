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


def test_the_module_is_what_its_compiler_makes_of_its_source(tmp_path: Path) -> None:
    folder = WEB / "engine"
    made_by = (folder / "kernels.wasm.txt").read_text(encoding="utf-8").strip()
    clang = shutil.which("clang")
    version = clang and subprocess.run([clang, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    if version != made_by or shutil.which("wasm-ld") is None:
        pytest.skip(f"the module was made by {made_by} and wasm-ld; here is {version}")
    subprocess.run(["sh", str(folder / "build.sh"), str(tmp_path / "made.wasm")], check=True)
    assert (tmp_path / "made.wasm").read_bytes() == (folder / "kernels.wasm").read_bytes()
    assert (folder / "kernels.wasm").stat().st_size <= 100_000
