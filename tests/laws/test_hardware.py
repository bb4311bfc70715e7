"""Facts about the machine: plausible, cheap, the same from call to call, and memory that follows what is held."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from hectogpt import hardware, process

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def test_cores_and_names() -> None:
    assert 1 <= hardware.physical_cores() <= hardware.usable_cores() <= (os.cpu_count() or 1)
    assert hardware.cpu_name()
    assert hardware.device_name("cpu") == hardware.cpu_name()
    assert set(hardware.cpu_features()) <= {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}


@linux
def test_memory_follows_what_is_held() -> None:
    assert 0 < hardware.free_memory() < 2**50
    size = int(hardware.peak_memory_mb()) + 200
    held = np.ones(size * 2**20, np.uint8)
    peak = hardware.peak_memory_mb()
    assert peak >= size
    del held
    assert hardware.peak_memory_mb() >= peak - 1


@pytest.mark.gpu
def test_a_gpu_is_asked_for_its_own_memory() -> None:
    assert hardware.device_name("cuda") == hardware.device_name("cuda:0") == torch.cuda.get_device_name()
    free = hardware.free_memory("cuda")
    held = torch.ones(2**28, device="cuda")
    assert hardware.free_memory("cuda") <= free - 2**29
    assert hardware.peak_memory_mb("cuda") >= 2**10
    del held


# --- the revision -------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_revision_of_a_checkout(tmp_path: Path) -> None:
    try:
        git(tmp_path, "init", "--quiet")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git")
    assert process.revision(tmp_path) == process.Revision(None, None), "no commit yet"
    package = tmp_path / "package"
    package.mkdir()
    (package / "file").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    (tmp_path / "notes").write_text("outside of the folder")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert process.revision(package) == process.Revision(commit, False)
    assert process.revision(tmp_path) == process.Revision(commit, True)
