"""Runs as values: dump and load are inverses, differences name fields, misfits name the field and the cure."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.model.inputs import NgramHash, Smear
from hectogpt.model.parts import QKNorm, ReLU2, RMSNorm, Rotary
from hectogpt.serialization import did_you_mean, diff, dump, load
from hectogpt.train.optim import Muon
from hectogpt.train.run import Run, read_run, sections_changed, write_run
from hectogpt.train.schedules import Cosine


def departed() -> Run:
    run = recipes.recipe("first")
    model = replace(
        run.model,
        norm=RMSNorm(),
        activation=ReLU2(),
        inputs=(Smear((0.2,)), NgramHash(2, 1024)),
        attention_parts=(Rotary(1024.0, 0.5), QKNorm()),
    )
    return replace(run, model=model, optim=Muon(rest=run.optim), schedule=Cosine(3), gradient_clipping=None)


@pytest.mark.parametrize("run", [*(recipes.recipe(n) for n in recipes.names()), departed()], ids=lambda r: r.recipe)
def test_dump_and_load_are_inverses(run: Run, tmp_path) -> None:
    assert load(Run, json.loads(json.dumps(dump(run), allow_nan=False))) == run
    write_run(run, tmp_path / "run.json")
    assert read_run(tmp_path / "run.json") == run


def test_diff_names_exactly_the_fields_that_differ() -> None:
    run = recipes.recipe("first")
    other = replace(run, model=replace(run.model, d_model=64), seed=3)
    assert diff(run, run) == {}
    assert diff(run, other) == {"model.d_model": (128, 64), "seed": (0, 3)}
    assert sections_changed(run, other) == {"model", "seed"}
    assert "optim" in sections_changed(run, replace(run, optim=Muon(rest=run.optim)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": "100"}, "steps"),
        ({"steps": True}, "steps"),
        ({"stepz": 3}, "did you mean 'steps'?"),
        ({"optim": {"type": "AdamV"}}, "did you mean 'AdamW'?"),
        ({"optim": {"type": "AdamW", "betas": [0.9]}}, "optim.betas"),
        ({"optim": {"type": "LayerNorm"}}, "optim"),
        ({"dtype": "float8"}, "dtype"),
        ({"model": []}, "model"),
        ({"model": {"d_model": 33, "n_heads": 4}}, "model"),
        ({"optim": {"type": "AdamW", "lr": "nan"}}, "optim.lr"),
    ],
)
def test_what_does_not_fit_is_named(change: dict, named: str) -> None:
    with pytest.raises(UserError) as caught:
        load(Run, dump(recipes.recipe("first")) | change)
    assert named in str(caught.value)


def test_nearest_name() -> None:
    assert did_you_mean("basline", ["baseline", "first"]) == "did you mean 'baseline'?"
    assert did_you_mean("zzz", ["baseline", "first"]) == "known: baseline, first"
