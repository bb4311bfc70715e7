"""Facts about the machine: plausible, cheap, the same from call to call, and memory that follows what is held."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT

from hectogpt import hardware
from hectogpt.hardware import Revision

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def test_cores() -> None:
    assert 1 <= hardware.physical_cores() <= hardware.usable_cores() <= (os.cpu_count() or 1)


def test_names() -> None:
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


@linux
def test_memory_is_kept_and_given_back() -> None:
    """Freed memory that is kept costs no page faults when it is asked for again; given back, it is the system's."""
    code = (
        "import psutil, resource, torch\n"
        "from hectogpt import hardware\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(64 << 20, dtype=torch.uint8)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults()\n"
        "usual = faults()\n"
        "hardware.keep_freed_memory()\n"
        "faults()\n"
        "kept, memory = faults(), psutil.Process().memory_info\n"
        "held = memory().rss\n"
        "hardware.give_back_memory()\n"
        "print(usual, kept, (held - memory().rss) / 2**20)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    usual, kept, given_back = map(float, done.stdout.split())
    if platform.libc_ver()[0] == "glibc":
        assert kept < usual / 10
        assert given_back > 60


def test_asking_about_the_cpu_does_not_load_torch() -> None:
    program = (
        "import sys; from hectogpt import hardware as h; h.free_memory(); h.peak_memory_mb(); h.device_name('cpu');"
        " h.physical_cores(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


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
    assert hardware.revision(tmp_path) == Revision(None, None), "no commit yet"
    package = tmp_path / "package"
    package.mkdir()
    (package / "file").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert hardware.revision(package) == Revision(commit, False)
    (tmp_path / "notes").write_text("outside of the folder")
    assert hardware.revision(package) == Revision(commit, False)
    assert hardware.revision(tmp_path) == Revision(commit, True)
    (package / "file").write_text("2")
    assert hardware.revision(package) == Revision(commit, True)


def test_outside_of_a_checkout_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert hardware.revision(tmp_path) == Revision(None, None)
    assert hardware.revision(tmp_path / "absent") == Revision(None, None)
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert hardware.revision(ROOT) == Revision(None, None)
