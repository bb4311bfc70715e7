"""`hectogpt data`: build, verify and repair, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Here, assert_good_error

from hectogpt import errors


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    (tmp_path / "stories.txt").write_text("\n\n".join(f"Story {n}: there were {n} cats." for n in range(300)))
    return Here(tmp_path, monkeypatch, capsys)


def test_building_prints_each_split_with_its_hash(here: Here, tmp_path: Path) -> None:
    done = here("data", "build", "stories.txt")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(here("data", "verify", "stories.txt", "--json").stdout)
    assert set(told) == {"corpus", "folder", "splits", "repaired", "problems"}
    assert Path(told["folder"]).parent == tmp_path / "cache"
    for line, (split, facts) in zip(done.stdout.splitlines(), told["splits"].items(), strict=True):
        assert line.split() == [
            split,
            f"{facts['tokens']:,}",
            "tokens",
            f"{facts['documents']:,}",
            "documents",
            facts["sha256"],
        ]


def test_damage_is_found_and_repaired(here: Here) -> None:
    folder = Path(json.loads(here("data", "build", "stories.txt", "--json").stdout)["folder"])
    sound = (folder / "dev.bin").read_bytes()
    (folder / "dev.bin").write_bytes(b"\x00" + sound[1:])
    assert_good_error(here("data", "verify", "stories.txt"), errors.DATA, "dev.bin", "data repair stories.txt")
    done = here("data", "repair", "stories.txt", "--json")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["repaired"]) == 1
    assert done.stderr.startswith("repaired: ")
    assert (folder / "dev.bin").read_bytes() == sound
    assert json.loads(here("data", "repair", "stories.txt", "--json").stdout)["repaired"] == []
