"""Trials: scored alone or with counts; a text that has changed is not scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiments import make_corpus, small_run
from helpers import train

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab.best_counting import Mixture, held_out_losses
from hectogpt.lab.tracks import Scoring
from hectogpt.lab.trial import request_of, train_and_score
from hectogpt.training.run import Run
from hectogpt.training.setup import training_tokens


def tried(run: Run, corpus: Corpus, *splits: str, scoring: Scoring = "alone") -> dict[str, Any]:
    """What the process of a trial sends at its end; in this process."""
    *_, last = train_and_score(request_of(run, corpus, splits, scoring))
    return last


def test_a_trial_can_be_scored_with_counts(corpus: Corpus) -> None:
    """Of what the run read, with weights fitted on dev."""
    torch.set_num_threads(1)
    found = tried(small_run(), corpus, "dev", "test", scoring="counting")
    run, here = small_run(), train(small_run(), corpus)
    mixture = Mixture(training_tokens(run, corpus), run.model.vocab_size, model=here.model)
    fitted = {"dev": None, "test": corpus.dev}
    length = run.model.context_length
    expected = [held_out_losses(mixture, corpus.tokens[split], length, fit_on)[1] for split, fit_on in fitted.items()]
    assert [found["dev_loss"], found["test_loss"]] == pytest.approx(expected, rel=1e-6)
    assert found["dev_loss"] < here.dev_loss
    assert found["dev_bpb"] / found["dev_loss"] == pytest.approx(here.summary()["dev_bpb"] / here.dev_loss)


def test_a_corpus_that_changed_is_not_scored(corpus: Corpus, tmp_path: Path) -> None:
    changed = make_corpus(tmp_path)
    np.zeros(700, dtype="<u2").tofile(tmp_path / "dev.bin")
    with pytest.raises(UserError, match="has changed"):
        tried(small_run(), changed, "dev")
