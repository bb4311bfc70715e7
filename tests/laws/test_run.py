"""The Run: values that make no sense are refused with the field's name, and the cure in fields."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import small_run

from hectogpt.errors import UserError
from hectogpt.training.optim import Muon
from hectogpt.training.run import Data, sections_changed


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed"),
        ({"gradient_clipping": 0.0}, "gradient_clipping"),
        ({"data": Data(8, 64)}, r"set data\.seq_len to 32"),
        ({"threads": -2}, "threads"),
    ],
)
def test_impossible_runs_are_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        small_run(**change)


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"seq_len": 1}, {"micro_batch": 99}, {"micro_batch": 0}])
def test_impossible_batches_are_refused(bad: dict[str, int]) -> None:
    (name,) = bad
    with pytest.raises(UserError, match=rf"data\.{name}"):
        Data(**bad)


def test_sections_that_a_recipe_changed() -> None:
    run = small_run()
    assert sections_changed(run, replace(run, recipe="other")) == set()
    assert sections_changed(run, replace(run, seed=3, data=Data(4, 32))) == {"seed", "data"}
    assert sections_changed(run, replace(run, optim=Muon(rest=run.optim))) == {"optim"}
