"""The Run: values that make no sense are refused with the field's name, and the cure in fields."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from helpers import small_run
from hypothesis import given
from hypothesis import strategies as st

from hectogpt.errors import UserError
from hectogpt.training.optim import Muon
from hectogpt.training.run import Data, sections_changed
from hectogpt.training.schedules import Constant, Cosine, LinearDecay


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


IMPOSSIBLE = [{"batch_size": 0}, {"seq_len": 1}, {"micro_batch": 99}, {"micro_batch": 0}]


@pytest.mark.parametrize("bad", [*IMPOSSIBLE, {"micro_batch": 1, "batch_size": 10**6}])
def test_impossible_batches_are_refused(bad: dict[str, int]) -> None:
    name = next(iter(bad))
    with pytest.raises(UserError, match=rf"data\.{name}"):
        Data(**bad)


def test_sections_that_a_recipe_changed() -> None:
    run = small_run()
    assert sections_changed(run, replace(run, recipe="other")) == set()
    assert sections_changed(run, replace(run, seed=3, data=Data(4, 32))) == {"seed", "data"}
    assert sections_changed(run, replace(run, optim=Muon(rest=run.optim))) == {"optim"}


# --- schedules --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(0, 40), st.floats(0, 0.9), st.floats(0, 1))
def test_schedules_stay_between_zero_and_one(steps: int, warmup: int, hold: float, final: float) -> None:
    for schedule in (Constant(), LinearDecay(warmup, hold, final), Cosine(warmup, final)):
        factors = [schedule.factor(step, steps) for step in range(steps)]
        assert all(0 <= f <= 1 + 1e-12 and math.isfinite(f) for f in factors)
        assert factors[0] > 0  # a first step at learning rate 0 is a step thrown away
        falling = factors[warmup:]
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))


def test_linear_decay_reaches_its_marks() -> None:
    factors = [LinearDecay(warmup=5).factor(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[99] == pytest.approx(1 / 95)
    held = [LinearDecay(hold=0.5).factor(step, 100) for step in range(100)]
    assert held[:51] == [1.0] * 51
    assert held[75] == pytest.approx(0.5)
    assert LinearDecay(final=0.1).factor(99, 100) == pytest.approx(0.1 + 0.9 / 100)


def test_cosine_reaches_its_marks() -> None:
    factors = [Cosine(warmup=4, final=0.2).factor(step, 104) for step in range(104)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[54] == pytest.approx(0.6)  # half-way down
    assert factors[103] == pytest.approx(0.2, abs=1e-3)
