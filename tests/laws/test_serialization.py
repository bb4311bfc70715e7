"""Runs as values: dump and load are inverses, differences name fields, misfits name the field and the cure, and names
of before are read. Saved models: they come back bit for bit, also those of an earlier version; damage is named."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_kinds import KINDS, build, random_ids
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hectogpt import serialization
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.model import ModelConfig
from hectogpt.model.inputs import EmbeddingNorm, NgramHash, Smear, TokenTable
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import QKNorm, ReLU2, RMSNorm, Rotary
from hectogpt.model.pointer import PointerHead
from hectogpt.model.weights import load_model, save_model
from hectogpt.serialization import Value, current_name, current_path, diff, dump, load
from hectogpt.training.first_weights import BigramInit
from hectogpt.training.optim import AdamW, Muon
from hectogpt.training.run import Cosine, Run, Schedule, sections_changed


def departed() -> Run:
    model, optim = replace(KINDS["everything else"], context_length=1024), Muon(rest=AdamW(row_lr_power=0.5))
    run = replace(recipes.recipe("adamw_128"), model=model, optim=optim, schedule=Cosine(3))
    return replace(run, gradient_clipping=None, init_from_counts=BigramInit())


def test_dump_and_load_are_inverses() -> None:
    for run in (*map(recipes.recipe, recipes.RECIPES), departed()):
        assert load(Run, json.loads(json.dumps(dump(run), allow_nan=False))) == run


def test_diff_names_exactly_the_fields_that_differ() -> None:
    run = recipes.recipe("adamw_128")
    other = replace(run, model=replace(run.model, d_model=64), seed=3)
    assert diff(run, run) == {}
    assert diff(run, other) == {"model.d_model": (128, 64), "seed": (0, 3)}
    assert sections_changed(run, other) == {"model", "seed"}
    assert isinstance(run.optim, AdamW)
    assert "optim" in sections_changed(run, replace(run, optim=Muon(rest=run.optim)))


def test_numbers_that_json_lacks() -> None:
    for number in (math.inf, -math.inf):
        written = json.loads(json.dumps(dump(Cosine(final=number)), allow_nan=False))
        assert load(Schedule, written) == Cosine(final=number)
    assert math.isnan(load(float, dump(math.nan)))
    assert load(float, 3) == 3.0
    assert isinstance(load(float, 3), float)
    for value in (object(), Cosine, {1: 2}, b"x"):
        with pytest.raises(TypeError):
            dump(value)


# --- names of before: results/ladder.jsonl has most of them, and test_record.py reads it ------------------------------


def test_a_field_that_is_gone_is_passed_over_and_one_that_never_was_is_not() -> None:
    model = dump(recipes.recipe("baseline").model)
    old = {"bias": True, "shared": True, "used": 17, "joint": 0.5}
    head = load(ModelConfig, model | {"lm_head": old}).lm_head
    assert (head.bias, head.compact_vocab, head.embedding_map) == (True, True, 0.5)
    with pytest.raises(UserError, match="unused"):
        load(ModelConfig, model | {"lm_head": {"unused": 17}})
    assert load(ModelConfig, model | {"memory": None}) == load(ModelConfig, model)
    with pytest.raises(UserError, match="94687c7"):  # what it computed cannot be computed here
        load(ModelConfig, model | {"memory": {"type": "NgramMemory", "context_lengths": [2, 3]}})


def test_current_names() -> None:
    run = departed()
    paths = {
        "data.window": "data.seq_len",
        "statistics.smoothing": "init_from_counts.smoothing",
        "model.heads": "model.attention_parts",
        "model.head.shared": "model.lm_head.compact_vocab",
        "model.copying.sharpness": "model.pointer.query_scale",
        "optim.rest.rates.head": "optim.rest.lrs.head",
        "optim.rest.row_fall": "optim.rest.row_lr_power",
        "data.seq_len": "data.seq_len",
        "nothing.known": "nothing.known",
    }
    assert {path: current_path(run, path) for path in paths} == paths
    assert current_path(replace(run, init_from_counts=None), "statistics.smoothing") == "init_from_counts.smoothing"
    assert current_name(type(run.model.lm_head), "used") is None


# --- classes of a user's own --------------------------------------------------------------------------------------


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Value]]:
    """The table of classes; afterwards it is as it was."""
    monkeypatch.setitem(serialization._CLASSES, "", dict(serialization._CLASSES[""]))
    return serialization._CLASSES[""]


def define(name: str, module: str = "mine", base: type = Schedule, **attributes: Any) -> type:
    attributes = {"__module__": module, "__qualname__": name, "factor": lambda self, step, steps: 0.5} | attributes
    return dataclass(frozen=True)(type(name, (base,), attributes))


@pytest.mark.parametrize("name", ["Cosine", "AdamW", "Linear", "BigramStart"])
def test_two_classes_of_one_name_are_refused(table: dict[str, type[Value]], name: str) -> None:
    """Names of before count: an old file would give the wrong one."""
    before = dict(table)
    with pytest.raises(UserError, match=f"class {name} ") as caught:
        define(name)
    assert "another name" in caught.value.fix
    assert table == before


def test_a_user_s_class_is_written_and_read_and_takes_its_own_place(table: dict[str, type[Value]]) -> None:
    """As a cell of a notebook does that is run twice."""
    first, second = (define("Half", __annotations__={"share": float}, share=0.5) for _ in range(2))
    assert first is not second
    run = replace(recipes.recipe("baseline"), schedule=second(0.25))
    written = json.loads(json.dumps(dump(run)))
    assert written["schedule"] == {"type": "Half", "share": 0.25}
    assert load(Run, written) == run
    with pytest.raises(UserError):
        define("Half", module="another's")


# --- saved models -----------------------------------------------------------------------------------------------------


OLD_RUN = Path(__file__).parents[1] / "data" / "old_run"
OLD_CONFIG = replace(
    ModelConfig(16, 2, 1, 8, 24),
    norm=RMSNorm(gain=True),
    activation=ReLU2(),
    inputs=(EmbeddingNorm(), NgramHash(2, 13, common=9), Smear((0.3, 0.2))),
    value_embeddings=(TokenTable(), NgramHash(3, 11)),
    attention_parts=(Rotary(100.0, 0.5), QKNorm()),
    attention_scale=0.5,
    lm_head=LMHeadConfig(bias=True, soft_cap=9.0, compact_vocab=True, embedding_map=0.3),
    pointer=PointerHead(query_scale=1.5, gate=-0.5),
)


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that are not saved included."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """It is built without memory first; buffers that files do not hold have to be real all the same."""
    model = build(KINDS[kind], dtype=torch.float32)
    save_model(model, tmp_path)
    random_state = torch.get_rng_state()
    again = load_model(tmp_path)
    assert torch.equal(random_state, torch.get_rng_state())  # whatever weights were drawn on the way
    assert again.config == model.config
    assert not again.training
    ours, theirs = all_tensors(model), all_tensors(again)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.lm_head.unused == model.lm_head.unused
    x = random_ids(3, model.config.context_length, model.config.vocab_size)
    assert torch.equal(again(x), model(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


# --- an earlier version -----------------------------------------------------------------------------------------------


def test_a_model_of_an_earlier_version_is_the_same_function() -> None:
    """data/old_run was saved by commit 7b14102, with everything in it that a model could have, and with the logits and
    the loss that it computed itself, in float64."""
    model = load_model(OLD_RUN)
    assert model.config == OLD_CONFIG
    outputs = json.loads((OLD_RUN / "outputs.json").read_text())
    ids = torch.tensor(outputs["ids"])
    model.double()
    logits = torch.tensor(outputs["logits"], dtype=torch.float64)
    torch.testing.assert_close(model(ids), logits, rtol=0, atol=1e-10)
    assert model.get_loss_on_batch(ids).item() == pytest.approx(outputs["loss"], abs=1e-10)


def test_names_in_files_are_those_of_the_earlier_version(tmp_path: Path) -> None:
    """Same names, same tensors after loading and saving; the config is written with today's names."""
    save_model(load_model(OLD_RUN), tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (OLD_RUN, tmp_path))
    assert before.keys() == after.keys()
    assert {"word_rows", "joint.weight", "copying.sharpness", "values.0.table.weight"} < before.keys()
    assert "backbone.0.attention.extra_share" in before
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "hectogpt", **dump(OLD_CONFIG)}


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_damaged_map_from_tokens_to_rows_is_refused(tmp_path: Path) -> None:
    """word_rows: [vocab], whole numbers, and every row but the last is exactly one token's."""
    save_model(build(KINDS["everything else"], dtype=torch.float32), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    rows = state.pop("word_rows")
    for damaged in ({}, *({"word_rows": wrong} for wrong in (rows.float(), rows + 1, rows.where(rows != 4, 5)))):
        save_file(state | damaged, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"rows|shape|unknown"):
            load_model(tmp_path)
