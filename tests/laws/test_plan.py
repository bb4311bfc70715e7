"""Plans of comparisons: sweeps are grids, fields and recipes go by today's names and by their old ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.lab.plan import override, parse_sweep, plan
from hectogpt.training.optim import AdamW


def test_a_sweep_is_a_grid_of_overrides() -> None:
    arms = plan(["baseline"], sweep=["optim.lr=.001,3e-3", "model.d-model=6,9"], steps=7)
    grid = [(1e-3, 6), (1e-3, 9), (3e-3, 6), (3e-3, 9)]
    assert [(a.run.optim.lr, a.run.model.d_model) for a in arms if isinstance(a.run.optim, AdamW)] == grid
    assert all(arm.run.steps == 7 and arm.overrides["steps"] == 7 for arm in arms)
    assert len({arm.label for arm in arms}) == 4
    assert plan(["baseline"], steps=100)[0].overrides == {}, "the recipe's own number of steps is no change"
    run = recipes.baseline()
    assert override(run, {"gradient_clipping": None}) == replace(run, gradient_clipping=None)


def test_old_names_are_todays() -> None:
    arms = plan(["rare"], sweep=["data.window=128", "optim.rest.row_fall=.4"])
    assert arms == plan(["soap_rare_tokens"], sweep=["data.seq_len=128", "optim.rest.row_lr_power=.4"])
    assert [arm.label for arm in plan([], without=["wide"])] == [recipes.TOP, "without-width_256"]


def test_values_are_read_as_json_reads_them() -> None:
    assert parse_sweep("a.b=1,2.5,.5,true,None,auto") == [("a.b", v) for v in (1, 2.5, 0.5, True, None, "auto")]
    assert parse_sweep("optim.betas=[0.8,0.95],[0.9,0.99]") == [("optim.betas", v) for v in ([0.8, 0.95], [0.9, 0.99])]


@pytest.mark.parametrize(
    ("sweep", "named"),
    [
        ("model.dmodel=32", "did you mean 'd_model'"),
        ("optimum.lr=1", "no field"),
        ("optim.lr", "FIELD=VALUE"),
        ("optim.lr=fast", "does not fit"),
        ("steps.n=2", "no field"),
    ],
)
def test_a_sweep_of_nothing_is_refused(sweep: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(["baseline"], sweep=[sweep])
    assert named in str(caught.value)
    assert "--" not in str(caught.value), "only the command line spells options"


def test_without_all_leaves_out_each_rung_once() -> None:
    arms = plan([], without=["all"])
    assert arms[0].label == recipes.TOP
    assert len(arms) == 1 + len(recipes.LADDER)
    assert all(arm.run.recipe == arm.label and not arm.overrides for arm in arms)
    for names, without, named in (([], [], "no recipe"), (["basline"], [], "basline"), ([], ["foo"], "foo")):
        with pytest.raises(UserError, match=named):
            plan(names, without=without)
