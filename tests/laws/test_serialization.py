"""Runs as values: dump and load are inverses, differences name fields, misfits name the field and the cure, and names
of before are read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from model_kinds import KINDS

from hectogpt import serialization
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.model import ModelConfig
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


# --- names of before: tests/data/recipes.json has all of them, and test_recipes.py reads it ---------------------------


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
