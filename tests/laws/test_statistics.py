"""Statistics over seeds: paired tests against scipy and by hand, verdicts, spreads, selection bias; the test that stays
valid under looking: its formulas by integration, its error rates and its power by simulation; what is said of it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import numbered_arms, record_of
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hectogpt.data import Corpus
from hectogpt.lab.compare import Comparison
from hectogpt.lab.losses import seeds_to_decide, verdict
from hectogpt.lab.record import append_record
from hectogpt.lab.sequential import ALPHA, EFFECT_VARIANCE, compare_sequentially, half_width, look, p_value
from hectogpt.lab.statistics import LEAST_DIFFERENCE, Paired, compare_pairs, seeds_needed
from hectogpt.lab.tracks import TRACKS
from hectogpt.lab.verdict import ComparisonResult, Verdict

losses = st.floats(0, 12, allow_nan=False)


def compared(new: list[float], old: list[float], sequentially: bool = False) -> Paired:
    """Of pairs by their seeds, 0 and up."""
    found = (compare_sequentially if sequentially else compare_pairs)(dict(enumerate(new)), dict(enumerate(old)))
    assert found is not None
    return found


@given(st.lists(st.tuples(losses, losses), min_size=2, max_size=9))
def test_paired_is_scipys_paired_test(pairs: list[tuple[float, float]]) -> None:
    new, old = ([pair[i] for pair in pairs] for i in (0, 1))
    gains = np.subtract(old, new)
    ours = compared(new, old)
    assert ours.gain == pytest.approx(gains.mean(), abs=1e-12)
    if gains.std() < 1e-6:
        return
    assert ours.p == pytest.approx(stats.ttest_1samp(gains, 0, alternative="greater").pvalue)
    interval = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert ours.sd == pytest.approx(gains.std(ddof=1))
    assert ours.noise_floor == pytest.approx(2 * gains.std(ddof=1) / math.sqrt(len(gains)))
    assert ours.verdict != "better" or (ours.gain >= LEAST_DIFFERENCE and (ours.p or 0.0) < 0.01)


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ([2.9, 2.91, 2.89, 2.9, 2.9], "better"),
        ([3.1, 3.11, 3.09, 3.1, 3.1], "worse"),
        ([2.99, 2.99, 2.99, 2.991, 2.989], "tie"),  # certain, and too small to matter
        ([2.5, 3.4, 2.6, 3.3, 2.9], "tie"),  # large, and within the noise
        ([2.9, 2.9, 2.9, 2.9, 2.9], "better"),
        ([3.0, 3.0, 3.0, 3.0, 3.0], "tie"),
        ([2.5], "unproven"),
    ],
)
def test_verdicts(new: list[float], verdict: str) -> None:
    assert compared(new, [3.0] * 5).verdict == verdict


@pytest.mark.parametrize("sd", [0.003, 0.01, 0.02, 0.05, 0.1])
def test_seeds_needed_have_the_power_that_they_promise(sd: float) -> None:
    """Against the exact power of the paired t test, by the noncentral t distribution."""

    def power(n: int) -> float:
        return float(stats.nct.sf(stats.t.ppf(0.99, n - 1), n - 1, LEAST_DIFFERENCE * math.sqrt(n) / sd))

    n = seeds_needed(sd)
    assert power(n + 1) >= 0.8
    assert n <= 3 or power(n - 1) < 0.8
    assert seeds_needed(0.0) >= 2


# --- looking after every seed -----------------------------------------------------------------------------------------

COMPARISONS, SEEDS = 2000, 50
SPREADS = [0.003, 0.02, 0.2]  # SD of the paired differences, nats


def simulate(mean: float, sd: float) -> dict[str, float]:
    """Shares of simulated comparisons that end as each word, and `seeds`, how many they take on average. A comparison
    looks after every seed and stops at the first look that decides, at the latest after SEEDS."""
    gains = np.random.default_rng(0).normal(mean, sd, (COMPARISONS, SEEDS))
    words = look(gains).word
    stops = words != "unproven"
    at = np.where(stops.any(-1), stops.argmax(-1), SEEDS - 1)
    ends = words[np.arange(COMPARISONS), at]
    shares = {word: float(np.mean(ends == word)) for word in ("better", "worse", "tie", "unproven")}
    return shares | {"seeds": float(np.mean(at + 1))}


# --- error rates and power --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sd", SPREADS)
def test_no_look_misses_the_truth_in_most_comparisons(sd: float) -> None:
    """Simultaneously over all looks, also those after a decision."""
    gains = np.random.default_rng(1).normal(0.05, sd, (COMPARISONS, SEEDS))
    looks = look(gains)
    missed = ((looks.low > 0.05) | (looks.high < 0.05)).any(-1)
    assert missed.mean() <= ALPHA


@pytest.mark.parametrize(
    ("mean", "sd", "words", "least", "most", "seeds"),
    [
        *((0.0, sd, "better worse", 0.0, ALPHA, SEEDS) for sd in SPREADS),
        *((LEAST_DIFFERENCE, sd, "tie worse", 0.0, ALPHA, SEEDS) for sd in (0.003, 0.01, 0.02)),
        *((0.05, sd, "better", 0.99, 1.0, seeds) for sd, seeds in ((0.01, 4.5), (0.02, 6.0), (0.05, 17.0))),
        (-0.05, 0.05, "worse", 0.99, 1.0, 17.0),
        (0.0, 0.01, "tie", 0.99, 1.0, 8.0),
    ],
)
def test_how_many_comparisons_end_so(
    mean: float, sd: float, words: str, least: float, most: float, seeds: float
) -> None:
    """Few equals are called better or worse, few gains a tie; a clear gain is found in few seeds, and so is a tie."""
    ends = simulate(mean, sd)
    assert least <= sum(ends[word] for word in words.split()) <= most
    assert ends["seeds"] <= seeds


# --- formulas ---------------------------------------------------------------------------------------------------------


def e_value(n: np.ndarray, distance: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """E_n(m0) of the module's text; distance: d, the mean gain minus m0."""
    total, shrink = squares + n * distance**2, 1 / (1 + n * EFFECT_VARIANCE)
    return np.asarray(shrink**0.5 * ((squares + n * distance**2 * shrink) / total) ** (-n / 2))


def test_the_interval_is_where_the_e_value_is_small() -> None:
    n, squares = np.arange(3.0, 60.0), np.linspace(0.1, 2.0, 57)
    half = half_width(n, squares)
    assert np.isfinite(half).all()
    assert e_value(n, half, squares) == pytest.approx(1 / ALPHA)
    assert np.isinf(half_width(np.array([1.0, 2.0]), np.array([0.0, 1.0]))).all(), "no bound from two seeds"


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_undecided_comparisons() -> None:
    assert compare_pairs({0: 1.0}, {1: 1.0}) is None
    assert compare_sequentially({0: 1.0}, {1: 1.0}) is None
    for new in ([1.0], [1.0, 1.1]):  # two seeds never decide
        pair = compared(new, [loss + 1 for loss in new], sequentially=True)
        assert (pair.n, pair.verdict, pair.low) == (len(new), "unproven", None)


@pytest.mark.parametrize(("difference", "verdict"), [(0.0, "tie"), (0.01, "tie"), (-0.5, "better"), (0.5, "worse")])
def test_differences_without_noise_are_decided_by_three_seeds(difference: float, verdict: str) -> None:
    pair = compared([5.0 + difference] * 9, [5.0] * 9, sequentially=True)
    assert (pair.n, pair.verdict) == (3, verdict)
    assert json.loads(json.dumps(asdict(pair), allow_nan=False)) == asdict(pair)


# --- verdicts: numbers and words of made-up comparisons ---------------------------------------------------------------


def comparison_of(corpus: Corpus, folder: Path, *losses: list[float], **more: Any) -> Comparison:
    """Arms "lr 1" and "lr 2" (and so on) with these losses, a seed each. more: fields of all records."""
    arms, out = numbered_arms(len(losses)), folder / "r.jsonl"
    for arm, values in zip(arms, losses, strict=True):
        for seed, loss in enumerate(values):
            append_record(out, record_of(corpus, arm, seed, loss, **more))
    return Comparison(arms, range(len(losses[0])), corpus, TRACKS["closed"], out)


def verdict_of(comparison: Comparison, place: int = 0) -> Verdict:
    return ComparisonResult.of(comparison).verdicts[place]


def test_a_gain_with_everything_it_costs(corpus: Corpus, tmp_path: Path) -> None:
    this = comparison_of(corpus, tmp_path, [5.0, 5.1, 5.2], [4.9, 5.01, 5.09])
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
        "Costs of a trial: 21.0 s instead of 14.0 (x 1.5), 700 MiB of memory instead of 560 (x 1.25), 1,000,100 param",
        "lr 2 keeps the rules of track closed.",
    ):
        assert part in verdict.text
    answer = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    assert answer["seconds"] == {"first": 14.0, "arm": 21.0}
    assert (answer["text"], answer["gain"]) == (verdict.text, verdict.gain)


def test_a_loss_and_a_tie(corpus: Corpus, tmp_path: Path) -> None:
    this = comparison_of(corpus, tmp_path, [5.0, 5.1, 5.2], [5.5, 5.6, 5.71], [5.001, 5.1, 5.199])
    worse, tie = ComparisonResult.of(this).verdicts
    assert (worse.word, tie.word) == ("worse", "tie")
    assert f"{-worse.gain:.4f} nats per token higher" in worse.text
    assert tie.text.startswith("lr 3 ties with lr 1: ")


def test_what_it_takes_to_decide(corpus: Corpus, tmp_path: Path) -> None:
    one = verdict_of(comparison_of(corpus, tmp_path / "one", [5.0], [4.0]))
    assert (one.word, one.interval, one.pair.p, one.as_json()["seeds_needed"]) == ("unproven", None, None, None)
    assert one.text.endswith("One seed proves nothing: run at least 3.")
    noisy = verdict_of(comparison_of(corpus, tmp_path, [5.0, 5.1, 5.2], [4.9, 5.15, 5.23]))
    assert noisy.word == "tie"
    assert noisy.pair.sd is not None
    needed = seeds_needed(noisy.pair.sd)
    assert noisy.as_json()["seeds_needed"] == needed > 3
    assert f"About {needed} paired seeds" in noisy.text
    enough = replace(noisy, pair=replace(noisy.pair, sd=0.001))
    assert "more are not needed" in enough.text
    assert "fresh seeds" in replace(enough, pair=replace(enough.pair, verdict="unproven")).text
    assert "more seeds are not needed" in replace(noisy, sequential=True).text


def test_lost_trials_and_broken_rules_are_said(corpus: Corpus, tmp_path: Path) -> None:
    this = comparison_of(corpus, tmp_path, [5.0, 5.1, 5.2], [10.8, 10.9, 5.0], rules_broken=["3 steps, not 100"])
    for seed in (0, 1):
        this.records["lr 2", seed] = replace(this.records["lr 2", seed], status="diverged", error="loss nan")
    this.failed = [record_of(corpus, this.arms[0], 7, 5.0, status="failed", error="killed")]
    verdict = verdict_of(this)
    assert (verdict.diverged, verdict.failed) == ([("lr 2", 0), ("lr 2", 1)], [("lr 1", 7)])
    assert "lr 2, seed 1: diverged, counted as a uniform guess." in verdict.text
    assert "lr 1, seed 7: crashed, not counted." in verdict.text
    assert (
        "lr 2 breaks the rules of track closed: 3 steps, not 100. lr 1 breaks them: 3 steps, not 100." in verdict.text
    )
    own = replace(verdict, rules_broken=(), first_rules_broken=("trained on a GPU",))
    assert "lr 2 keeps the rules of track closed. lr 1 breaks them: trained on a GPU." in own.text


def test_only_shared_seeds_count(corpus: Corpus, tmp_path: Path) -> None:
    this = comparison_of(corpus, tmp_path, [5.0, 5.1, 5.2, 5.3], [4.9, 5.0, 5.1, 5.2])
    del this.records["lr 1", 1]
    assert verdict_of(this).seeds == (0, 2, 3)
    this.records = {key: record for key, record in this.records.items() if key[0] == "lr 2"}
    assert ComparisonResult.of(this).verdicts == (), "the first arm has no trial"


def test_a_sequential_verdict_counts_the_seeds_up_to_the_decision(corpus: Corpus, tmp_path: Path) -> None:
    this = comparison_of(corpus, tmp_path, [5.0, 5.1, 5.2, 5.3, 5.4], [4.9, 5.0, 5.1, 5.2, 9.0])
    this.sequential = True
    (verdict,) = ComparisonResult.of(this).verdicts
    assert (verdict.word, verdict.seeds) == ("better", (0, 1, 2))
    assert "The interval accounts for looking at the results after every seed." in verdict.text


# --- losses of anybody's runs -----------------------------------------------------------------------------------------


def test_wrong_verdicts_of_ten_thousand_studies_without_a_gain() -> None:
    """Each is looked at after every seed up to 30. The naive test repeats scipy's paired t test at every look; the
    asymptotic confidence sequence is that of Waudby-Smith et al. (arXiv:2103.06476), with rho = 1."""
    gains = np.random.default_rng(4).normal(0.0, 0.01, (10_000, 30))
    n = np.arange(1, 31)
    mean = gains.cumsum(-1) / n
    sd = np.sqrt(np.maximum((gains**2).cumsum(-1) - n * mean**2, 0)[:, 1:] / (n[1:] - 1))
    t = mean[:, 1:] / (sd / np.sqrt(n[1:]))
    np.testing.assert_allclose(t[0, -1], stats.ttest_1samp(gains[0], 0.0).statistic)
    naive = (2 * stats.t.sf(abs(t), n[1:] - 1) < 0.05).any(-1).mean()
    asymptotic = sd * np.sqrt(2 * (n[1:] + 1) / n[1:] ** 2 * np.log(np.sqrt(n[1:] + 1) / 0.05))
    howard = (abs(mean[:, 1:]) > asymptotic).any(-1).mean()
    looks = look(gains, margin=0.0)
    ours = np.isin(looks.word, ["better", "worse"]).any(-1).mean()
    assert ours <= 0.05 < howard < naive, (ours, howard, naive)
    page = (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")
    for share in (ours, howard, naive):
        assert f"{100 * share:.1f} %" in page, (ours, howard, naive)


@given(st.lists(st.integers(-1000, 1000).map(lambda n: n / 1000), min_size=2, max_size=30))
def test_p_and_interval_say_the_same(gains: list[float]) -> None:
    looks = look(gains)
    excluded = bool(((looks.low > 0) | (looks.high < 0)).any())
    assert excluded == (p_value(gains) < ALPHA) or p_value(gains) == pytest.approx(ALPHA)


@pytest.mark.parametrize(
    ("a", "b", "word", "more"),
    [
        ([3.0, 3.1, 3.2, 3.0], [2.9, 3.0, 3.1, 2.9], "better", 0),
        ([2.9, 3.0, 3.1, 2.9], [3.0, 3.1, 3.2, 3.0], "worse", 0),
        ([3.0, 3.1, 2.9], [3.0, 3.1, 2.9], "tie", 0),
        ([3.0], [2.0], "unproven", None),
    ],
)
def test_verdicts_on_losses(a: list[float], b: list[float], word: str, more: int | None) -> None:
    found = verdict(dict(zip("0123", a, strict=False)), dict(zip("0123", b, strict=False)))
    assert (found.verdict, found.more_seeds, found.pairs) == (word, more, len(a))
    assert verdict(a, b).verdict == word


def test_the_forecast_of_seeds_decides() -> None:
    gains = np.array([0.05, 0.01, 0.06, -0.01])
    more = seeds_to_decide(gains, 0.02)
    assert more is not None
    n, squares = len(gains) + more, (len(gains) + more - 1) * np.var(gains, ddof=1)
    assert half_width(np.array(float(n)), squares) < gains.mean()
    assert half_width(np.array(float(n - 1)), squares * (n - 2) / (n - 1)) >= gains.mean()
