"""Verdicts: numbers and words of made-up comparisons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from experiments import make_up, numbered_arms, record_of

from hectogpt.data import Corpus
from hectogpt.lab.compare import Comparison
from hectogpt.lab.statistics import seeds_needed
from hectogpt.lab.verdict import ComparisonResult, Verdict


def compared(corpus: Corpus, folder: Path, *losses: list[float], **more: Any) -> Comparison:
    """Arms "lr 1" and "lr 2" (and so on) with these losses, a seed each."""
    arms = numbered_arms(len(losses))
    named = {arm.label: values for arm, values in zip(arms, losses, strict=True)}
    return make_up(corpus, folder / "r.jsonl", arms, named, **more)


def verdict_of(comparison: Comparison, place: int = 0) -> Verdict:
    return ComparisonResult.of(comparison).verdicts[place]


def test_a_gain_with_everything_it_costs(corpus: Corpus, tmp_path: Path) -> None:
    this = compared(corpus, tmp_path, [5.0, 5.1, 5.2], [4.9, 5.01, 5.09])
    for key in [key for key in this.records if key[0] == "lr 2"]:
        this.records[key] = replace(this.records[key], seconds=21.0, peak_mb=700.0, params=1_000_100)
    verdict = verdict_of(this)
    assert verdict.pair == this.results()[1].to_first
    assert verdict.gain == pytest.approx(0.1)
    low, high = verdict.interval or (0.0, 0.0)
    assert 0 < low < verdict.gain < high
    assert (verdict.word, verdict.seeds) == ("better", (0, 1, 2))
    for part in (
        f"lr 2 is better than lr 1: its dev loss on {corpus.folder.name} is 0.1000 nats per token lower (gain +0.1000",
        f"; 95 % interval {low:+.4f} to {high:+.4f}; one-sided p = 0.002; 3 paired seeds, 0 to 2; 3 st",
        "A trial takes 21.0 s instead of 14.0 (x 1.5), 700 MiB of memory instead of 560 (x 1.25), 1,000,100 parameters",
        "It keeps the rules of track closed.",
    ):
        assert part in verdict.text
    answer = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    assert answer["seconds"] == {"first": 14.0, "arm": 21.0}
    assert (answer["text"], answer["gain"]) == (verdict.text, verdict.gain)


def test_a_loss_and_a_tie(corpus: Corpus, tmp_path: Path) -> None:
    this = compared(corpus, tmp_path, [5.0, 5.1, 5.2], [5.5, 5.6, 5.71], [5.001, 5.1, 5.199])
    worse, tie = ComparisonResult.of(this).verdicts
    assert (worse.word, tie.word) == ("worse", "tie")
    assert f"{-worse.gain:.4f} nats per token higher" in worse.text
    assert tie.text.startswith("lr 3 ties with lr 1: ")


def test_what_it_takes_to_decide(corpus: Corpus, tmp_path: Path) -> None:
    one = verdict_of(compared(corpus, tmp_path / "one", [5.0], [4.0]))
    assert (one.word, one.interval, one.pair.p, one.as_json()["seeds_needed"]) == ("unproven", None, None, None)
    assert one.text.endswith("One seed proves nothing: run at least 3.")
    noisy = verdict_of(compared(corpus, tmp_path, [5.0, 5.1, 5.2], [4.9, 5.15, 5.23]))
    assert noisy.word == "tie"
    assert noisy.pair.sd is not None
    needed = seeds_needed(noisy.pair.sd)
    assert noisy.as_json()["seeds_needed"] == needed > 3
    assert f"It takes about {needed} paired seeds" in noisy.text
    enough = replace(noisy, pair=replace(noisy.pair, sd=0.001))
    assert "more are not needed" in enough.text
    assert "what is missing is p" in replace(enough, pair=replace(enough.pair, verdict="unproven")).text
    assert "more seeds are not needed" in replace(noisy, sequential=True).text


def test_lost_trials_and_broken_rules_are_said(corpus: Corpus, tmp_path: Path) -> None:
    this = compared(corpus, tmp_path, [5.0, 5.1, 5.2], [10.8, 10.9, 5.0], rules_broken=["3 steps, not 100"])
    for seed in (0, 1):
        this.records["lr 2", seed] = replace(this.records["lr 2", seed], status="diverged", error="loss nan")
    this.failed = [record_of(corpus, this.arms[0], 7, 5.0, status="failed", error="killed")]
    verdict = verdict_of(this)
    assert (verdict.diverged, verdict.failed) == ([("lr 2", 0), ("lr 2", 1)], [("lr 1", 7)])
    assert "lr 2, seed 1: diverged, counted as a uniform guess." in verdict.text
    assert "lr 1, seed 7: crashed, not counted." in verdict.text
    assert "It breaks the rules of track closed: 3 steps, not 100; so does lr 1." in verdict.text
    own = replace(verdict, rules_broken=(), first_rules_broken=("trained on a GPU",))
    assert "It keeps the rules of track closed. lr 1 breaks them: trained on a GPU." in own.text


def test_only_shared_seeds_count(corpus: Corpus, tmp_path: Path) -> None:
    this = compared(corpus, tmp_path, [5.0, 5.1, 5.2, 5.3], [4.9, 5.0, 5.1, 5.2])
    del this.records["lr 1", 1]
    assert verdict_of(this).seeds == (0, 2, 3)
    this.records = {key: record for key, record in this.records.items() if key[0] == "lr 2"}
    assert ComparisonResult.of(this).verdicts == (), "the first arm has no trial"


def test_a_sequential_verdict_counts_the_seeds_up_to_the_decision(corpus: Corpus, tmp_path: Path) -> None:
    this = compared(corpus, tmp_path, [5.0, 5.1, 5.2, 5.3, 5.4], [4.9, 5.0, 5.1, 5.2, 9.0])
    this.sequential = True
    (verdict,) = ComparisonResult.of(this).verdicts
    assert (verdict.word, verdict.seeds) == ("better", (0, 1, 2))
    assert "The interval is valid although the comparison was looked at after every seed." in verdict.text
