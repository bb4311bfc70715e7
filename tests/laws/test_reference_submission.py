"""The submission: create_submission.sh packs the textbook's three files as they are, which import nothing of ours."""

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


@pytest.mark.parametrize("has_zip", [True, False])
def test_the_three_files_are_packed_and_nothing_else(textbook: Path, tmp_path: Path, has_zip: bool) -> None:
    """From another directory, over an older archive; without the program zip, Python does it."""
    programs = tmp_path / "programs"  # a PATH with Python and the few commands the script needs
    programs.mkdir()
    (programs / "rm").symlink_to(shutil.which("rm") or "rm")
    (programs / "python3").write_text(f'#!{shutil.which("bash")}\nexec "{sys.executable}" "$@"\n')
    (programs / "python3").chmod(0o755)
    with zipfile.ZipFile(textbook / "submission.zip", "w") as stale:
        stale.writestr("old.py", "")
    result = submit(textbook, cwd=tmp_path, **({} if has_zip else {"PATH": str(programs)}))
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(textbook / "submission.zip") as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    assert packed == {name: (textbook / name).read_bytes() for name in FILES}
    assert not (textbook / "__pycache__").exists()


@pytest.mark.parametrize(("name", "content"), [("utils.py", None), ("train.py", "def broken(:\n")])
def test_bad_files_are_refused(textbook: Path, name: str, content: str | None) -> None:
    (textbook / name).unlink()
    if content is not None:
        (textbook / name).write_text(content)
    result = submit(textbook, cwd=textbook)
    assert result.returncode != 0
    assert name in result.stderr
    assert ("missing" if content is None else "does not compile") in result.stderr
    assert not (textbook / "submission.zip").exists()


def test_unwritten_parts_are_named(textbook: Path, tmp_path: Path) -> None:
    with (textbook / "utils.py").open("a") as file:
        file.write("def more():\n    raise NotImplementedError\n")
    result = submit(textbook, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "note: utils.py has parts that are not written yet\n")
