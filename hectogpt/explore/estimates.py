"""Simulated quantities with 95 % confidence intervals."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Array = np.ndarray


class Estimate(NamedTuple):
    """A simulated quantity and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def estimate_mean(values: Float[Array, " samples"]) -> Estimate:
    """The mean, with the normal interval."""
    half = 1.96 * values.std() / math.sqrt(len(values))
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def estimate_root(squares: Float[Array, " samples"]) -> Estimate:
    """The root of a mean of squares, with the interval of `estimate_mean` under the root: a standard deviation or an
    RMS error."""
    return Estimate(*(math.sqrt(max(0.0, end)) for end in estimate_mean(squares)))


def estimate_total_variance(coordinates: Float[Array, "samples n"]) -> Estimate:
    """The trace of the covariance, E|c - E c|^2, with the interval of a mean of squared distances."""
    return estimate_mean(np.square(coordinates - coordinates.mean(axis=0)).sum(axis=1))


def estimate_share(hits: Bool[Array, " samples"]) -> Estimate:
    """The fraction of true entries, with Wilson's interval, which stays inside [0, 1] even at 0 hits."""
    count, z = len(hits), 1.96
    p = float(hits.mean())
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return Estimate(p, centre - half, centre + half)
