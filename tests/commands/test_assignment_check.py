"""`hectogpt assignment --check`, plain pytest, and kits from a wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Here, assert_good_error
from helpers import ROOT

from hectogpt import errors
from hectogpt.assignment.check import Progress, check_kit
from hectogpt.assignment.kit import SOURCES, choose, write_kit
from hectogpt.assignment.parts import PARTS
from hectogpt.assignment.regions import with_stubs

TEXTBOOK = {name: (ROOT / "reference" / name).read_text(encoding="utf-8") for name in SOURCES}
NAMES = [part.name for part in PARTS]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(tmp_path, monkeypatch, capsys)


def solve(folder: Path, *changes: tuple[str, str, str]) -> Path:
    """Put the textbook into a kit, with (file, text, other text) changed."""
    for name, source in TEXTBOOK.items():
        for file, old, new in changes:
            if file == name:
                assert source.count(old) == 1
                source = source.replace(old, new)
        (folder / name).write_text(source, encoding="utf-8")
    return folder


# --- checking ---------------------------------------------------------------------------------------------------------


def states(folder: Path, limit: float = 60.0) -> dict[str, tuple[str, str]]:
    """State and reason by part; what is told on the way is what is returned."""
    told: list[Progress] = []
    assert check_kit(folder, told.append, limit) == told
    return {progress.part: (progress.state, progress.why) for progress in told}


def test_a_new_kit_has_not_been_started(here: Here, tmp_path: Path) -> None:
    here("assignment", "kit")
    before = sorted(tmp_path.rglob("*"))
    done = here("assignment", "--check", "kit")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split(maxsplit=1) for line in lines[:13]] == [[name, "not started"] for name in NAMES]
    assert lines[13].split(maxsplit=1) == ["together", "waiting      for forward"]
    assert lines[14] == "0 of 14 passed; parts worth 0 of 30 points"
    assert sorted(tmp_path.rglob("*")) == before  # it leaves nothing behind


def test_a_solution_passes(here: Here, tmp_path: Path) -> None:
    here("assignment", "kit")
    solve(tmp_path / "kit")
    done = here("assignment", "--check", "kit")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "14 of 14 passed; parts worth 30 of 30 points"


@pytest.mark.thorough
def test_whatever_a_part_does_the_others_are_judged(tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    write_kit(kit, choose("all"))
    mark = "        # exercise: "
    solve(
        kit,
        ("model_solution.py", f"{mark}gelu\n", "        while True:\n            pass\n"),
        ("model_solution.py", f"{mark}mlp\n", "        import os\n        os._exit(0)\n"),
        ("model_solution.py", f"{mark}block\n", "        raise SystemExit(0)\n"),
        ("model_solution.py", f"{mark}forward\n", '        print(\'{"part": "loss", "state": "passed"}\')\n'),
        ("model_solution.py", f"{mark}generate\n", "        return self.generate(x, num_new_tokens)\n"),
        ("model_solution.py", f"{mark}loss\n", "        assert False, 'mine\\x1b[31m\\nsecond line'\n"),
        ("train.py", "import argparse\n", "import argparse\nthis is no Python\n"),
    )
    found = states(kit, limit=8.0)
    line = 1 + (kit / "model_solution.py").read_text().splitlines().index("        while True:")
    assert found["gelu"][0] == "failed"
    assert found["gelu"][1] in {f"not done after 8 s, at model_solution.py, line {n}" for n in (line, line + 1)}
    assert found["mlp"] == ("failed", "the process ended: exit code 0")
    assert found["attention"] == ("passed", "")
    assert found["block"][0] == "failed"
    assert found["block"][1].startswith("SystemExit: 0 (model_solution.py, line ")
    assert found["forward"] == ("passed", "")
    assert found["generate"][1].startswith("RecursionError: ")
    assert found["loss"][0] == "failed"
    assert found["loss"][1].startswith("AssertionError: mine\x1b[31m (model_solution.py, line ")
    for part in ("chunks", "train", "plot"):
        assert found[part] == ("failed", "SyntaxError: invalid syntax (train.py, line 16)")
    assert found["converter"] == found["pretrained"] == ("passed", "")


def test_reasons_are_told_in_a_line(here: Here, tmp_path: Path) -> None:
    write_kit(tmp_path / "kit", choose("mlp,attention"))
    solve(tmp_path / "kit", ("model_solution.py", "math.sqrt(self.d_attention)", "math.sqrt(self.n_heads)"))
    done = here("assignment", "--check", "kit")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "  mlp         passed"
    assert lines[1].startswith("  attention   failed       attention: ")
    assert "numbers differ, first at [0, 1, 0]: yours " in lines[1]
    assert lines[3] == "1 of 3 passed; parts worth 1 of 7 points"
    assert lines[4:] == [
        "the whole message:  cd kit && pytest tests/test_attention.py",
        "what it may be:     hectogpt grade kit",
    ]


def test_a_folder_that_is_no_kit(here: Here, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert_good_error(here("assignment", "--check", "other"), errors.DATA, "other is no kit", "model_solution.py")
    assert_good_error(here("assignment", "--check", "nowhere"), errors.DATA, "nowhere is no kit")
    write_kit(tmp_path / "kit", choose("mlp"))
    shutil.rmtree(tmp_path / "kit" / "tests")
    assert_good_error(here("assignment", "--check", "kit"), errors.DATA, "tests/test_*.py")


def run_pytest(kit: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=kit, capture_output=True, text=True)


@pytest.mark.thorough
def test_plain_pytest_names_a_stub(tmp_path: Path) -> None:
    write_kit(tmp_path / "kit", choose("all"))
    done = run_pytest(tmp_path / "kit", "tests/test_mlp.py", "tests/test_loss.py")
    assert done.returncode == 1
    assert "exercise mlp: forward is not written yet" in done.stdout
    assert " passed" not in done.stdout


@pytest.mark.thorough
def test_plain_pytest_passes_a_solution(tmp_path: Path) -> None:
    write_kit(tmp_path / "kit", choose("all"))
    done = run_pytest(solve(tmp_path / "kit"))
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


# --- from a wheel -----------------------------------------------------------------------------------------------------


def copy_checkout(folder: Path) -> Path:
    """What a wheel is built from, apart from the checkout, whose folders a build would write to."""
    for name in ("hectogpt", "reference", "assignment", "answers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["bdist_wheel", "sdist"])
def test_a_wheel_holds_what_it_needs(tmp_path: Path, way: str) -> None:
    pytest.importorskip("setuptools")
    checkout = copy_checkout(tmp_path / "checkout")
    build: Callable[..., Any] = lambda where, what: subprocess.run(  # noqa: E731
        [sys.executable, "setup.py", "-q", what, "--dist-dir", str(tmp_path / "dist")],
        cwd=where,
        capture_output=True,
        check=True,
    )
    if way == "sdist":  # the wheel is then built from the archive
        build(checkout, "sdist")
        shutil.unpack_archive(next((tmp_path / "dist").glob("*.tar.gz")), tmp_path / "unpacked", filter="data")
        checkout = next((tmp_path / "unpacked").iterdir())
    build(checkout, "bdist_wheel")
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    shutil.rmtree(checkout)
    for name in ("a", "b"):
        program = f"import hectogpt.cli as c, sys; c.main(['assignment', {name!r}, '--solution'])"
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True)
        for file in SOURCES:
            assert (tmp_path / name / file).read_text(encoding="utf-8") == with_stubs(TEXTBOOK[file], NAMES)
        assert (tmp_path / name / "solution" / "answers" / "attention.md").is_file()
