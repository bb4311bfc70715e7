"""Runs as values: dump and load are inverses, differences name fields, misfits name the field and the cure.
Saved models: they come back bit for bit; damage is named."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import sections_changed
from model_kinds import KINDS, build, random_ids
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hectogpt import serialization
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.model import ModelConfig
from hectogpt.model.weights import load_model, save_model
from hectogpt.serialization import Value, diff, dump, load
from hectogpt.training.optim import AdamW, Muon
from hectogpt.training.run import Cosine, Run, Schedule


def departed() -> Run:
    model, optim = replace(KINDS["everything else"], context_length=1024), Muon(rest=AdamW(row_lr_power=0.5))
    run = replace(recipes.recipe("adamw_128"), model=model, optim=optim, schedule=Cosine(3))
    return replace(run, gradient_clipping=None)


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


def test_a_field_that_is_not_there_is_refused() -> None:
    model = dump(recipes.recipe("baseline").model)
    with pytest.raises(UserError, match="unused"):
        load(ModelConfig, model | {"lm_head": {"unused": 17}})


# --- classes of a user's own --------------------------------------------------------------------------------------


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Value]]:
    """The table of classes; afterwards it is as it was."""
    monkeypatch.setitem(serialization._CLASSES, "", dict(serialization._CLASSES[""]))
    return serialization._CLASSES[""]


def define(name: str, module: str = "mine", base: type = Schedule, **attributes: Any) -> type:
    attributes = {"__module__": module, "__qualname__": name, "factor": lambda self, step, steps: 0.5} | attributes
    return dataclass(frozen=True)(type(name, (base,), attributes))


@pytest.mark.parametrize("name", ["Cosine", "AdamW"])
def test_two_classes_of_one_name_are_refused(table: dict[str, type[Value]], name: str) -> None:
    before = dict(table)
    with pytest.raises(UserError, match=f"class {name} ") as caught:
        define(name)
    assert f"My{name}" in caught.value.fix
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


ROWS = "lm_head.row_of_token"


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


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_damaged_map_from_tokens_to_rows_is_refused(tmp_path: Path) -> None:
    """row_of_token: [vocab], whole numbers, and every row but the last is exactly one token's."""
    save_model(build(KINDS["everything else"], dtype=torch.float32), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    rows = state.pop(ROWS)
    for damaged in ({}, *({ROWS: wrong} for wrong in (rows.float(), rows + 1, rows.where(rows != 4, 5)))):
        save_file(state | damaged, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"rows|shape|unknown"):
            load_model(tmp_path)
