"""`hectogpt doctor`: every line is a fact, what it means and what to do; the exit code says whether training works."""

from __future__ import annotations

import json
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

NAMES = ["hectogpt", "Python", "torch", "numpy", "packages", "processor", "cores", "C++ compiler", "kernels", "memory"]
NAMES += ["GPU", "runs", "cache", *(f"extra {name}" for name in doctor.EXTRAS)]


def findings(here: Here, code: int) -> dict[str, dict[str, Any]]:
    done = here("doctor", "--json")
    assert done.returncode == code
    answer = json.loads(done.stdout)
    assert answer["ready"] is (code == 0)
    assert [finding["name"] for finding in answer["findings"]] == NAMES
    return {finding["name"]: finding for finding in answer["findings"]}


def test_a_machine_that_can_train(here: Here) -> None:
    done = here("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert last == "Nothing that `hectogpt train` needs is missing."
    assert [line[8:27].strip() for line in lines] == NAMES
    assert {line[:8].strip() for line in lines} <= {"ok", "note"}
    for word in (torch.__version__, hardware.cpu_name()):
        assert word in done.stdout


def test_without_a_package_that_training_needs(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    missing = findings(here, 1)["packages"]
    assert missing["fact"] == "not installed: tiktoken"
    assert missing["fix"] == "python -m pip install tiktoken"


def test_without_optional_things(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "g++")
    found = findings(here, 0)
    for name, word, fix in (
        ("extra gguf", "`hectogpt export` to GGUF", "pip install 'hectogpt[gguf]'"),
        ("C++ compiler", "no program g++", "apt-get install g++"),
    ):
        assert found[name]["state"] == "note"
        assert word in found[name]["fact"]
        assert fix in found[name]["fix"]


def test_where_nothing_can_be_written(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").write_text("a file")
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "runs" / "cache"))
    done = here("doctor")
    assert done.returncode == 1
    assert done.stdout.count("\nmissing ") == 2
    assert "fix: --out FOLDER, one of yours; set HECTOGPT_CACHE to a folder of yours" in done.stderr


def test_the_tables_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = " ".join(project["dependencies"])
    assert all(package in needed for package in doctor.REQUIRED)
    ours = {"dev", "bench", "site"}  # of who works on this repository
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - ours
    for extra, (names, _) in doctor.EXTRAS.items():
        assert len(names) == len(project["optional-dependencies"][extra])
