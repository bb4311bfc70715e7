"""A test of paired gains that stays valid when you look after every seed and stop at any time.

The gains x_1, x_2, ... (old loss minus new, one for each seed) are independent draws from a normal
distribution with unknown mean and standard deviation. For a mean m0, after n draws with mean gain
d + m0 and sum of squares W around that mean, the e-value against m0 is

    E_n(m0) = (1 + n g)^(-1/2) * [(W + n d^2 / (1 + n g)) / (W + n d^2)]^(-n/2)

It is a ratio of two likelihoods of x / sigma, with sigma integrated over d sigma / sigma (the
right Haar prior). In the numerator the mean, in units of sigma, is drawn from N(0, g); in the
denominator it is 0. If m0 is the true mean, E_1(m0), E_2(m0), ... is a nonnegative martingale that
starts at 1, so the probability that it ever reaches 1 / ALPHA is at most ALPHA (Ville 1939). The
means with E_n(m0) < 1 / ALPHA form an interval. With a probability of at least 1 - ALPHA, all
these intervals contain the true mean. With r = (ALPHA^2 / (1 + n g))^(1/n), solving for d gives

    d^2 < W (1 - r) / (n (r - 1 / (1 + n g)))      or no bound while r <= 1 / (1 + n g)

Sources: Robbins 1970, "Statistical methods related to the law of the iterated logarithm"; Lai
1976, "On confidence sequences"; Wang and Ramdas, "Anytime-valid t-tests and confidence sequences
for Gaussian means with unknown variance" (arXiv:2310.03722); Perez-Ortiz, Lardy, de Heide and
Grunwald, "E-statistics, group invariance and anytime-valid testing" (arXiv:2208.07610).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hectogpt.lab.statistics import LEAST_DIFFERENCE, Paired

ALPHA = 0.05  # probability that any of the intervals, at any look, misses the true gain
# g: the expected variance of the gain, in units of the variance of the differences. With 9 (gains
# of about 3 SD, as rungs of the ladder have), three seeds are enough for a clear gain. A different
# g would be just as valid, but would need more seeds here.
EFFECT_VARIANCE = 9.0


class Looks(NamedTuple):
    """The result of each look, along the last axis: after one gain, after two, and so on.

    Attributes:
        gain: mean gain.
        low, high: bounds of the interval that is valid at every look; infinite at first.
        word: "better", "worse" or "tie"; "unproven" while nothing is decided.
    """

    gain: np.ndarray
    low: np.ndarray
    high: np.ndarray
    word: np.ndarray


def look(gains: Any, margin: float = LEAST_DIFFERENCE) -> Looks:
    """Test the gains so far after every new gain.

    Args:
        gains: [..., n], n at least 1, in the unit of the losses (nats per token).
        margin: least difference that counts, in the same unit.

    "better": the interval lies above 0 and the mean gain is at least the margin. "worse": the
    interval lies below 0 and the mean gain is at most minus the margin. "tie": the interval lies
    within the margin of 0. If a comparison stops at the first of these, the probability that its
    verdict is false (a gain or a tie that does not exist, or the wrong sign) is at most ALPHA.
    """
    gains = np.asarray(gains, dtype=np.float64)
    n = np.arange(1, gains.shape[-1] + 1, dtype=np.float64)
    first = gains[..., :1]
    shifted = gains - first  # equal gains have a sum of squares of exactly 0
    above = shifted.cumsum(-1) / n
    mean = first + above
    half = half_width(n, np.maximum((shifted * shifted).cumsum(-1) - n * above * above, 0.0))
    low = mean - half
    high = mean + half
    words = [
        (low >= -margin) & (high <= margin),
        (low > 0) & (mean >= margin),
        (high < 0) & (mean <= -margin),
    ]
    word = np.select(words, ["tie", "better", "worse"], default="unproven")
    return Looks(mean, low, high, word)


def half_width(n: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Half the width of the interval after n gains, from the sums of squares around their mean."""
    shrink = 1 / (1 + n * EFFECT_VARIANCE)
    r = (ALPHA**2 * shrink) ** (1 / n)
    bounded = r > shrink
    return np.where(
        bounded, np.sqrt(squares * (1 - r) / (n * np.where(bounded, r - shrink, 1.0))), np.inf
    )


def p_value(gains: Any) -> float:
    """Two-sided p value for a mean gain of 0, valid at every look: 1 / max E_n(0), at most 1."""
    gains = np.asarray(gains, dtype=np.float64)
    n = np.arange(1, len(gains) + 1, dtype=np.float64)
    shrink = 1 / (1 + n * EFFECT_VARIANCE)
    mean = gains.cumsum() / n
    shifted = gains - gains[0]
    squares = np.maximum((shifted * shifted).cumsum() - n * (mean - gains[0]) ** 2, 0.0)
    between = n * mean * mean
    total = np.where(squares + between > 0, squares + between, 1.0)
    ratio = np.where(squares + between > 0, (squares + between * shrink) / total, 1.0)
    logs = 0.5 * np.log(shrink) - 0.5 * n * np.log(ratio)
    return float(np.exp(-max(0.0, logs.max())))


def compare_sequentially(new: Mapping[int, float], old: Mapping[int, float]) -> Paired | None:
    """Compare losses seed by seed, in order, and stop at the first look that decides.

    If no look decides, returns the last one, with the verdict "unproven". If the two share no
    seed, returns None, as `statistics.compare_pairs` does.
    """
    gains = [old[seed] - new[seed] for seed in sorted(new.keys() & old.keys())]
    if not gains:
        return None
    deciding = np.flatnonzero(look(gains).word != "unproven")
    return pair_of(gains[: int(deciding[0]) + 1] if len(deciding) else gains)


def pair_of(gains: Sequence[float], margin: float = LEAST_DIFFERENCE) -> Paired:
    """The last look at these gains as a `Paired`.

    `low` and `high` are the interval that is valid at every look, None while it has no bounds. `p`
    is None.
    """
    gain, low, high, word = (of_all[-1] for of_all in look(gains, margin))
    n = len(gains)
    bounded = bool(np.isfinite(high))
    sd = float(np.std(gains, ddof=1)) if n > 1 else None
    return Paired(
        n=n,
        gain=float(gain),
        sd=sd,
        low=float(low) if bounded else None,
        high=float(high) if bounded else None,
        p=None,
        noise_floor=None if sd is None else 2 * sd / n**0.5,
        verdict=str(word),  # type: ignore[arg-type]
    )
