"""Plans of comparisons: sweeps are grids, fields and recipes go by today's names and by their old ones; tracks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from experiments import make_corpus, small_run

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.lab.plan import override, parse_sweep, plan
from hectogpt.lab.tracks import TRACKS, broken_rules, find_track
from hectogpt.training.first_weights import BigramInit
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


# --- tracks: which rules a trial breaks -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("tiny"))


def test_rules(corpus: Corpus) -> None:
    run = replace(small_run(), steps=100)
    facts = (61_000_000, 601.0, {"kind": "cpu", "threads": 3})
    assert broken_rules(TRACKS["closed"], run, corpus) == []
    assert len(broken_rules(TRACKS["closed"], run, corpus, *facts)) == 3
    assert len(broken_rules(TRACKS["open-cpu"], run, corpus, *facts)) == 2
    assert broken_rules(TRACKS["open-gpu"], run, corpus, *facts) == []
    assert broken_rules(TRACKS["minute"], run, corpus, 1, 61.0) == ["61 s, at most 60"]
    assert broken_rules(TRACKS["closed"], replace(run, steps=99), corpus) == ["99 steps, not 100"]
    big = replace(run, data=replace(run.data, batch_size=1025))
    assert len(broken_rules(TRACKS["closed"], big, corpus)) == 2, "too many tokens, and text read twice"
    assert broken_rules(TRACKS["open-cpu"], big, corpus) == []


def test_who_may_use_a_gpu_and_counts(corpus: Corpus) -> None:
    run = replace(small_run(), steps=100)
    counted = replace(run, init_from_counts=BigramInit())
    gpu = {"kind": "cuda", "threads": 1}
    assert [name for name, track in TRACKS.items() if broken_rules(track, counted, corpus)] == [
        "closed",
        "minute",
        "closed+counting",
        "retrieval",
        "adaptive",
    ]
    closed = [name for name, track in TRACKS.items() if broken_rules(track, run, corpus, machine=gpu)]
    assert closed == ["closed", "minute", "closed+counting", "retrieval", "adaptive", "closed+statistics", "open-cpu"]


def test_an_unknown_track_is_answered_with_the_nearest() -> None:
    assert find_track("open-gpu") is TRACKS["open-gpu"]
    with pytest.raises(UserError, match="did you mean 'closed'") as caught:
        find_track("close")
    assert all(name in caught.value.why for name in TRACKS)
