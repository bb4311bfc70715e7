"""`hectogpt list`: recipes, corpora and runs, quickly; what cannot be read is left out with a note."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import Here, environment, hectogpt
from run_folders import summary_of, write_run

from hectogpt.cli.list_command import SHORT_NAMES
from hectogpt.data import SourceOptions, build
from hectogpt.data.names import find_source
from hectogpt.lab import recipes


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(tmp_path, monkeypatch, capsys)


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    program = "import sys, hectogpt.cli as c; c.main(['list'])\n"
    program += "print(sorted({'torch', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(tmp_path))
    assert done.stderr == "[]\n"
    assert done.stdout.count("none yet") == 2
    assert not list(tmp_path.iterdir())


def test_every_recipe_is_listed_with_its_first_sentence(here: Here) -> None:
    listed = json.loads(here("list", "recipes", "--json").stdout)
    assert set(listed) == {"recipes", "notes"}
    assert [entry["name"] for entry in listed["recipes"]] == recipes.names()
    assert all(recipes.describe(entry["name"]).startswith(entry["what"]) for entry in listed["recipes"])
    lines = here("list", "recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*recipes.names(), "top"]
    assert "learning_rate" in lines[2]
    assert lines[2].endswith(listed["recipes"][1]["what"])


def test_corpora_in_the_cache_have_size_and_tokens(here: Here, tmp_path: Path) -> None:
    source = tmp_path / "stories.txt"
    source.write_text("\n\n".join(f"Story {n}: once upon a time there were {n} cats." for n in range(300)))
    folder = build(str(source), cache=tmp_path / "cache")
    for name, content in (("damaged", "{"), ("foreign", '{"source": 3}'), ("deep", "[" * 10**5)):
        (tmp_path / "cache" / name).mkdir()
        (tmp_path / "cache" / name / "index.json").write_text(content)
    listed = json.loads(here("list", "corpora", "--json").stdout)
    (corpus,) = listed["corpora"]["cached"]
    index = json.loads((folder / "index.json").read_text())
    assert corpus["tokens"] == {split: entry["tokens"] for split, entry in index["splits"].items()}
    assert corpus["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert (corpus["name"], corpus["folder"]) == (str(source), str(folder))
    assert len(listed["notes"]) == 3
    done = here("list", "corpora")
    assert f"{corpus['tokens']['train']:,}" in done.stdout
    assert done.stderr.count("is left out") == 3
    assert all(form in done.stdout for form in ("sotu", "tinystories", "hf:NAME", "FILE.jsonl:COLUMN", "FILE.bin"))


def test_a_short_name_is_that_of_its_source() -> None:
    for source, name in SHORT_NAMES.items():
        assert find_source(name, SourceOptions()).identity == source


def test_runs_are_sorted_by_time(here: Here, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "new", summary_of(state="diverged", dev_loss=None, steps=7), at=1_700_000_300)
    write_run(runs / "old", summary_of("muon", seconds=61.25), "muon", at=1_700_000_100)
    under_way = write_run(runs / "group" / "going", None, at=1_700_000_000)
    rows = [{"step": 6, "train/loss": 9.5}, {"step": 37, "train/loss": float("nan")}, {"run": "going"}]
    (under_way / "metrics.jsonl").write_text("\n".join([*map(json.dumps, rows), '{"step": 38, "tr']))
    os.utime(under_way / "metrics.jsonl", (1_700_000_200, 1_700_000_200))
    listed = json.loads(here("list", "runs", "--json").stdout)
    old, going, new = listed["runs"]
    assert [run["folder"] for run in listed["runs"]] == ["runs/old", "runs/group/going", "runs/new"]
    told = [old[key] for key in ("recipe", "state", "steps", "dev_loss", "seconds")]
    assert told == ["muon", "done", 100, 6.25, 61.25]
    assert old["bytes"] == sum(path.stat().st_size for path in (runs / "old").iterdir())
    assert old["written"] == "2023-11-14T22:15:00+00:00"
    assert (going["state"], going["steps"], going["planned_steps"], going["dev_loss"]) == ("unfinished", 37, 100, None)
    assert (new["state"], new["steps"], new["dev_loss"]) == ("diverged", 7, None)
    rows_told = rows_of(here("list", "runs").stdout)[2:]
    assert [row[0] for row in rows_told] == [run["folder"] for run in listed["runs"]]
    assert rows_told[0][1:6] == ["muon", "done", "100", "6.2500", "61"]
    assert rows_told[1][1:6] == ["baseline", "unfinished", "37", "of", "100"]


def break_json(folder: Path) -> None:
    (folder / "run.json").write_text('{"run": {')


def nest_deeply(folder: Path) -> None:
    (folder / "summary.json").write_text('{"a":' * 900 + "1" + "}" * 900)


def make_a_list(folder: Path) -> None:
    (folder / "run.json").write_text("[1, 2]")


def drop_the_run(folder: Path) -> None:
    (folder / "run.json").write_text('{"recipe": "baseline"}')


def make_a_pipe(folder: Path) -> None:
    (folder / "summary.json").unlink()
    os.mkfifo(folder / "summary.json")


def write_other_bytes(folder: Path) -> None:
    (folder / "run.json").write_bytes(b"\xff\xfe\x00{")


def write_a_huge_file(folder: Path) -> None:
    with (folder / "run.json").open("wb") as file:
        file.truncate(1 << 30)


@pytest.mark.parametrize(
    "damage",
    [break_json, nest_deeply, make_a_list, drop_the_run, make_a_pipe, write_other_bytes, write_a_huge_file],
)
def test_a_damaged_run_is_left_out_with_a_note(here: Here, tmp_path: Path, damage) -> None:
    write_run(tmp_path / "runs" / "good", summary_of())
    damage(write_run(tmp_path / "runs" / "bad", summary_of()))
    done = here("list", "runs")
    assert done.returncode == 0
    assert [row[0] for row in rows_of(done.stdout)[2:]] == ["runs/good"]
    (note,) = done.stderr.splitlines()
    assert note.startswith("note: runs/bad is left out: cannot read runs/bad/")


def test_foreign_folders_and_values_do_no_harm(here: Here, tmp_path: Path) -> None:
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    (tmp_path / "runs" / "notes.txt").write_text("x")
    odd = {"state": "\x1b[2Jdone\nnew line", "dev_loss": "low", "seconds": True, "steps": -3, "recipe": ["a"]}
    write_run(tmp_path / "runs" / "o\x1b[31mdd", summary_of(**odd))
    infinite = summary_of(dev_loss=float("nan"), steps=10**400)
    write_run(tmp_path / "runs" / "infinite", infinite, at=1_700_000_001)
    done = here("list", "runs")
    assert done.stderr == "note: runs/photos holds no run: it has no run.json\n"
    assert len(done.stdout.splitlines()) == 4
    assert "\\x1b[2Jdone\\nnew line" in done.stdout
    assert "runs/o\\x1b[31mdd" in done.stdout
    assert "\x1b" not in done.stdout
    first, second = json.loads(here("list", "runs", "--json").stdout)["runs"]
    assert (first["recipe"], first["steps"], first["dev_loss"], first["seconds"]) == ("baseline", None, None, None)
    assert (second["steps"], second["dev_loss"]) == (None, None)


def test_all_parts_are_one_object(tmp_path: Path) -> None:
    done = hectogpt("list", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"recipes", "corpora", "runs", "notes"}
    wrong = hectogpt("list", "recepies", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "recipes" in wrong.stderr
