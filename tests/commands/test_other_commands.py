"""`hectogpt doctor` and `data`."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from command import Here
from helpers import ROOT

from hectogpt import hardware
from hectogpt.cli import doctor


def test_a_machine_that_can_train(here: Here) -> None:
    done = here("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\nNothing that `hectogpt train` needs is missing.\n")
    answer = json.loads(here("doctor", "--json").stdout)
    assert (answer["ready"], answer["missing"]) == (True, [])
    assert answer["facts"]["torch"] == torch.__version__
    assert hardware.cpu_name() in answer["facts"]["processor"]
    assert all(fact in done.stdout for name, fact in answer["facts"].items() if name not in ("memory", "cache"))


def test_packages_that_are_not_installed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that training needs are an error; of extras there is a line."""
    there = distributions
    gone = {"tiktoken", "gguf"}
    monkeypatch.setattr("hectogpt.cli.doctor.distributions", lambda name: [] if name in gone else there(name=name))
    done = here("doctor")
    assert (done.returncode, "Nothing that" in done.stdout) == (1, False)
    assert done.stderr.endswith("why: not installed: tiktoken\nfix: python -m pip install --upgrade tiktoken\n")
    assert "not installed: gguf; python -m pip install 'hectogpt[gguf]'\n" in done.stdout


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - {"dev", "bench", "site"}


# --- data -------------------------------------------------------------------------------------------------------------


def test_building_prints_each_split_and_json_has_its_hash(here: Here, tmp_path: Path) -> None:
    """That damage is found: laws/test_data.py, and the proof's damage."""
    (tmp_path / "stories.txt").write_text("\n\n".join(f"Story {n}: there were {n} cats." for n in range(300)))
    built, found = here.ok("data", "build", "stories.txt"), here.ok("data", "build", "stories.txt", "--json")
    facts = json.loads(found.stdout)
    assert set(facts) == {"corpus", "folder", "n_vocab", "splits", "problems"}
    *lines, size, command = built.stdout.splitlines()
    for line, (split, n) in zip(lines, facts["splits"].items(), strict=True):
        assert line.split() == [split, f"{n['tokens']:,}", "tokens", f"{n['documents']:,}", "documents"]
        assert len(n["sha256"]) == 64
    assert ("bytes per token" in size, command) == (True, "hectogpt train --corpus stories.txt")
    assert Path(facts["folder"]).parent == tmp_path / "cache"
