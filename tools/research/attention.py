"""What one attention head can compute: copies of one value, averages of two, and both with noisy keys.

Pure functions of sizes and seeds; nothing is trained. Noisy keys are sampled by their projections on the two
directions that a query can use, so no array has samples x n x d numbers.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit, logit, ndtr

Array = np.ndarray
Real = float | int


class Attended(NamedTuple):
    """The result of attention: `weights[..., n]`, which sum to one, and `output[..., e]`, the weighted mean."""

    weights: Array
    output: Array


def softmax(scores: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """exp(s_i) / sum_j exp(s_j) over the last axis. The maximum is subtracted first, so nothing overflows."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def attend(query: Float[Array, "*batch d"], keys: Float[Array, "n d"], values: Float[Array, "n e"]) -> Attended:
    """c = sum_i alpha_i v_i with alpha = softmax(k_i . q). As in the question, there is no factor 1/sqrt(d)."""
    weights = softmax(query @ keys.T)
    return Attended(weights, weights @ values)


def orthonormal_vectors(n: int, d: int, *, seed: int = 0, centred: bool = False) -> Float[Array, "{n} {d}"]:
    """n orthonormal vectors of d numbers: the first rows of a reflection I - 2 u u^T, so n = d = 4096 is cheap.

    centred: every vector sums to zero, like the output of a layer norm. This costs one dimension.
    """
    # Centred: the reflection that sends the last axis to (1, ..., 1) / sqrt(d), so other rows sum to 0.
    u = np.eye(d)[-1] - 1 / math.sqrt(d) if centred else np.random.default_rng(seed).standard_normal(d)
    u /= np.linalg.norm(u)
    return np.eye(n, d) - 2 * np.outer(u[:n], u)


# Simulated quantities with 95 % confidence intervals


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


# 1(a). Copying one value


class CopyResult(NamedTuple):
    """How well attention copies v_j: one number per gap. The bounds hold for every gap, not only for large ones."""

    missing: Array  # 1 - alpha_j
    error: Array  # |c - v_j|
    bound: Array  # (n - 1) exp(-gap)
    error_bound: Array  # (1 - alpha_j) max_i |v_i - v_j|
    tied: Array  # 1 - alpha_j if all n - 1 others tie, the worst case: (n - 1) / (n - 1 + exp(gap))


def measure_copy(gaps: Float[Array, " gaps"], n: int, *, e: int = 16, seed: int = 0) -> CopyResult:
    """Attention over n keys whose best score is larger than the second best by exactly `gap`.

    Scores are 0, -gap and -gap - x with x exponential of mean 1; values are random unit vectors of e numbers.
    """
    rng = np.random.default_rng(seed)
    below = np.concatenate([[0.0], rng.exponential(size=n - 2)])
    values = rng.standard_normal((n, e))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    others = np.exp(-gaps[:, None] - below)  # exp(s_i - s_j); computing 1 - alpha_j would lose digits
    total = others.sum(axis=1)
    difference = (others / (1 + total)[:, None]) @ (values[1:] - values[0])
    missing = total / (1 + total)
    widest = np.linalg.norm(values[1:] - values[0], axis=1).max()
    bound = (n - 1) * np.exp(-gaps)
    return CopyResult(missing, np.linalg.norm(difference, axis=1), bound, missing * widest, bound / (1 + bound))


def gap_for_weight(weight: Real, n: int) -> float:
    """The smallest gap that guarantees alpha_j >= weight, whatever the other scores: ln(n - 1) + ln(w / (1 - w))."""
    return math.log(n - 1) + float(logit(weight))


class Float32Copy(NamedTuple):
    """The effect of rounding to float32 on a copy."""

    weight: float  # alpha_j
    differ: int  # entries of c that are not those of v_j
    largest: float  # the largest difference of an entry


def copy_in_float32(gap: Real, n: int) -> Float32Copy:
    """Attention in float32 over n keys with orthonormal values; all scores but the best tie, `gap` below it.

    alpha_j rounds to 1 once (n - 1) exp(-gap) <= 2^-24. The other weights round to 0 only once exp(-gap) <= 2^-150,
    half of the smallest float32. exp and the sum are computed in float64 and rounded, so that the result depends on
    neither the order of the sum nor how a library treats tiny numbers.
    """
    powers = np.exp(-np.append(0.0, np.full(n - 1, float(gap)))).astype(np.float32)
    weights = powers / np.float32(powers.sum(dtype=np.float64))
    difference = np.abs(weights - np.eye(1, n, dtype=np.float32)[0])
    return Float32Copy(float(weights[0]), int((difference > 0).sum()), float(difference.max()))


# 1(b). The average of two values


class AverageOfTwo(NamedTuple):
    """`leak`: the weight on all other values; `weight`: on v_a and on v_b; `error`: |c - (v_a + v_b)/2|."""

    leak: float
    weight: float
    error: float


def query_for_average(keys: Float[Array, "n d"], a: int, b: int, beta: Real) -> Float[Array, " d"]:
    """The query q = beta (k_a + k_b)."""
    return beta * (keys[a] + keys[b])


def average_two(beta: Real, n: int) -> AverageOfTwo:
    """Attention with orthonormal keys and q = beta (k_a + k_b): the scores are beta, beta and n - 2 zeros.

    leak = (n - 2) / (n - 2 + 2 exp(beta)), and c - (v_a + v_b)/2 = leak (mean of the others - (v_a + v_b)/2).
    For orthonormal values its norm is leak sqrt(1/2 + 1/(n - 2)).
    """
    if n == 2:
        return AverageOfTwo(0.0, 0.5, 0.0)
    leak = float(expit(math.log((n - 2) / 2) - beta))
    return AverageOfTwo(leak, (1 - leak) / 2, leak * math.sqrt(0.5 + 1 / (n - 2)))


def beta_for_error(error: Real, n: int) -> float:
    """The beta at which |c - (v_a + v_b)/2| equals `error` for orthonormal keys and values.

    beta = ln((n - 2) (1 - leak) / (2 leak)) with leak = error / sqrt(1/2 + 1/(n - 2)).
    """
    leak = error / math.sqrt(0.5 + 1 / (n - 2))
    return math.log((n - 2) / 2) - float(logit(leak))


# 1(c) and 1(d). Noisy keys. Key 0 is a, key 1 is b.


def sample_projections(
    samples: int, n: int, alpha: Real, spread: Real, *, d: int = 0, normalise: bool = False, seed: int = 0
) -> Float[Array, "{samples} {n} 2"]:
    """Sampled k_i . mu_a and k_i . mu_b: distributed as those of whole keys, without the other d - 2 dimensions.

    Isotropic noise is independent along orthonormal directions. Each projection is therefore its mean plus
    sqrt(alpha) z; that of k_a on mu_a has sqrt(spread) z' more. Queries made of mu_a and mu_b see nothing else.
    normalise: keys are layer-normalised and scaled to length 1. Their means then sum to zero, and the length
    needs the projection on the key's own mean and a chi-square for the d - 1 - (2 or 3) remaining dimensions.
    """
    rng = np.random.default_rng(seed)
    projections = rng.standard_normal((samples, n, 2))
    projections *= math.sqrt(alpha)
    projections[:, 0, 0] += 1 + math.sqrt(spread) * rng.standard_normal(samples)
    projections[:, 1, 1] += 1
    if normalise:
        squares = np.square(projections).sum(axis=-1)
        own = 1 + math.sqrt(alpha) * rng.standard_normal((samples, n - 2))
        squares[:, 2:] += np.square(own)
        free = np.array([d - 3] * 2 + [d - 4] * (n - 2))
        squares += 2 * alpha * rng.standard_gamma(free / 2, size=(samples, n))
        projections /= np.sqrt(squares)[..., None]
    return projections


def attend_one_head(projections: Float[Array, "samples n 2"], beta: Real) -> Float[Array, "samples n"]:
    """Weights of one head with q = beta (mu_a + mu_b). If values are orthonormal, they are also c's coordinates."""
    return softmax(beta * projections.sum(axis=-1))


def attend_two_heads(
    projections: Float[Array, "samples n 2"], beta: Real
) -> tuple[Float[Array, "samples n"], Float[Array, "samples n"]]:
    """Weights of two heads, q_1 = beta mu_a and q_2 = beta mu_b. The weights of (c_1 + c_2)/2 are their mean."""
    return softmax(beta * projections[..., 0]), softmax(beta * projections[..., 1])


@dataclass(frozen=True)
class LogisticNormal:
    """The distribution of w = sigma(x), x ~ N(centre, scale^2): the weight of one of two keys with a normal score.

    The moments have no closed form and are integrated by the trapezoid rule, which converges geometrically here.
    """

    centre: float
    scale: float

    def moment(self, power: int) -> float:
        """E w^power. The step resolves the logistic's poles at distance pi / scale; the error is below 1e-16."""
        step = 0.4 / max(1.0, self.scale)
        z = np.arange(-9.0, 9.0 + step, step)
        mass = np.exp(-z * z / 2)
        return float(np.sum(expit(self.centre + self.scale * z) ** power * mass) / mass.sum())

    def mean(self) -> float:
        return self.moment(1)

    def variance(self) -> float:
        return self.moment(2) - self.moment(1) ** 2

    def above(self, w: float) -> float:
        """P(weight > w)."""
        return float(ndtr((self.centre - logit(w)) / self.scale))

    def below(self, w: float) -> float:
        """P(weight < w)."""
        return float(ndtr((logit(w) - self.centre) / self.scale))


def single_head_limit(beta: Real, *, n: int = 2, spread: Real = 0.5) -> LogisticNormal:
    """The distribution of alpha_a for one head as alpha -> 0: k_a . q = beta eps, eps ~ N(1, spread), k_b . q = beta,
    all others 0.

    alpha_a = exp(beta eps) / (exp(beta eps) + exp(beta) + n - 2) = sigma(beta eps - ln(exp(beta) + n - 2)).
    With n = 2, or a large beta, this is sigma(beta (eps - 1)), whose mean is one half.
    """
    rest = math.log1p((n - 2) * math.exp(-beta)) if beta > -700 else math.inf
    return LogisticNormal(-rest, abs(beta) * math.sqrt(spread))


def single_head_variance(beta: Real, n: int, *, spread: Real = 0.5) -> float:
    """E|c - E c|^2 of one head as alpha -> 0, values orthonormal; 2 Var(alpha_a) when n = 2.

    The other keys share 1 - alpha_a in a fixed proportion, exp(beta) to 1 each, so Var(alpha_a) gives all variances.
    """
    others = np.array([1.0] + [math.exp(-beta)] * (n - 2))
    proportion = float(np.square(others / others.sum()).sum())
    return single_head_limit(beta, n=n, spread=spread).variance() * (1 + proportion)


def takeover_probability(beta: Real, n: int, *, weight: float = 0.99, spread: Real = 0.5) -> float:
    """P(alpha_a or alpha_b > weight) of one head as alpha -> 0; 2 Phi(-logit(weight) / (beta sqrt(spread))) if n = 2.

    alpha_b = (1 - alpha_a) / (1 + (n - 2) exp(-beta)), which for small beta never exceeds `weight`.
    """
    limit = single_head_limit(beta, n=n, spread=spread)
    low = 1 - weight * (1 + (n - 2) * math.exp(-beta))  # alpha_b > weight where alpha_a < low
    return limit.above(weight) + (limit.below(low) if low > 0 else 0.0)


def first_head_limit(beta: Real, n: int, *, spread: Real = 0.5) -> LogisticNormal:
    """The distribution of alpha_a for the head q_1 = beta mu_a as alpha -> 0: sigma(beta eps - ln(n - 1)),
    eps ~ N(1, spread)."""
    return LogisticNormal(beta - math.log(n - 1), abs(beta) * math.sqrt(spread))


def normalise_component(eps: Float[Array, " points"], rest: Real) -> Float[Array, " points"]:
    """A key's component eps along mu_a after normalisation, if the rest of the key has length `rest`.

    eps sqrt(1 + rest^2) / sqrt(eps^2 + rest^2), scaled so that eps = 1 stays 1. The slope there is
    rest^2 / (1 + rest^2), the factor by which normalisation shrinks small changes of the component.
    """
    return eps * np.sqrt(1 + rest * rest) / np.sqrt(eps * eps + rest * rest)


def normalised_head_variance(beta: Real, rest: Real, *, spread: Real = 0.5) -> float:
    """E|c - E c|^2 of one head as alpha -> 0, n = 2, k_a normalised with a rest of length `rest`: 2 Var(w) with
    w = sigma(beta (f(eps) - 1)), f = normalise_component, eps ~ N(1, spread). An integral by the trapezoid rule."""
    z = np.linspace(-9.0, 9.0, 40_001)
    mass = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()
    w = expit(beta * (normalise_component(1 + math.sqrt(spread) * z, rest) - 1))
    return 2 * float((w * w * mass).sum() - (w * mass).sum() ** 2)
