"""The ladder: every rung is one idea in one section of the run and keeps the hundred steps; bundles are their parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hectogpt.data import Corpus, open_corpus
from hectogpt.lab import ladder, recipes
from hectogpt.lab.ladder import LADDER, Recipe
from hectogpt.training.evaluate import evaluate
from hectogpt.training.run import Run, sections_changed
from hectogpt.training.session import Session

RUNGS = range(1, len(LADDER) + 1)
# One idea is one section of the Run. These two are several small changes measured as one (results/LOG.md says why).
SEVERAL: dict[str, tuple[set[str], tuple[Recipe, ...]]] = {
    "lower_lr_long_hold": ({"optim", "schedule"}, (ladder.lower_table_lrs, ladder.larger_epsilon, ladder.hold_lr)),
    "soap_rare_tokens": (
        {"model", "optim"},
        (ladder.soap_before_muon, ladder.common_bigrams, ladder.row_lrs, ladder.embedding_map),
    ),
}


def sections(before: Run, after: Run) -> set[str]:
    """The sections in which two runs learn differently: dtypes and a compact vocabulary (see its test) change the cost
    alone."""

    def whole(run: Run) -> Run:
        return replace(run, model=replace(run.model, lm_head=replace(run.model.lm_head, compact_vocab=False)))

    return sections_changed(whole(before), whole(after)) - {"dtype", "head_dtype"}


@pytest.mark.parametrize("n", RUNGS, ids=[change.__name__ for change in LADDER])
def test_a_rung_is_one_idea(n: int) -> None:
    before, after = recipes.rung(n - 1), recipes.rung(n)
    changed = sections(before, after)
    if after.recipe in SEVERAL:
        assert changed == SEVERAL[after.recipe][0]
    else:
        assert len(changed) == 1, changed
    assert changed <= {"model", "init", "data", "optim", "schedule"}
    assert after.steps == 100
    assert after.data.batch_size * after.data.seq_len == 8192
    assert recipes.describe(after.recipe).endswith(".")
    assert recipes.explain(after.recipe)
    assert recipes.recipe(LADDER[n - 1].__name__) == after


@pytest.mark.parametrize("name", SEVERAL)
def test_a_rung_of_several_ideas_is_its_ideas(name: str) -> None:
    place = next(n for n, change in enumerate(LADDER) if change.__name__ == name)
    below = recipes.rung(place)
    ideas = SEVERAL[name][1]
    assert replace(ladder.apply(below, *ideas), recipe=name) == recipes.recipe(name)
    assert replace(ladder.apply(below, *reversed(ideas)), recipe=name) == recipes.recipe(name), "in any order"
    for idea in ideas:
        assert len(sections(below, idea(below))) == 1, idea.__name__
        assert idea.__doc__


def test_top_is_the_last_rung_and_what_train_does_by_default() -> None:
    assert recipes.recipe("top") == recipes.recipe(recipes.TOP) == recipes.rung(len(LADDER))


# --- width_128_shared_row ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("text") / "words.bin"
    generator = np.random.default_rng(0)
    documents = [np.append(generator.integers(0, 900, 300), 50256) for _ in range(90)]
    np.concatenate(documents).astype("<u2").tofile(path)
    return open_corpus(str(path), cache=Path(path).parent / "cache")


@pytest.mark.parametrize("eps", [1e-30, 1e-5])
def test_a_compact_head_learns_the_same_as_a_whole_one(eps: float, corpus: Corpus) -> None:
    """From zero, rows of tokens that never occur have equal gradients and stay equal: one row stands for all. With an
    epsilon that counts, the size of its gradient does too."""
    run = recipes.recipe("width_128_shared_row")
    assert run.model.lm_head.compact_vocab
    run = replace(run, data=replace(run.data, batch_size=4, seq_len=32), device="cpu", threads=1, head_dtype="float64")
    run = replace(run, model=replace(run.model, d_model=12, n_layers=1, context_length=32), steps=6, dtype="float64")
    run = replace(run, init=replace(run.init, head=0.0))  # a whole head starts at zero only if told to
    run = replace(run, gradient_clipping=0.5, optim=replace(run.optim, eps=eps))
    losses = {}
    for compact in (True, False):
        lm_head = replace(run.model.lm_head, compact_vocab=compact)
        session = Session.open(replace(run, model=replace(run.model, lm_head=lm_head)), corpus)
        trained = [step.loss for step in session.steps()]
        score = evaluate(session.model, corpus.dev, corpus.tokenizer.token_bytes, 32)
        losses[compact] = [*trained, score.loss]
    assert losses[True] == pytest.approx(losses[False], abs=1e-9)
    assert losses[True][-1] != losses[True][0]
