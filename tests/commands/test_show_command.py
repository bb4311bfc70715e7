"""`hectogpt show`: a run's numbers and what differs from its recipe; the runs here; damaged and hostile folders."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from command import Here, assert_good_error

from hectogpt import errors
from hectogpt.lab import recipes
from hectogpt.serialization import dump

NGRAMS = {"uniform": 10.825, "unigram": 6.9, "kn2": 5.4, "kn3": 5.1}
SAMPLES = {"greedy": "The state of our\nunion", "sampled": "The state of our people"}


def summary_of(recipe: str = "baseline", **changes: Any) -> dict[str, Any]:
    """summary.json of a finished run."""
    summary = {"recipe": recipe, "modified": False, "corpus": "sotu", "seed": 3, "steps": 100, "train_tokens": 819200}
    summary |= {"params": 3000000, "train_loss_last": 6.5, "train_loss_last10": 6.4, "seconds": 61.25, "peak_mb": 900.5}
    summary |= {"machine": {"device": "AMD EPYC", "dtype": "float32", "head_dtype": "float32", "threads": 2}}
    summary |= {"dev_loss": 6.25, "dev_bpb": 1.75, "ngrams": NGRAMS, "samples": SAMPLES, "state": "done"}
    return summary | changes


def write_run(folder: Path, summary: dict[str, Any] | None, recipe: str = "baseline", at: int = 1_700_000_000) -> Path:
    """A run's folder without weights, last written `at`; `summary` None: it has not finished."""
    folder.mkdir(parents=True)
    run = dump(recipes.recipe(recipe)) | {"seed": 3}
    (folder / "run.json").write_text(json.dumps({"run": run, "modified": False}))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    for path in folder.iterdir():
        os.utime(path, (at, at))
    return folder


def facts_of(text: str) -> dict[str, str]:
    """Name -> value, of the table at the top."""
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.split("\n\n")[0].splitlines()[1:]]
    return {row[0]: row[1] for row in rows}


def change_run(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["run"] |= changes
    (folder / "run.json").write_text(json.dumps(record))


# --- without a name ---------------------------------------------------------------------------------------------------


def test_an_empty_folder_stays_empty(tmp_path: Path, here: Here) -> None:
    assert here.ok("show").stdout == "no run below runs/ yet: hectogpt train\n"
    assert_good_error(here("show", "runs/nothing"), errors.CHECKPOINT, "runs/nothing", "hectogpt show")
    assert not list(tmp_path.iterdir())


def test_runs_are_listed(here: Here, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "new", summary_of(state="diverged", dev_loss=None, steps=7), at=1_700_000_300)
    write_run(runs / "old", summary_of("muon", seconds=61.25), "muon", at=1_700_000_100)
    under_way = write_run(runs / "group" / "going", None, at=1_700_000_000)
    rows = [{"step": 6, "train/loss": 9.5}, {"step": 37, "train/loss": float("nan")}, {"run": "going"}]
    (under_way / "metrics.jsonl").write_text("\n".join([*map(json.dumps, rows), '{"step": 38, "tr']))
    os.utime(under_way / "metrics.jsonl", (1_700_000_200, 1_700_000_200))

    listed, done = json.loads(here("show", "--json").stdout), here("show")
    named = ("folder", "recipe", "state", "steps", "planned_steps", "dev_loss", "seconds")
    assert [[run[name] for name in named] for run in listed["runs"]] == [
        ["runs/old", "muon", "done", 100, 100, 6.25, 61.25],
        ["runs/group/going", "baseline", "unfinished", 37, 100, None, None],
        ["runs/new", "baseline", "diverged", 7, 100, None, 61.25],
    ]
    assert datetime.fromisoformat(listed["runs"][0]["written"]).timestamp() == 1_700_000_100
    facts = facts_of(here("show", "runs/group/going").stdout)
    assert facts["state"].startswith("unfinished: it was killed: `hectogpt train --resume ")
    assert (facts["steps"], "held-out loss" in facts) == ("37 of 100", False)
    assert re.search(r"runs/group/going +baseline +unfinished +37 of 100 ", done.stdout)
    assert (done.stderr, listed["notes"]) == ("", [])


# --- one run ----------------------------------------------------------------------------------------------------------


def test_a_run_of_its_recipe_differs_in_nothing_but_the_seed(here: Here, tmp_path: Path) -> None:
    write_run(tmp_path / "elsewhere", summary_of("muon"), "muon")
    done = here("show", "elsewhere")
    assert re.search(r"Differs from the recipe muon\n +field +recipe +this run\n +seed +0 +3\n\n", done.stdout)
    facts = facts_of(done.stdout)
    assert facts["state"] == "done: trained and scored"
    assert facts["held-out loss"] == "6.2500 nats per token, 1.7500 bits per byte"
    assert facts["n-gram models"].startswith("uniform 10.825, unigram counts 6.900, Kneser-Ney bigram 5.400")
    assert facts["machine"] == "AMD EPYC, float32 blocks, float32 head, threads 2"
    assert facts["peak memory"] == "900 MiB"
    assert "picture" not in facts
    assert done.stdout.endswith("sampled\n  The state of our people\n")
    assert "greedy\n  The state of our\n  union\n" in done.stdout


def test_an_idea_is_compared_to_what_it_was_applied_to(here: Here, tmp_path: Path) -> None:
    """Its classes need not be known: nothing of the folder is imported."""
    folder = write_run(tmp_path / "runs" / "mine", summary_of("mine.py:slow@muon"), "muon")
    change_run(folder, recipe="mine.py:slow@muon", schedule={"type": "MyOwn", "share": 0.5})
    (folder / "idea.py").write_text("raise SystemExit('somebody ran this')")
    shown = json.loads(here("show", "mine", "--json").stdout)
    assert shown["base"] == "muon"
    assert shown["differences"]["schedule"] == [{"type": "Constant"}, {"type": "MyOwn", "share": 0.5}]
    assert set(shown["differences"]) <= {"schedule", "seed"}
    assert "only run.json was compared" in shown["note"]
    change_run(folder, recipe="no_such")
    assert "unknown recipe 'no_such'\n" in here("show", "mine").stdout


# --- damaged and hostile folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("run.json", b"[" * 100_000, "nested too deeply"),
        ("run.json", b'{"run": "baseline"}', 'no object "run"'),
        ("summary.json", b"\xff\xfe\x00{", "not JSON"),
    ],
)
def test_a_damaged_run_is_left_out_or_refused(here: Here, tmp_path: Path, file: str, content: bytes, why: str) -> None:
    write_run(tmp_path / "runs" / "good", summary_of())
    (write_run(tmp_path / "runs" / "bad", summary_of()) / file).write_bytes(content)
    assert_good_error(here("show", "bad"), errors.CHECKPOINT, f"cannot read runs/bad/{file}", why, "fix: ")
    done = here("show")
    assert (done.returncode, "runs/good" in done.stdout, "runs/bad" in done.stdout) == (0, True, False)
    assert done.stderr.startswith("note: runs/bad is left out: cannot read runs/bad/")


def test_foreign_values_do_no_harm(here: Here, tmp_path: Path) -> None:
    names = ["steps", "params", "dev_loss", "dev_bpb", "seconds", "machine", "ngrams", "samples", "state", "recipe"]
    for number, value in enumerate([None, True, "text", [1, [2]], {"a": {"b": 1}}, -1, 1e308, 10**400]):
        write_run(tmp_path / "runs" / f"odd{number}", summary_of(**dict.fromkeys(names, value)))
        assert here.ok("show", f"odd{number}").stderr == ""
        assert json.loads(here("show", f"odd{number}", "--json").stdout)["state"]
    folder = write_run(tmp_path / "runs" / "infinite", None)
    summary = json.dumps(summary_of()).replace("6.25", "1e999").replace("61.", 'NaN, "x": 61.')
    (folder / "summary.json").write_text(summary)
    shown = json.loads(here("show", "infinite", "--json").stdout)
    assert (shown["dev_loss"], shown["seconds"]) == (None, None)


def test_control_characters_are_visible(here: Here, tmp_path: Path) -> None:
    samples = {"greedy\x1b]0;title\x07": "text \x9b31m red\nstate  done"}
    summary = summary_of("\x1b[2J", samples=samples, corpus="a\nb", machine={"device": "\r\x1b[A"})
    folder = write_run(tmp_path / "runs" / "e\x1b[31mvil", summary)
    change_run(folder, corpus="\x1b[1m", device="x\ny", **{"odd\x1bfield": 1})
    for done in (here.ok("show", "e\x1b[31mvil"), here.ok("show")):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout)
        assert "runs/e\\x1b[31mvil" in done.stdout
    assert json.loads(here("show", "e\x1b[31mvil", "--json").stdout)["samples"] == samples
