"""Trials: scored with counts, while they read on, or by what they read; a text that has changed is not scored."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiments import make_corpus, small_run
from helpers import train

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab import mixing
from hectogpt.lab.mixing import Scoring, look_up, mix, places_read, places_scored, read_on, score_both, scores_of
from hectogpt.lab.ngram import NgramModels
from hectogpt.lab.trial import request_of, train_and_score
from hectogpt.training.checkpoint import put_state, take_state
from hectogpt.training.evaluate import evaluate
from hectogpt.training.run import Run
from hectogpt.training.session import Session
from hectogpt.training.setup import make_batches, training_tokens


def tried(run: Run, corpus: Corpus, *splits: str, scoring: Scoring = "alone") -> dict[str, Any]:
    """What the process of a trial sends at its end; in this process."""
    *_, last = train_and_score(request_of(run, corpus, splits, scoring))
    return last


def test_a_trial_can_be_scored_with_counts(corpus: Corpus) -> None:
    """Of what the run read, with weights fitted on dev."""
    torch.set_num_threads(1)
    found = tried(small_run(), corpus, "dev", "test", scoring="counting")
    run, here = small_run(), train(small_run(), corpus)
    order_5 = NgramModels(training_tokens(run, corpus), run.model.vocab_size).order_5
    dev, test = (
        score_both(
            order_5, corpus.tokens[split], evaluate(here.model, corpus.tokens[split], corpus.tokenizer.token_bytes)
        )
        for split in ("dev", "test")
    )
    expected = [mix(dev)[0], mix(test, dev)[0]]
    assert [found["dev_loss"], found["test_loss"]] == pytest.approx(expected, rel=1e-6)
    assert found["dev_loss"] < here.dev_loss
    assert found["dev_bpb"] / found["dev_loss"] == pytest.approx(here.summary()["dev_bpb"] / here.dev_loss)


def test_adapting_scores_each_token_before_it_is_learned(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first windows have the losses of the trained model, and so has all of a text that is read at rates of 0; the
    future changes no loss before it; afterwards the run is as it was."""
    session = Session.open(small_run(), corpus)
    list(session.steps())
    plain, before = session.evaluate("dev"), take_state(session.model, session.optimizer)
    dev = corpus.tokens["dev"][:321]
    monkeypatch.setattr(mixing, "WINDOWS", 2)
    monkeypatch.setattr(mixing, "FACTOR", 0.0)
    assert read_on(session, dev)[0] == pytest.approx(plain.losses[:320], abs=1e-6)
    found = []
    monkeypatch.setattr(mixing, "FACTOR", 1.0)
    for text in (dev, np.concatenate((dev[:160], dev[160:][::-1]))):
        put_state(session.model, session.optimizer, *deepcopy(before))
        losses, places, window = read_on(session, text)
        looked_up, _ = look_up(places, places, window)
        assert not looked_up[:32].any(), "nothing was scored before"
        found.append((losses, looked_up))
    (losses, looked_up), changed = found
    assert (losses[:159] == changed[0][:159]).all()
    assert looked_up[:159] == pytest.approx(changed[1][:159], abs=1e-5), (
        "sums of other numbers of places round otherwise"
    )
    assert losses[:32] == pytest.approx(plain.losses[:32], abs=1e-6)
    assert losses.mean() < plain.loss
    put_state(session.model, session.optimizer, *deepcopy(before))
    monkeypatch.undo()
    fields = scores_of("adaptive", session, ("dev", "test"))
    after, _ = take_state(session.model, session.optimizer)
    assert all(torch.equal(after[name], tensor) for name, tensor in before[0].items())
    assert fields["dev_loss"] < losses.mean()
    assert fields["dev_bpb"] / fields["dev_loss"] == pytest.approx(plain.bits_per_byte / plain.loss)


def test_what_is_looked_up_is_a_distribution_of_what_the_run_read(corpus: Corpus) -> None:
    session = Session.open(small_run(), corpus)
    list(session.steps())
    read, asked = places_read(session), places_scored(session, corpus.dev)
    batches = make_batches(session.run, corpus)
    assert read.following.tolist() == [y for step in range(3) for y in batches.at(step)[:, 1:].ravel()]
    assert (asked.token.numpy() == corpus.dev[:-1]).all()
    assert (asked.following.numpy() == corpus.dev[1:]).all()
    total, known = np.zeros(len(asked.token)), read.following.unique()
    for token in known:
        p, many = look_up(read, asked._replace(following=token.expand(len(asked.token))))
        total += p
    assert total[many > 0] == pytest.approx(1.0, abs=1e-5)
    assert set(asked.token[torch.from_numpy(many == 0)].tolist()) == set(asked.token.tolist()) - set(
        read.token.tolist()
    )
    fields = scores_of("retrieval", session, ("dev", "test"))
    assert fields["dev_loss"] < session.scores["dev"].loss


def test_a_corpus_that_changed_is_not_scored(corpus: Corpus, tmp_path: Path) -> None:
    changed = make_corpus(tmp_path)
    np.zeros(700, dtype="<u2").tofile(tmp_path / "dev.bin")
    with pytest.raises(UserError, match="has changed"):
        tried(small_run(), changed, "dev")
