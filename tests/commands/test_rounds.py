"""Seed by seed: budgets, decisions and crashes, with trials that take a clock's time and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from experiments import make_corpus
from made_up import numbered_arms, record_of

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.record import append_record
from hectogpt.lab.rounds import Rounds, duration_text, parse_duration
from hectogpt.lab.tracks import TRACKS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("tiny"))


class Bench:
    """A comparison whose trials are made up: `loss` of a trial, None for a crash; each takes `seconds` of `now`."""

    def __init__(self, corpus: Corpus, out: Path, loss: Callable[[Trial], float | None], arms: int = 2) -> None:
        self.comparison = Comparison(numbered_arms(arms), [0], corpus, TRACKS["closed"], out)
        self.loss, self.now, self.seconds = loss, 0.0, 10.0
        self.done: list[tuple[str, int]] = []

    def run(self, **options: object) -> Rounds:
        rounds = Rounds(self.comparison, clock=lambda: self.now, **options)  # type: ignore[arg-type]
        for trials in rounds:
            for trial in trials:
                self.now += self.seconds
                loss = self.loss(trial)
                crashed = {"status": "failed", "error": "killed", "dev_loss": None} if loss is None else {}
                record = record_of(
                    self.comparison.corpus, trial.arm, trial.seed, loss or 1.0, wall_seconds=self.seconds, **crashed
                )
                append_record(self.comparison.out, record)
                self.done.append((trial.arm.label, trial.seed))
            self.comparison.missing()
        return rounds


def by_label(**gains: float) -> Callable[[Trial], float]:
    """Losses with hardly any noise: 5 minus the gain of the arm (lr2=0.1)."""
    return lambda trial: (
        5.0 + trial.seed - gains.get(trial.arm.label.replace(" ", ""), 0.0) + 0.001 * (trial.seed % 3) * len(gains)
    )


def test_durations() -> None:
    texts = ["90s", "60m", "2h", "1h30m", "0.5h", "1 h 30 m", "2H"]
    assert [parse_duration(text) for text in texts] == [90, 3600, 7200, 5400, 1800, 5400, 7200]
    for text in ("", "60", "m", "60 minutes", "-5m", "0s", "1h30", "nan", "1e3s"):
        with pytest.raises(UserError, match="as in 90s, 60m, 2h"):
            parse_duration(text)
    told = [duration_text(seconds) for seconds in (2.34, 45.6, 500.0, 3480.0, 7500.0)]
    assert told == ["2.3 s", "46 s", "8.3 min", "58 min", "2 h 5 min"]


def test_a_budget_holds_as_many_seeds_as_fit(corpus: Corpus, tmp_path: Path) -> None:
    bench = Bench(corpus, tmp_path / "r.jsonl", by_label())
    rounds = bench.run(budget=65.0)
    assert bench.now == 60.0, "three seeds of two trials of 10 s; a fourth would end at 80 s"
    assert bench.comparison.seeds == [0, 1, 2]
    assert rounds.ended == "budget of 65 s: 3 seeds in 60 s; the next takes about 20 s"
    assert rounds.results()[0].dev.n == 3


def test_one_seed_is_run_however_small_the_budget(corpus: Corpus, tmp_path: Path) -> None:
    bench = Bench(corpus, tmp_path / "r.jsonl", by_label())
    bench.run(budget=1.0)
    assert bench.done == [("lr 1", 0), ("lr 2", 0)]
    assert bench.comparison.seeds == [0]


def test_the_slowest_seed_counts(corpus: Corpus, tmp_path: Path) -> None:
    bench = Bench(corpus, tmp_path / "r.jsonl", by_label())
    bench.seconds = 20.0

    def loss(trial: Trial) -> float:
        bench.seconds = 10.0 if trial.seed else 20.0
        return 5.0

    bench.loss = loss
    bench.run(budget=105.0)
    assert bench.now == 70.0
    assert bench.comparison.seeds == [0, 1], "a third as slow as the first would end at 110 s"


def test_seeds_bound_a_budget(corpus: Corpus, tmp_path: Path) -> None:
    bench = Bench(corpus, tmp_path / "r.jsonl", by_label())
    rounds = bench.run(budget=1e6, most=2, first_seed=5)
    assert bench.comparison.seeds == [5, 6]
    assert rounds.ended == "all of 2 seeds are run"


def test_recorded_trials_take_no_time(corpus: Corpus, tmp_path: Path) -> None:
    Bench(corpus, tmp_path / "r.jsonl", by_label()).run(most=3)
    bench = Bench(corpus, tmp_path / "r.jsonl", by_label())
    bench.run(budget=45.0)
    assert bench.done == [(arm, seed) for seed in (3, 4) for arm in ("lr 1", "lr 2")]
    assert bench.comparison.seeds == [0, 1, 2, 3, 4]


def test_a_decision_ends_it(corpus: Corpus, tmp_path: Path) -> None:
    bench = Bench(corpus, tmp_path / "r.jsonl", by_label(lr2=0.1))
    rounds = bench.run(until_decided=True)
    assert rounds.ended == "decided after 3 seeds"
    assert [result.to_first and result.to_first.verdict for result in rounds.results()] == [None, "better"]
    again = Bench(corpus, tmp_path / "r.jsonl", by_label())
    assert again.run(until_decided=True).ended == rounds.ended
    assert again.done == []


def test_decided_arms_are_not_run_further(corpus: Corpus, tmp_path: Path) -> None:
    def loss(trial: Trial) -> float:
        noise = 0.05 * (-1) ** trial.seed if trial.arm.label == "lr 3" else 0.0
        return 5.0 + noise - 0.5 * (trial.arm.label == "lr 2")

    bench = Bench(corpus, tmp_path / "r.jsonl", loss, arms=3)
    rounds = bench.run(until_decided=True, most=6)
    counts = {arm.label: sum(label == arm.label for label, _ in bench.done) for arm in bench.comparison.arms}
    assert counts == {"lr 1": 6, "lr 2": 3, "lr 3": 6}
    assert rounds.ended == "all of 6 seeds are run, not decided"
    words = [result.to_first.verdict for result in rounds.results() if result.to_first]
    assert words == ["better", "unproven"]


def test_a_budget_ends_an_open_question(corpus: Corpus, tmp_path: Path) -> None:
    bench = Bench(
        corpus, tmp_path / "r.jsonl", lambda trial: 5.0 + 0.3 * (-1) ** trial.seed * (trial.arm.label == "lr 2")
    )
    rounds = bench.run(until_decided=True, budget=100.0)
    assert bench.comparison.seeds == [0, 1, 2, 3, 4]
    assert rounds.ended.startswith("budget of 1.7 min: 5 seeds")


def test_an_arm_that_always_crashes_ends_it(corpus: Corpus, tmp_path: Path) -> None:
    bench = Bench(corpus, tmp_path / "r.jsonl", lambda trial: None if trial.arm.label == "lr 2" else 5.0)
    rounds = bench.run(until_decided=True)
    assert rounds.ended == "lr 2 crashed at two seeds in a row"
    assert bench.comparison.seeds == [0, 1]


def test_one_crash_does_not(corpus: Corpus, tmp_path: Path) -> None:
    bench = Bench(corpus, tmp_path / "r.jsonl", by_label(lr2=0.1))
    told = bench.loss
    bench.loss = lambda trial: None if (trial.arm.label, trial.seed) == ("lr 1", 1) else told(trial)
    rounds = bench.run(until_decided=True)
    assert rounds.ended == "decided after 4 seeds"


def test_usage(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to decide"):
        Bench(corpus, tmp_path / "r.jsonl", by_label(), arms=1).run(until_decided=True)
    with pytest.raises(UserError, match="at least one seed"):
        Bench(corpus, tmp_path / "r.jsonl", by_label()).run(most=0)
