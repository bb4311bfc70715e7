"""`hectogpt show`: a run's numbers, and what differs from its recipe; old, unfinished, damaged and hostile folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command import TINY, Here, assert_good_error, hectogpt, write_tokens
from helpers import ROOT
from run_folders import NGRAMS, SAMPLES, summary_of, write_run

from hectogpt import errors

OLD = ROOT / "tests" / "data" / "run_of_7b14102"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(tmp_path, monkeypatch, capsys)


def facts_of(text: str) -> dict[str, str]:
    """Name -> value, of the table at the top."""
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.split("\n\n")[0].splitlines()[1:]]
    return {row[0]: row[1] for row in rows}


@pytest.mark.thorough
def test_a_real_run_shows_what_was_changed(tmp_path: Path) -> None:
    write_tokens(tmp_path / "stories.bin")
    trained = hectogpt("train", "baseline", *TINY, "--corpus", "stories.bin", "--quiet", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    done = hectogpt("show", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(hectogpt("show", "baseline", "--json", cwd=tmp_path).stdout)
    summary = json.loads((tmp_path / "runs" / "baseline" / "summary.json").read_text())
    facts = facts_of(done.stdout)
    assert done.stdout.startswith("runs/baseline: baseline (modified)\n")
    assert facts["state"] == "done: trained and scored"
    assert facts["steps"] == "4 of 4"
    assert facts["parameters"] == f"{summary['params']:,}"
    assert facts["held-out loss"].startswith(f"{summary['dev_loss']:.4f} nats per token")
    assert facts["picture"] == shown["picture"] == "runs/baseline/losses_and_grad_norms.png"
    assert shown["summary"] == summary
    assert shown["samples"] == summary["samples"]
    differs = {"model.d_model": [33, 16], "data.batch_size": [16, 4], "corpus": ["sotu", "stories.bin"]}
    assert shown["base"] == "baseline"
    assert shown["differences"].items() >= differs.items()
    assert "model.norm.eps" not in shown["differences"]
    assert re.search(r"model\.d_model +33 +16\n", done.stdout)


def test_a_run_of_its_recipe_differs_in_nothing_but_the_seed(here: Here, tmp_path: Path) -> None:
    write_run(tmp_path / "elsewhere", summary_of("muon"), "muon")
    done = here("show", "elsewhere")
    assert re.search(r"Differs from the recipe muon\n +field +recipe +this run\n +seed +0 +3\n\n", done.stdout)
    facts = facts_of(done.stdout)
    assert facts["n-gram baselines"].startswith("uniform 10.825, unigram counts 6.900, Kneser-Ney bigram 5.400")
    assert facts["machine"] == "AMD EPYC, float32 blocks, float32 head, 2 threads"
    assert facts["peak memory"] == "900 MiB"
    assert "picture" not in facts
    assert done.stdout.endswith("sampled\n  The state of our people\n")
    assert "greedy\n  The state of our\n  union\n" in done.stdout


def test_folders_of_before_the_new_names_are_read(here: Here, tmp_path: Path) -> None:
    """Recipes and fields had other names, the summary called the n-gram baselines anchors."""
    old = tmp_path / "runs" / "old"
    old.mkdir(parents=True)
    (old / "run.json").write_text((OLD / "run.json").read_text())
    summary = summary_of("rare", anchors=NGRAMS)
    del summary["ngrams"]
    (old / "summary.json").write_text(json.dumps(summary))
    shown = json.loads(here("show", "old", "--json").stdout)
    assert (shown["recipe"], shown["base"], shown["note"]) == ("rare", "soap_rare_tokens", "")
    assert shown["ngrams"] == NGRAMS
    assert shown["differences"]["data.seq_len"] == [512, 64]
    assert shown["differences"]["init_from_counts"][1]["type"] == "BigramInit"
    done = here("show", "old")
    assert "unigram counts 6.900" in done.stdout
    assert re.search(r"init_from_counts +None +BigramInit\(smoothing=20.0, head=0.2\)\n", done.stdout)


def test_an_unfinished_run_says_its_state(here: Here, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "going", None)
    (folder / "metrics.jsonl").write_text('{"step": 12, "train/loss": 8.125}\n')
    facts = facts_of(here("show", "going").stdout)
    assert facts["state"].startswith("unfinished: it was killed: `hectogpt train --resume ")
    assert facts["steps"] == "12 of 100"
    assert facts["training loss"] == "8.1250 on the batch of step 12"
    assert "held-out loss" not in facts
    stopped = summary_of(state="interrupted", steps=12, dev_loss=None, samples=None)
    write_run(tmp_path / "runs" / "stopped", stopped)
    facts = facts_of(here("show", "stopped").stdout)
    assert facts["state"].startswith("interrupted: a signal ended it early")
    assert "held-out loss" not in facts


def change_run(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["run"] |= changes
    (folder / "run.json").write_text(json.dumps(record))


def test_an_idea_is_compared_to_what_it_was_applied_to(here: Here, tmp_path: Path) -> None:
    """Its classes need not be known: nothing of the folder is imported."""
    folder = write_run(tmp_path / "runs" / "mine", summary_of("mine.py:slow@muon"), "muon")
    change_run(folder, recipe="mine.py:slow@muon", schedule={"type": "MyOwn", "share": 0.5})
    (folder / "idea.py").write_text("raise SystemExit('somebody ran this')")
    shown = json.loads(here("show", "mine", "--json").stdout)
    assert shown["base"] == "muon"
    assert shown["differences"]["schedule"] == [{"type": "Constant"}, {"type": "MyOwn", "share": 0.5}]
    assert set(shown["differences"]) <= {"schedule", "seed"}
    assert "compared by the text of run.json" in shown["note"]
    assert facts_of(here("show", "mine").stdout)["idea"] == "runs/mine/idea.py"


def test_a_recipe_that_is_not_known_here(here: Here, tmp_path: Path) -> None:
    change_run(write_run(tmp_path / "runs" / "other", summary_of("no_such"), "muon"), recipe="no_such")
    done = here("show", "other")
    assert done.returncode == 0
    assert "Not compared to a recipe: unknown recipe 'no_such'\n" in done.stdout


def test_control_characters_are_visible(here: Here, tmp_path: Path) -> None:
    samples = {"greedy\x1b]0;title\x07": "text \x9b31m red\nstate  done"}
    summary = summary_of("\x1b[2J", samples=samples, corpus="a\nb", machine={"device": "\r\x1b[A"})
    folder = write_run(tmp_path / "runs" / "evil", summary)
    change_run(folder, corpus="\x1b[1m", device="x\ny", **{"odd\x1bfield": 1})
    done = here("show", "evil")
    assert done.returncode == 0, done.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout)
    assert facts_of(done.stdout)["corpus"] == "a\\nb"
    assert json.loads(here("show", "evil", "--json").stdout)["samples"] == samples


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("run.json", "{", "not JSON"),
        ("run.json", "[" * 100_000, "nested too deeply"),
        ("run.json", '{"run":' * 100 + "{}" + "}" * 100, "nested too deeply"),
        ("run.json", '{"run": "baseline"}', 'no object "run"'),
        ("summary.json", "[]", "not a JSON object"),
        ("summary.json", '{"steps": ' + "9" * 10_000 + "}", "not JSON"),
        ("summary.json", '{"samples": "\udcff"}', "not JSON"),
    ],
)
def test_a_damaged_file_gives_one_error(here: Here, tmp_path: Path, file: str, content: str, why: str) -> None:
    folder = write_run(tmp_path / "runs" / "bad", summary_of())
    (folder / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert_good_error(here("show", "bad"), errors.CHECKPOINT, f"cannot read runs/bad/{file}", why, "fix: ")


def test_values_of_other_kinds_do_no_harm(here: Here, tmp_path: Path) -> None:
    names = ["steps", "params", "dev_loss", "dev_bpb", "seconds", "machine", "ngrams", "samples", "state", "recipe"]
    for number, value in enumerate([None, True, "text", [1, [2]], {"a": {"b": 1}}, -1, 1e308]):
        write_run(tmp_path / "runs" / f"odd{number}", summary_of(**dict.fromkeys(names, value)))
        done = here("show", f"odd{number}")
        assert (done.returncode, done.stderr) == (0, ""), value
        assert json.loads(here("show", f"odd{number}", "--json").stdout)["state"]
    summary = json.dumps(summary_of(samples=SAMPLES)).replace("6.25", "1e999").replace("61.", 'NaN, "x": 61.')
    write_run(tmp_path / "runs" / "infinite", None)
    (tmp_path / "runs" / "infinite" / "summary.json").write_text(summary)
    shown = json.loads(here("show", "infinite", "--json").stdout)
    assert (shown["dev_loss"], shown["seconds"]) == (None, None)


def test_a_folder_that_is_not_there(here: Here, tmp_path: Path) -> None:
    assert_good_error(here("show"), errors.CHECKPOINT, "no run below runs", "hectogpt train")
    write_run(tmp_path / "runs" / "muon", summary_of("muon"), "muon")
    assert_good_error(here("show", "muno"), errors.CHECKPOINT, "no run 'muno'", "did you mean 'muon'?")
    (tmp_path / "empty").mkdir()
    assert_good_error(here("show", "empty"), errors.CHECKPOINT, "cannot read empty/run.json", "there is no such file")
