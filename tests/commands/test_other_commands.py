"""`hectogpt doctor` and `data`."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from command import Here, assert_good_error
from helpers import ROOT

from hectogpt import errors, hardware
from hectogpt.cli import doctor

NAMES = ["hectogpt", "Python", "torch", "numpy", "packages", "processor", "cores", "kernels", "memory"]
NAMES += ["GPU", "runs", "cache", *(f"extra {name}" for name in doctor.EXTRAS)]


def test_a_machine_that_can_train(here: Here) -> None:
    done = here("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert last == "Nothing that `hectogpt train` needs is missing."
    assert [line[8:27].strip() for line in lines] == NAMES
    assert {line[:8].strip() for line in lines} <= {"ok", "note"}
    for word in (torch.__version__, hardware.cpu_name()):
        assert word in done.stdout


def test_without_what_training_needs(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without optional things, which are notes."""
    for module in ("tiktoken", "gguf"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "runs").write_text("a file")
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "runs" / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "g++")
    done = here("doctor")
    assert done.returncode == 1
    assert re.findall(r"^missing +(\w+)", done.stdout, re.MULTILINE) == ["packages", "runs", "cache"]
    assert "why: packages: not installed: tiktoken; runs: " in done.stderr
    fixes = "python -m pip install tiktoken; --out FOLDER, one of yours; set HECTOGPT_CACHE to a folder of yours"
    assert done.stderr.endswith(f"fix: {fixes}\n")
    answer = json.loads(here("doctor", "--json").stdout)
    assert (answer["ready"], [finding["name"] for finding in answer["findings"]]) == (False, NAMES)
    found = {finding["name"]: finding for finding in answer["findings"]}
    extra = found["extra gguf"]
    assert (extra["state"], extra["fix"]) == ("note", "python -m pip install 'hectogpt[gguf]'")
    assert "`hectogpt export` to GGUF" in extra["fact"]


def test_the_tables_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = " ".join(project["dependencies"])
    assert all(package in needed for package in doctor.REQUIRED)
    ours = {"dev", "bench", "site"}  # of who works on this repository
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - ours
    for extra, (names, _) in doctor.EXTRAS.items():
        assert len(names) == len(project["optional-dependencies"][extra])


# --- data -------------------------------------------------------------------------------------------------------------


def test_damage_is_found(here: Here, tmp_path: Path) -> None:
    """Building prints each split with its hash."""
    (tmp_path / "stories.txt").write_text("\n\n".join(f"Story {n}: there were {n} cats." for n in range(300)))
    built, found = here.ok("data", "build", "stories.txt"), here.ok("data", "build", "stories.txt", "--json")
    facts = json.loads(found.stdout)
    assert set(facts) == {"corpus", "folder", "n_vocab", "splits", "problems"}
    for line, (split, n) in zip(built.stdout.splitlines(), facts["splits"].items(), strict=True):
        words = [split, f"{n['tokens']:,}", "tokens", f"{n['documents']:,}", "documents", n["sha256"]]
        assert line.split() == words
    file = Path(facts["folder"]) / "dev.bin"
    assert file.parent.parent == tmp_path / "cache"
    file.write_bytes(b"\x00" + file.read_bytes()[1:])
    assert_good_error(here("data", "build", "stories.txt"), errors.DATA, "dev.bin", "the next use makes")
