"""Tracks: which rules a trial breaks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from experiments import make_corpus, small_run

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab.tracks import TRACKS, broken_rules, find_track
from hectogpt.training.first_weights import BigramInit


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
    ]
    closed = [name for name, track in TRACKS.items() if broken_rules(track, run, corpus, machine=gpu)]
    assert closed == ["closed", "minute", "closed+counting", "closed+statistics", "open-cpu"]


def test_an_unknown_track_is_answered_with_the_nearest() -> None:
    assert find_track("open-gpu") is TRACKS["open-gpu"]
    with pytest.raises(UserError, match="did you mean 'closed'") as caught:
        find_track("close")
    assert all(name in caught.value.why for name in TRACKS)
