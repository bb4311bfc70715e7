"""Every rung: one idea, a hundred steps, a model that builds and takes two steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hectogpt.data import Corpus, open_corpus
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.lab.recipes import LADDER
from hectogpt.train import loop, machine
from hectogpt.train.run import Run, sections_changed

RUNGS = range(1, len(LADDER) + 1)
# One idea is one section of the Run. These two are several small changes measured as one (results/LOG.md says why).
SEVERAL = {"plateau": {"optim", "schedule"}, "rare": {"model", "optim"}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("text") / "words.bin"
    generator = np.random.default_rng(0)
    documents = [np.append(generator.integers(0, 900, 300), 50256) for _ in range(90)]
    np.concatenate(documents).astype("<u2").tofile(path)
    return open_corpus(str(path), cache=Path(path).parent / "cache")


def ideas(before: Run, after: Run) -> set[str]:
    """The sections in which two runs learn differently: number formats and a shared head (see its test) change cost
    alone."""

    def whole(run: Run) -> Run:
        return replace(run, model=replace(run.model, head=replace(run.model.head, shared=False)))

    return sections_changed(whole(before), whole(after)) - {"dtype", "head_dtype"}


@pytest.mark.parametrize("n", RUNGS, ids=[change.__name__ for change in LADDER])
def test_a_rung_is_one_idea(n: int) -> None:
    before, after = recipes.rung(n - 1), recipes.rung(n)
    changed = ideas(before, after)
    assert changed == SEVERAL.get(after.recipe, changed)
    assert len(changed) == 1 or after.recipe in SEVERAL, changed
    assert changed <= {"model", "init", "data", "optim", "schedule"}
    assert after.steps == 100
    assert after.data.batch_size * after.data.window == 8192
    assert recipes.describe(after.recipe).endswith(".")
    assert recipes.recipe(LADDER[n - 1].__name__) == after


def test_the_ladder_has_several_kinds_of_ideas() -> None:
    kinds = {tuple(ideas(recipes.rung(n - 1), recipes.rung(n))) for n in RUNGS}
    assert len(kinds) >= 3
    assert len(LADDER) >= 14


@pytest.mark.parametrize("name", [*recipes.names(), *(f"without {change.__name__}" for change in LADDER)])
def test_every_recipe_takes_two_steps_within_the_limit(name: str, corpus: Corpus) -> None:
    whole = recipes.without(name[8:]) if name.startswith("without ") else recipes.recipe(name)
    assert whole.model.parameter_floor() < 60e6
    # The same parts at a size for a test: every recipe's structure, few numbers.
    model = replace(whole.model, d_model=24, n_heads=2 if whole.model.d_model > 33 else 3, context_length=32)
    model = replace(model, vocab_size=50257, n_layers=min(2, model.n_layers))
    run = replace(
        whole, model=model, data=replace(whole.data, batch_size=2, window=32, micro_batch=None), steps=2, threads=1
    )
    run = replace(run, device="cpu", head_dtype="float32")
    chosen = machine.choose(run)
    built = loop.build_model(run, chosen, corpus)
    before = {n: p.detach().clone() for n, p in built.named_parameters()}
    steps = list(loop.steps(run, built, run.optim.build(built), corpus, chosen))
    assert len(steps) == 2
    still = [n for n, p in built.named_parameters() if (p == before[n]).all()]
    # Only what multiplies a projection or a head that started at zero may wait for the third step.
    assert not [n for n in still if "backbone" not in n and "inputs" not in n and "values" not in n], still


@pytest.mark.parametrize("eps", [1e-30, 1e-5])
def test_a_shared_head_learns_the_same_as_a_whole_one(eps: float, corpus: Corpus) -> None:
    """From zero, rows of words that never occur have equal gradients and stay equal: one row stands for all. With an
    epsilon that counts, the size of its gradient does too."""
    run = recipes.recipe("width")
    assert run.model.head.shared
    run = replace(run, data=replace(run.data, batch_size=4, window=32), device="cpu", threads=1, head_dtype="float64")
    run = replace(run, model=replace(run.model, d_model=12, n_layers=1, context_length=32), steps=6, dtype="float64")
    run = replace(run, init=replace(run.init, head=0.0))  # a whole head starts at zero only if told to
    run = replace(run, gradient_clipping=0.5, optim=replace(run.optim, eps=eps))
    losses = {}
    for shared in (True, False):
        one = replace(run, model=replace(run.model, head=replace(run.model.head, shared=shared)))
        chosen = machine.choose(one)
        built = loop.build_model(one, chosen, corpus)
        steps = loop.steps(one, built, one.optim.build(built), corpus, chosen)
        trained = [step.loss for step in steps]
        losses[shared] = [*trained, loop.evaluate(built, corpus.dev, corpus.tokenizer.token_bytes, 32).loss]
    assert losses[True] == pytest.approx(losses[False], abs=1e-9)
    assert losses[True][-1] != losses[True][0]


def test_top_is_the_last_rung_and_what_train_does_by_default() -> None:
    assert recipes.recipe("top") == recipes.recipe(recipes.DEFAULT) == recipes.rung(len(LADDER))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'rotary'"):
        recipes.recipe("rotery")
    with pytest.raises(UserError, match="is not on the ladder"):
        recipes.without("first")
