"""`hectogpt doctor`: every line is a fact, what it means and what to do; the exit code tells whether training works."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Here
from helpers import ROOT

from hectogpt import hardware
from hectogpt.cli import doctor
from hectogpt.data import CorpusCache
from tools import answers

NAMES = ["hectogpt", "Python", "torch", "numpy", "packages", "processor", "cores", "C++ compiler", "kernels", "memory"]
NAMES += ["GPU", "runs", "cache", "corpora", *(f"extra {name}" for name in doctor.EXTRAS), "Chromium"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(tmp_path, monkeypatch, capsys)


def found_by(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_a_machine_that_can_train(here: Here, tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("\n\n".join(f"Once there were {n} cats." for n in range(300)))
    CorpusCache(str(tmp_path / "stories.txt"), cache=tmp_path / "cache").build()
    (tmp_path / "cache" / "x\x1b[2J").mkdir(parents=True)
    (tmp_path / "cache" / "x\x1b[2J" / "index.json").write_text("{")
    done = here("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert last == "Nothing that `hectogpt train` needs is missing."
    assert [line[8:27].strip() for line in lines] == NAMES
    assert {line[:8].strip() for line in lines} <= {"ok", "note"}
    for word in (
        torch.__version__,
        hardware.cpu_name(),
        f"{tmp_path / 'stories.txt'} (",
        "cache/x\\x1b[2J is left out",
    ):
        assert word in done.stdout
    answer = json.loads(here("doctor", "--json").stdout)
    assert answer["ready"] is True
    assert [finding["name"] for finding in answer["findings"]] == NAMES


def missing_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What training needs and lacks, after checks of how it is told."""
    assert done.returncode == 1
    assert "error: `hectogpt train` cannot run here\nwhy: " in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["ready"] is False
    found = found_by(done)
    assert list(found) == NAMES
    return {name: finding for name, finding in found.items() if finding["state"] == "missing"}


def test_without_a_package_that_training_needs(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "tiktoken"
    monkeypatch.setitem(sys.modules, module, None)
    missing = missing_of(here("doctor", "--json"))
    assert missing["packages"]["fact"] == f"not installed: {module}"
    assert missing["packages"]["fix"] == f"python -m pip install {module}"


def test_without_optional_things(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gguf", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "g++")
    done = here("doctor", "--json")
    assert done.returncode == 0
    found = found_by(done)
    for name, word, needed_by, fix in (
        ("extra gguf", "gguf", "GGUF", "pip install 'hectogpt[gguf]'"),
        ("extra hf", "datasets", "tinystories", "pip install 'hectogpt[hf]'"),
        ("C++ compiler", "no program g++", "--compile", "apt-get install g++"),
        ("Chromium", "not on the PATH", "PDF", "apt-get install chromium"),
    ):
        assert found[name]["state"] == "note"
        assert word in found[name]["fact"]
        assert needed_by in found[name]["fact"]
        assert fix in found[name]["fix"]


def test_where_nothing_can_be_written(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").write_text("a file")
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "runs" / "cache"))
    done = here("doctor")
    assert done.returncode == 1
    assert done.stdout.count("\nmissing ") == 2
    assert "fix: --out FOLDER, one of yours; set HECTOGPT_CACHE to a folder of yours" in done.stderr


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["nonsense", "http://127.0.0.1:{port}"])
def test_a_hub_that_cannot_be_asked(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", endpoint.format(port=port))
    found = doctor.find_hub()
    assert (found.state, bool(found.fix)) == ("note", True)


# --- its tables -------------------------------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = " ".join(project["dependencies"])
    assert all(package in needed for package in doctor.REQUIRED)
    ours = {"dev", "bench", "site"}  # of who works on this repository
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - ours
    for extra, (names, _) in doctor.EXTRAS.items():
        assert len(names) == len(project["optional-dependencies"][extra])
    assert doctor.BROWSERS == answers.BROWSERS
