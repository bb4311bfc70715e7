"""Means, spreads and paired differences over seeds: pure functions of lists of losses.

A difference counts only if it exceeds both the noise floor and 0.02 nats. The only seeds left out
are those of trials that crashed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LEAST_DIFFERENCE = 0.02  # nats per token; less is a tie whatever the test says
SIGNIFICANCE = 0.01  # one-sided
POWER = 0.8  # probability that `seeds_needed` seeds detect a true gain

VerdictWord = Literal["better", "unproven", "tie", "worse"]
OPENINGS = {
    "better": "{arm} is better than {first}",
    "worse": "{arm} is worse than {first}",
    "tie": "{arm} ties with {first}",
    "unproven": "{arm} against {first} is unproven",
}


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation of a sample of losses, nats per token.

    The standard deviation `sd` has n - 1 in its denominator; it is None for n = 1.
    """

    n: int
    mean: float
    sd: float | None

    def __str__(self) -> str:
        """Mean and SD, such as "2.4061 ± 0.0031"."""
        return f"{self.mean:.4f}" + (f" ± {self.sd:.4f}" if self.sd is not None else "")


@dataclass(frozen=True)
class Paired:
    """The paired difference of two arms over the seeds that both have, in nats per token.

    Attributes:
        n: number of pairs.
        gain: mean of old minus new; positive means that the new arm is better.
        sd: standard deviation of the differences.
        low, high: 95 % confidence interval of the gain (Student's t).
        p: one-sided p value, the probability of a gain at least this high if the arms did not
            differ. None in a sequential test.
        noise_floor: 2 sd / sqrt(n).
        verdict: "tie" within the noise floor or LEAST_DIFFERENCE, "better" or "worse" beyond both.
            "unproven": a gain beyond both with p >= SIGNIFICANCE, or any difference of a single
            pair.

    For n = 1, sd, low, high, p and noise_floor are None. A sequential test has an interval and a
    verdict of its own (sequential.py).
    """

    n: int
    gain: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    noise_floor: float | None
    verdict: VerdictWord

    @property
    def interval(self) -> tuple[float, float] | None:
        """`low` and `high`, or None if there is no interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def __str__(self) -> str:
        """Gain and interval, such as "+0.0055 [-0.0906, +0.1017]"."""
        return f"{self.gain:+.4f}" + (
            "" if self.low is None else f" [{self.low:+.4f}, {self.high:+.4f}]"
        )


def p_text(p: float) -> str:
    """p with one digit, or two where it is near 1: "0.003", "0.97", "> 0.99"."""
    return "> 0.99" if p > 0.99 else f"{p:.2g}" if p >= 0.1 else f"{p:.1g}"


def summarize(values: Sequence[float]) -> Summary:
    """The summary of one or more values."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(len(values), float(np.mean(values)), sd)


def compare_pairs(new: Mapping[int, float], old: Mapping[int, float]) -> Paired | None:
    """Compare losses over the seeds in both mappings. Returns None if they share no seed."""
    seeds = sorted(new.keys() & old.keys())
    if not seeds:
        return None
    a = np.array([new[s] for s in seeds])
    b = np.array([old[s] for s in seeds])
    n = len(seeds)
    gain = float((b - a).mean())
    if n == 1:
        return Paired(1, gain, None, None, None, None, None, "unproven")
    sd = float(np.std(b - a, ddof=1))
    floor = 2 * sd / math.sqrt(n)
    if sd <= 1e-12 * max(1.0, abs(gain)):
        # Every seed differs by the same amount: no t statistic, and no doubt.
        p = 0.5 if gain == 0 else float(gain < 0)
        low = high = gain
    else:
        from scipy import stats  # takes a second to load

        p = float(stats.ttest_rel(b, a, alternative="greater").pvalue)
        low, high = map(float, stats.ttest_rel(b, a).confidence_interval(0.95))
    if abs(gain) < max(LEAST_DIFFERENCE, floor):
        verdict: VerdictWord = "tie"
    elif gain < 0:
        verdict = "worse"
    else:
        verdict = "better" if p < SIGNIFICANCE else "unproven"
    return Paired(n, gain, sd, low, high, p, floor, verdict)


def seeds_needed(sd: float) -> int:
    """Number of paired seeds that detects a true gain of LEAST_DIFFERENCE with probability POWER.

    Args:
        sd: standard deviation of the paired differences.

    A gain is detected if p < SIGNIFICANCE. With a = SIGNIFICANCE and the quantiles z(q) of the
    normal distribution, n = ((z(1 - a) + z(POWER)) sd / gain)^2 + z(1 - a)^2 / 2, rounded up. The
    last term corrects for Student's t (Guenther 1981, "Sample size formulas for normal theory t
    tests", The American Statistician 35 (4)).
    """
    from scipy import stats

    alpha = stats.norm.ppf(1 - SIGNIFICANCE)
    beta = stats.norm.ppf(POWER)
    return max(2, math.ceil(((alpha + beta) * sd / LEAST_DIFFERENCE) ** 2 + alpha**2 / 2))
