"""Fine-tuning: a run that starts from another model's weights, is resumed, and says where they came from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import Here, assert_good_error
from helpers import peaked, small_run, tiny_corpus, write_tokens
from model_folders import write_model, write_run
from model_kinds import KINDS, build

from hectogpt import errors
from hectogpt.cli.train import parse
from hectogpt.errors import UserError
from hectogpt.interop.export import export
from hectogpt.lab import recipes
from hectogpt.lab.ideas import start_from
from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.weights import hash_state, save_model, saved_tensors
from hectogpt.serialization import dump
from hectogpt.training.session import Session
from hectogpt.training.setup import open_source, whole

SMALL = ModelConfig(16, 2, 1, 32, 50257)


@pytest.mark.parametrize("tied", [True, False])
def test_a_run_starts_from_the_weights(tmp_path: Path, tied: bool) -> None:
    before = write_run(tmp_path / "run", replace(SMALL, lm_head=LMHeadConfig(tied=tied)))
    run = start_from(small_run(seed=5), str(tmp_path / "run"))
    assert (run.model, run.data.seq_len) == (before.config, 32)
    session = Session.open(run, tiny_corpus(tmp_path))
    assert all(torch.equal(session.model.state_dict()[name], t) for name, t in before.state_dict().items())
    assert (session.model.lm_head.weight is session.model.embeddings.weight) == tied
    list(session.steps())
    assert (session.model.lm_head.weight is session.model.embeddings.weight) == tied
    assert session.result().losses[-1] < session.result().losses[0]


def test_one_model_has_one_hash_in_every_layout(tmp_path: Path) -> None:
    write_run(tmp_path / "run", SMALL)
    export(tmp_path / "run", tmp_path / "exported")
    runs = [start_from(small_run(), str(tmp_path / name)) for name in ("run", "exported")]
    state = saved_tensors(open_source(str(tmp_path / "run"))[0])
    assert [run.first_weights and run.first_weights.sha256 for run in runs] == [hash_state(state)] * 2
    before = hash_state(state)
    state["final_layer_norm.bias"][3] += 1e-6
    assert hash_state(state) != before


def test_a_compact_vocabulary_becomes_a_whole_one() -> None:
    model = build(KINDS["everything else"])
    ids = torch.arange(10)[None]
    got = whole(model)
    assert got.lm_head.weight.shape[0] == model.config.vocab_size
    assert torch.allclose(got(ids), model(ids), rtol=0, atol=1e-12)


def test_weights_that_are_gone_changed_or_of_another_shape(tmp_path: Path) -> None:
    write_run(tmp_path / "run", SMALL)
    corpus, run = tiny_corpus(tmp_path), start_from(small_run(), str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"do not fit(.|\n)*is missing"):
        Session.open(replace(run, model=replace(run.model, n_layers=2)), corpus)
    save_model(peaked(Transformer(SMALL), seed=1), tmp_path / "run")
    with pytest.raises(UserError, match="have changed"):
        Session.open(run, corpus)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError):
        Session.open(run, corpus)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "run", KINDS["gpt2"])
    with pytest.raises(UserError, match="is not the text's"):
        start_from(recipes.recipe("finetune"), str(tmp_path / "run"))


def test_the_command_reads_where_to_start(tmp_path: Path, here: Here) -> None:
    assert_good_error(here("train", "finetune"), errors.USAGE, "--init")
    assert_good_error(here("train", "finetune", "--init", "no/where/at/all"), errors.CHECKPOINT, "neither a folder")
    write_run(tmp_path / "base", SMALL)
    options, plan = parse(["finetune", "--init", "base", "--optim.lr", "0.001"])
    assert (options.init, plan.name, plan.run.model) == ("base", "finetune", SMALL)
    assert plan.recipe is not None
    assert dump(plan.run) == dump(plan.recipe) | {"optim": dump(plan.recipe.optim) | {"lr": 0.001}}


@pytest.mark.thorough
def test_the_command_shows_before_and_after_and_goes_on(tmp_path: Path, here: Here) -> None:
    write_tokens(tmp_path / "a")
    write_run(tmp_path / "base", SMALL)
    options = ["--corpus", "a", "--steps", "4", "--threads", "1", "--data.batch-size", "2"]
    done = here.ok("train", "finetune", "--init", "base", *options, "--out", "whole", "--save-every", "2")
    assert "before training" in done.stdout
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text(encoding="utf-8"))
    run = json.loads((tmp_path / "whole" / "run.json").read_text(encoding="utf-8"))["run"]
    assert summary["first_weights"] == run["first_weights"]
    assert Path(run["first_weights"]["source"]) == (tmp_path / "base").resolve()
    assert summary["dev_loss"] < summary["dev_loss_before"]
    # Resuming needs the checkpoint alone: the first weights may be gone.
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-00000004", ignore_errors=True)
    shutil.rmtree(tmp_path / "base")
    told = json.loads(here.ok("train", "--resume", "half/checkpoints/step-00000002", "--quiet", "--json").stdout)
    same = ("dev_loss", "dev_loss_before", "first_weights")
    assert [told[name] for name in same] == [summary[name] for name in same]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("half", "whole")]
    assert weights[0] == weights[1]
    assert "before training" in here("show", "whole").stdout
