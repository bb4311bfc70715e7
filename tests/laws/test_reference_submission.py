"""The submission: create_submission.sh packs the textbook's three files, which then pass these tests elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FILES = ["model_solution.py", "train.py", "utils.py"]


def submit(folder: Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("bash") or "bash", str(folder / "create_submission.sh")],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def textbook(tmp_path: Path, reference: Path) -> Path:
    """A copy of the folder, with something beside the files that must not be packed."""
    if not (reference / "create_submission.sh").is_file():
        pytest.skip(f"no create_submission.sh in {reference}")
    folder = tmp_path / "the textbook"
    shutil.copytree(reference, folder, ignore=shutil.ignore_patterns("__pycache__", "*.zip"))
    (folder / "notes.txt").write_text("not to be handed in")
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH with Python and the few commands the script needs, but no zip."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "rm").symlink_to(shutil.which("rm"))
    (folder / "python3").write_text(f'#!{shutil.which("bash")}\nexec "{sys.executable}" "$@"\n')
    (folder / "python3").chmod(0o755)
    return folder


@pytest.mark.thorough
def test_submission_runs_elsewhere(textbook: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(textbook / "submission.zip", "w") as stale:
        stale.writestr("old.py", "")
    result = submit(textbook, cwd=tmp_path)  # from another directory
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(textbook / "submission.zip") as archive:
        assert sorted(archive.namelist()) == FILES
        archive.extractall(tmp_path / "empty")
    assert not (textbook / "__pycache__").exists()

    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--reference={tmp_path / 'empty'}"]
    run += ["-k", "agree or loop_it_says or picture"]
    run += [str(Path(__file__).with_name(f"test_reference_{part}.py")) for part in ("model", "train")]
    result = subprocess.run(run, cwd=tmp_path / "empty", capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


@pytest.mark.parametrize(("name", "content"), [("utils.py", None), ("train.py", "def broken(:\n")])
def test_submission_refuses_bad_files(textbook: Path, name: str, content: str | None) -> None:
    (textbook / name).unlink()
    if content is not None:
        (textbook / name).write_text(content)
    result = submit(textbook, cwd=textbook)
    assert result.returncode != 0
    assert name in result.stderr
    assert ("missing" if content is None else "does not compile") in result.stderr
    assert not (textbook / "submission.zip").exists()


def test_submission_without_the_zip_program(textbook: Path, programs: Path, tmp_path: Path) -> None:
    result = submit(textbook, cwd=tmp_path, PATH=str(programs))
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(textbook / "submission.zip") as archive:
        assert sorted(archive.namelist()) == FILES
