"""Any step of a run can be computed again: to the bit, proven by the hash in its row. A branch of nothing is its
trunk. What cannot be, is said in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import TINY, Here, assert_good_error
from helpers import write_tokens
from model_folders import difference, open_theirs
from runs import rows_of
from torch import Tensor

import hectogpt
from hectogpt.cli import main
from hectogpt.errors import UserError
from hectogpt.interop import open_model
from hectogpt.model import Transformer
from hectogpt.model.weights import hash_weights
from hectogpt.training.checkpoint import Checkpoint, Checkpoints, weights_in
from hectogpt.training.history import History, branch_state
from hectogpt.training.run_folder import Branch, read_run

STEPS = [*TINY[:-1], "9", "--quiet"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a run of nine steps: with all checkpoints, and a copy of it without any."""
    folder = tmp_path_factory.mktemp("whole")
    kept = ["--save-every", "1", "--keep-checkpoints", "99"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HECTOGPT_CACHE", str(folder / "cache"))
        corpus = str(write_tokens(folder / "tokens"))
        main(["train", "muon", *STEPS, *kept, "--corpus", corpus, "--out", str(folder / "run")])
    shutil.copytree(folder / "run", folder / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    return folder


@pytest.fixture
def bare(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "bare", tmp_path / "bare"))


def tensors_of(model: Transformer) -> dict[str, Tensor]:
    return dict(model.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def state_in(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Weights and optimizer; the rest are seconds and records."""
    return {name: tensor for name, tensor in checkpoint.tensors.items() if name not in ("history", "hashes")}


def steps_of(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in rows_of(folder) if "train/loss" in row}


def test_the_hash_of_each_row_is_that_of_the_weights_after_its_step(whole: Path) -> None:
    """And no other weights have it: a flipped bit, two rows that are swapped, another number's sign."""
    rows = steps_of(whole / "run")
    models = {step: open_model(whole / "run", step=step)[0] for step in rows}
    assert {step: hash_weights(model) for step, model in models.items()} == {
        step: row["weights_hash"] for step, row in rows.items()
    }
    assert len({row["weights_hash"] for row in rows.values()}) == 9
    model = models[9]
    before = hash_weights(model)
    for name, parameter in model.named_parameters():
        bits = parameter.detach().view(torch.int32).view(-1)
        for place, bit in ((0, 0), (len(bits) // 2, 30), (-1, 12)):
            bits[place] ^= 1 << bit
            assert hash_weights(model) != before, (name, place, bit)
            bits[place] ^= 1 << bit
    table = model.embeddings.weight.detach()
    table[[0, 40]] = table[[40, 0]]
    assert hash_weights(model) != before


def test_a_step_that_is_computed_again_is_the_checkpoint_that_was_kept(whole: Path, bare: Path) -> None:
    """Weights and optimizer, in one computation for ascending steps, and from the nearest checkpoint otherwise."""
    kept = Checkpoints(whole / "run" / "checkpoints")
    notes: list[str] = []
    history = History(bare, note=notes.append)
    for step in (2, 7, 8):
        assert same(state_in(history.session_after(step).checkpoint()), state_in(kept.load(step)))
    assert [note.split()[1] for note in notes if "computing" in note] == ["2", "5", "1"]
    shutil.copytree(kept.path(4), bare / "checkpoints" / kept.path(4).name)
    shutil.copytree(kept.path(5), bare / "checkpoints" / kept.path(5).name)
    (bare / "checkpoints" / kept.path(5).name / "state.safetensors").write_bytes(b"")
    notes.clear()
    assert same(tensors_of(History(bare, note=notes.append).model_after(6)[0]), weights_in(kept.load(6).tensors))
    assert ("step 5 is damaged" in notes[0], "again, from step 4" in notes[1]) == (True, True)
    assert History(bare, note=pytest.fail).model_after(4)[0].config == open_model(bare)[0].config
    first = hash_weights(History(bare, note=notes.append).model_after(0)[0])
    assert first == json.loads((bare / "run.json").read_text())["weights_hash"]


def test_a_run_from_before_there_were_hashes(whole: Path, bare: Path) -> None:
    """It is read as ever, and its losses are the proof."""
    rows = (bare / "metrics.jsonl").read_text()
    (bare / "metrics.jsonl").write_text(re.sub(', "weights_hash": "[0-9a-f]*"', "", rows))
    notes: list[str] = []
    model, _ = History(bare, note=notes.append).model_after(3)
    assert same(tensors_of(model), weights_in(Checkpoints(whole / "run" / "checkpoints").load(3).tensors))
    assert "no hash" in notes[-1]


@pytest.mark.parametrize(("field", "step"), [("weights_hash", 5), ("train/loss", 3)])
def test_a_row_that_says_something_else_is_named(bare: Path, field: str, step: int) -> None:
    lines = (bare / "metrics.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[step - 1])
    row[field] = "0123456789abcdef" if field == "weights_hash" else row[field] + 1e-6
    (bare / "metrics.jsonl").write_text("".join([*lines[: step - 1], json.dumps(row) + "\n", *lines[step:]]))
    with pytest.raises(UserError, match=f"step {step} of ") as caught:
        History(bare, note=lambda text: None).model_after(5)
    assert (caught.value.code, "metrics.jsonl may be damaged" in caught.value.why) == (5, True)


def test_another_machine_is_named(bare: Path) -> None:
    record = json.loads((bare / "run.json").read_text())
    record["machine"] |= {"processor": "AVX512", "torch": "1.0"}
    record["machine"]["dtype"] = record["machine"]["head_dtype"] = "float64"  # so it computes something else
    (bare / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="step 1 of ") as caught:
        History(bare, note=lambda text: None).model_after(5)
    assert "torch 1.0 -> " in caught.value.why


def test_each_command_takes_any_step(whole: Path, bare: Path, here: Here) -> None:
    at = ["--step", "3"]
    kept = open_model(whole / "run", step=3)[0]
    found = json.loads(here.ok("show", bare, *at, "--json").stdout)
    assert (found["weights_hash"], set(found["samples"])) == (hash_weights(kept), {"greedy", "sampled"})
    scores, texts = [], []
    for run in (bare, whole / "run"):
        few = ["--corpus", whole / "tokens", "--max-tokens", "50", "--json", "--quiet"]
        scores.append(json.loads(here.ok("score", run, *at, *few).stdout)["models"][0]["loss"])
        texts.append(here.ok("generate", run, "a", *at, "--max-new-tokens", "9", "--quiet").stdout)
    assert (scores[0], texts[0]) == (scores[1], texts[1])
    here.ok("explore", "export", bare, "page.html", *at)
    assert "step 3" in Path("page.html").read_text()
    assert same(tensors_of(hectogpt.load(bare, step=9)[0]), tensors_of(open_model(bare)[0]))
    on = ["--corpus", whole / "tokens"]
    for command, more in ((["show"], []), (["score"], on), (["generate"], []), (["explore", "export"], ["page.html"])):
        assert_good_error(here(*command, bare, *more, "--step", "10"), 2, "no step 10")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_series_is_a_folder_for_each_step(whole: Path, bare: Path, here: Here) -> None:
    """transformers opens each, with the logits of the checkpoint and the hash of the row."""
    done = json.loads(here.ok("export", bare, "out", "--series", "9,0,3", "--json").stdout)["series"]
    assert [one["folder"] for one in done] == [f"out/step-0000000{step}" for step in (0, 3, 9)]
    ids = torch.arange(20)[None]
    for place, step in ((1, 3), (2, 9)):
        theirs, ours = open_theirs(Path(f"out/step-0000000{step}")), open_model(whole / "run", step=step)[0]
        assert theirs.config.weights_hash == steps_of(bare)[step]["weights_hash"] == done[place]["weights_hash"]
        with torch.no_grad():
            assert difference(ours(ids), theirs(ids).logits) < 1e-4
    for series in ("0,10", "0;3", "x", "3"):
        assert_good_error(here("export", bare, "out", "--series", series, "--quiet"), 2)
    assert_good_error(here("export", bare, "other", "--series", "3", "--step", "3"), 2)
    assert_good_error(here("export", "out/step-00000003", "other", "--series", "3"), 2)


# --- branches ---------------------------------------------------------------------------------------------------------


def test_a_branch_of_nothing_is_the_trunk(bare: Path, here: Here) -> None:
    """Rows, weights, and any step of it, before it begins too; and of a branch of a branch, which is resumed."""
    here.ok("train", "--branch", f"{bare}@4", "--out", "one", "--quiet")
    here.ok("train", "--branch", "one@6", "--out", "two", "--quiet", "--save-every", "2")
    trunk = [row | {"run": ""} for row in rows_of(bare)]
    for name in ("one", "two"):
        assert [row | {"run": ""} for row in rows_of(Path(name))] == trunk
        assert same(tensors_of(open_model(name)[0]), tensors_of(open_model(bare)[0]))
        history = History(Path(name), note=lambda text: None)
        assert [hash_weights(history.model_after(step)[0]) for step in (2, 5, 7)] == [
            steps_of(bare)[step]["weights_hash"] for step in (2, 5, 7)
        ]
    shutil.rmtree(Path("two", "checkpoints"))
    for file in ("model.safetensors", "config.json", "summary.json", "manifest.json"):
        Path("two", file).unlink()
    here.ok("train", "--resume", "two", "--quiet")
    assert same(tensors_of(open_model("two")[0]), tensors_of(open_model(bare)[0]))
    assert "equal to the last bit" in here.ok("bisect", bare, "two").stdout


def test_a_branch_keeps_the_state_and_takes_the_settings(whole: Path, bare: Path, here: Here) -> None:
    """The same as the trunk up to the step, and other weights from the first step after it."""
    done = here.ok("train", "--branch", f"{bare}@4", "--optim.lr", "0.01", "--out", "hot", "--json")
    assert json.loads(done.stdout)["branch"]["trunk_step"] == 4
    rows, trunk = steps_of(Path("hot")), steps_of(bare)
    assert [step for step in rows if rows[step]["weights_hash"] == trunk[step]["weights_hash"]] == [1, 2, 3, 4]
    assert rows[5]["train/loss"] == trunk[5]["train/loss"]
    assert (rows[5]["train/lr"], rows[4]["train/lr"]) == (0.01, trunk[4]["train/lr"])
    run = read_run(Path("hot"))
    saved = Checkpoints(whole / "run" / "checkpoints").load(4)
    state = branch_state(Branch(str(bare), 4), run, note=lambda text: None)
    assert same(state_in(state), state_in(saved))
    assert state.values != saved.values
    found = here("bisect", bare, "hot", "--json")
    assert (found.returncode, json.loads(found.stdout)["step"], json.loads(found.stdout)["stage"]) == (1, 5, "update")
    here.ok("train", "muon", *STEPS, "--optim.lr", "0.02", "--corpus", run.corpus, "--out", "warm")
    early, trunks = (json.loads(here("bisect", "warm", other, "--json").stdout) for other in ("hot", bare))
    assert early == trunks, "the first steps of a branch are its trunk's"
    assert early["step"] <= 4
    assert "branch" in here.ok("show", "hot").stdout
    bare.rename(bare.with_name("elsewhere"))
    assert_good_error(here("show", "hot", "--step", "2"), 4, "the trunk")
    here.ok("generate", "hot", "--max-new-tokens", "2")


def test_what_no_branch_can_begin_with(bare: Path, here: Here) -> None:
    refused: list[tuple[str, list[str], int]] = [
        (f"{bare}", [], 2),
        (f"{bare}@x", [], 2),
        (f"{bare}@10", [], 2),
        ("nothing@3", [], 4),
        (f"{bare}@4", ["--resume", "auto"], 2),
        (f"{bare}@4", ["--model.n-layers", "2"], 4),
        (f"{bare}@4", ["--corpus", "sotu"], 3),
        (f"{bare}@4", ["--steps", "4"], 2),
    ]
    for place, more, code in refused:
        assert_good_error(here("train", "--branch", place, *more, "--quiet", "--out", "no"), code)
        assert not Path("no").exists()
    assert_good_error(here("train", "baseline", "--branch", f"{bare}@4"), 2, "not of baseline")
