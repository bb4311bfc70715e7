"""Statistics over seeds: paired tests against scipy and by hand, verdicts, spreads, selection bias."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hectogpt.lab.statistics import (
    LEAST_DIFFERENCE,
    compare_pairs,
    seeds_needed,
    selection_bias,
    summarize,
)

losses = st.floats(0, 12, allow_nan=False)


@given(st.lists(st.tuples(losses, losses), min_size=2, max_size=9))
@settings(deadline=None)
def test_paired_is_scipys_paired_test(pairs: list[tuple[float, float]]) -> None:
    new, old = ([pair[i] for pair in pairs] for i in (0, 1))
    gains = np.subtract(old, new)
    ours = compare_pairs(dict(enumerate(new)), dict(enumerate(old)))
    assert ours is not None
    assert ours.gain == pytest.approx(gains.mean(), abs=1e-12)
    if gains.std() < 1e-6:
        return
    assert ours.p == pytest.approx(stats.ttest_1samp(gains, 0, alternative="greater").pvalue)
    assert ours.low is not None
    assert ours.high is not None
    assert (ours.low + ours.high) / 2 == pytest.approx(ours.gain, abs=1e-9)
    if ours.verdict == "better":
        assert ours.gain >= LEAST_DIFFERENCE
        assert ours.p is not None
        assert ours.p < 0.01


def test_paired_by_hand() -> None:
    ours = compare_pairs({0: 3.0, 1: 3.1, 2: 3.2, 7: 9.9}, {0: 3.2, 1: 3.4, 2: 3.3, 8: 0.0})
    assert ours is not None
    # Gains 0.2, 0.3, 0.1: mean 0.2, SD 0.1, SE 0.1 / sqrt(3); t(2) at 97.5 % is 4.3027.
    assert (ours.n, ours.gain, ours.sd) == (3, pytest.approx(0.2), pytest.approx(0.1))
    assert ours.noise_floor == pytest.approx(0.2 / math.sqrt(3))
    assert ours.low == pytest.approx(0.2 - 4.30265 * 0.1 / math.sqrt(3), abs=1e-5)
    assert ours.high == pytest.approx(0.2 + 4.30265 * 0.1 / math.sqrt(3), abs=1e-5)
    # Student's t with 2 degrees of freedom: p = 1/2 - t / (2 sqrt(2 + t^2)), t = 2 sqrt(3).
    assert ours.p == pytest.approx(0.5 - 2 * math.sqrt(3) / (2 * math.sqrt(14)))
    assert ours.verdict == "unproven"


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
        ([3.5], "unproven"),
        ([2.99], "unproven"),
    ],
)
def test_verdicts(new: list[float], verdict: str) -> None:
    result = compare_pairs(dict(enumerate(new)), dict.fromkeys(range(5), 3.0))
    assert result is not None
    assert result.verdict == verdict


def test_small_samples() -> None:
    assert compare_pairs({0: 1.0}, {1: 1.0}) is None
    assert summarize([2.0]).sd is None
    summary = summarize([1.0, 2.0, 3.0])
    assert (summary.mean, summary.sd, summary.min, summary.max) == (2.0, 1.0, 1.0, 3.0)
    assert selection_bias(0.01, 300) == pytest.approx(0.034, abs=5e-4)
    assert selection_bias(0.01, 1) == 0


@pytest.mark.parametrize("sd", [0.003, 0.01, 0.02, 0.05, 0.1])
def test_seeds_needed_have_the_power_that_they_promise(sd: float) -> None:
    """Against the exact power of the paired t test, by the noncentral t distribution."""

    def power(n: int) -> float:
        return float(stats.nct.sf(stats.t.ppf(0.99, n - 1), n - 1, LEAST_DIFFERENCE * math.sqrt(n) / sd))

    n = seeds_needed(sd)
    assert power(n + 1) >= 0.8
    assert n <= 3 or power(n - 1) < 0.8
    assert seeds_needed(0.0) >= 2
