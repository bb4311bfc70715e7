"""Recipes by name: each takes two steps, every rung of the ladder is one idea. test_record.py holds their fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from helpers import sections_changed, shrunk

from hectogpt.data import Corpus
from hectogpt.lab import recipes
from hectogpt.lab.ladder import LADDER
from hectogpt.model.pointer import PointerHead
from hectogpt.training.evaluate import evaluate
from hectogpt.training.optim import AdamW
from hectogpt.training.run import LinearDecay, Run
from hectogpt.training.session import Session

ABLATIONS = [recipes.WITHOUT + change.__name__ for change in LADDER]


@pytest.mark.parametrize(
    "name", [*recipes.RECIPES, *(pytest.param(name, marks=pytest.mark.thorough) for name in ABLATIONS)]
)
def test_every_recipe_takes_two_steps_within_the_limit(name: str, corpus: Corpus) -> None:
    assert recipes.recipe(name).model.min_parameters() < 60e6
    session = Session.open(shrunk(recipes.recipe(name), steps=2), corpus)
    before = {n: p.detach().clone() for n, p in session.model.named_parameters()}
    assert len(list(session.steps())) == 2
    still = [n for n, p in session.model.named_parameters() if (p == before[n]).all()]
    # Only what multiplies a projection or a head that started at zero may wait for the third step.
    waiting = ("backbone", "inputs", "values")
    assert not [n for n in still if not any(part in n for part in waiting)], still


def test_adamw_128_of_which_no_record_is_kept() -> None:
    before = replace(recipes.recipe("baseline"), recipe="adamw_128", dtype="auto", head_dtype="auto")
    optim = AdamW(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    run = replace(before, model=replace(before.model, d_model=128, n_heads=4), optim=optim, schedule=LinearDecay(5))
    assert recipes.recipe("adamw_128") == run


# --- the ladder -------------------------------------------------------------------------------------------------------

RUNGS = range(1, len(LADDER) + 1)
RUNS = [recipes.recipe(name) for name in ("baseline", *(change.__name__ for change in LADDER))]
# One idea is one section of the Run. These are several small changes measured as one (results/LOG.md says why).
BOTH = {"model", "optim"}
SEVERAL = {"lower_lr_long_hold": {"optim", "schedule"}, "soap_rare_tokens": BOTH, "width_384": BOTH}


def sections(before: Run, after: Run) -> set[str]:
    """The sections in which two runs learn differently: dtypes and a compact vocabulary (see its test) change the cost
    alone."""

    def whole(run: Run) -> Run:
        return replace(run, model=replace(run.model, lm_head=replace(run.model.lm_head, compact_vocab=False)))

    return sections_changed(whole(before), whole(after)) - {"dtype", "head_dtype"}


@pytest.mark.parametrize("n", RUNGS, ids=[change.__name__ for change in LADDER])
def test_a_rung_is_one_idea(n: int) -> None:
    before, after = RUNS[n - 1], RUNS[n]
    changed = sections(before, after)
    assert changed == SEVERAL.get(after.recipe, changed)
    assert len(changed) == 1 or after.recipe in SEVERAL, changed
    assert changed <= {"model", "init", "data", "optim", "schedule"}
    assert after.steps == 100
    assert after.data.batch_size * after.data.seq_len == 8192
    assert recipes.paragraphs(after.recipe)[1:]


# --- width_128_shared_row ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eps", "more"), [(1e-30, {}), (1e-5, {"bias": True, "soft_cap": 3.0})])
def test_a_compact_head_learns_the_same_as_a_whole_one(eps: float, more: dict[str, Any], corpus: Corpus) -> None:
    """From zero, rows of tokens that never occur have equal gradients and stay equal: one row stands for all. With an
    epsilon that counts, the size of its gradient does too; and the norm that is clipped is the whole head's."""
    run = recipes.recipe("width_128_shared_row")
    assert run.model.lm_head.compact_vocab
    assert isinstance(run.optim, AdamW)
    run = replace(run, gradient_clipping=0.5, optim=replace(run.optim, eps=eps))
    run = shrunk(run, steps=4, layers=1, rows=4, dtype="float64")
    run = replace(run, init=replace(run.init, head=0.0))  # a whole head starts at zero only if told to
    pointer = PointerHead() if more else None  # its copies are mixed in
    losses = {}
    for compact in (True, False):
        lm_head = replace(run.model.lm_head, compact_vocab=compact, **more)
        session = Session.open(replace(run, model=replace(run.model, lm_head=lm_head, pointer=pointer)), corpus)
        trained = [step.loss for step in session.steps()]
        score = evaluate(session.model, corpus.dev, corpus.tokenizer.token_bytes, 16)
        losses[compact] = [*trained, score.loss]
    assert losses[True] == pytest.approx(losses[False], abs=1e-9)
    assert losses[True][-1] != losses[True][0]
