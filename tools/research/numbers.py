"""The numbers that the written answers quote, by name; `python -m tools.research.numbers` prints them.

A name is `question.quantity`. The answers have it in a comment after the number; answers.py compares the two.
Losses of trained models are not here: answers.py reads them from their records.
"""

import math

import numpy as np
import torch
from scipy.special import ndtr

from tools.research import attention, positions

N = 16  # keys in the noisy questions
SAMPLES = 100_000
VANISHING = 1e-6  # alpha where the question asks for alpha -> 0
BETAS = (5, 10, 20, 50, 100)
NEGATIVE = float(ndtr(-math.sqrt(2)))  # probability that a key's length is negative
SENTENCES = ("the dog bit the man", "the man bit the dog")


def numbers() -> dict[str, float]:
    """Compute all of them, which takes a few seconds on one core."""
    parts = (_copies, _average, _small_noise, _noisy_norm, _jumps, _layer_norm, _permutation, _sinusoids, _nearest)
    return {name: float(value) for part in parts for name, value in part().items()}


def _with_interval(name: str, estimate: attention.Estimate) -> dict[str, float]:
    """An estimate as three numbers: NAME, NAME_low and NAME_high."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _copies() -> dict[str, float]:
    n, gaps = 1000, (5, 10, 15, 20)
    result = attention.measure_copy(np.array(gaps, dtype=np.float64), n)
    rounded = attention.copy_in_float32(24, n)
    return {
        **{f"copy.{kind}_{gap}": row[i] for kind, row in result._asdict().items() for i, gap in enumerate(gaps)},
        **{f"copy.need_{m}": attention.gap_for_weight(0.99, m) for m in (2, 1000, 50_000)},
        "copy.weight_one_in_float32": math.log(n - 1) + 24 * math.log(2),
        "copy.underflow_in_float32": 150 * math.log(2),
        "copy.float32_weight": rounded.weight,
        "copy.float32_differ": float(rounded.differ),
        "copy.float32_largest": rounded.largest,
        "copy.float32_differ_late": float(attention.copy_in_float32(104, n).differ),
    }


def _average() -> dict[str, float]:
    betas = (5, 10, 15, 20)
    return {
        **{f"average.leak_{beta}": attention.average_two(beta, 1000).leak for beta in betas},
        **{f"average.error_{beta}": attention.average_two(beta, 1000).error for beta in betas},
        **{f"average.beta_{n}": attention.beta_for_error(0.01, n) for n in (10, 100, 1000, 4096)},
        "average.literal": check_average_formula(2048, 10.0),
    }


def check_average_formula(n: int, beta: float) -> float:
    """|measured - closed form| of the error; measured with n orthonormal keys and values in n dimensions."""
    keys, values = attention.orthonormal_vectors(n, n, seed=1), attention.orthonormal_vectors(n, n, seed=2)
    output = attention.attend(attention.query_for_average(keys, 3, 8, beta), keys, values).output
    measured = float(np.linalg.norm(output - (values[3] + values[8]) / 2))
    return abs(measured - attention.average_two(beta, n).error)


def _small_noise() -> dict[str, float]:
    named: dict[str, float] = {}
    target = np.zeros(N)
    target[:2] = 0.5
    for power in (2, 4, 6, 8):
        alpha = 10.0**-power
        beta = alpha**-0.25
        projections = attention.sample_projections(SAMPLES, N, alpha, 0, seed=power)
        weights = attention.attend_one_head(projections, beta)
        estimates = {
            "sd": attention.estimate_root(np.square(weights[:, 0] - weights[:, 0].mean())),
            "leak": attention.estimate_mean(1 - weights[:, :2].sum(axis=1)),
            "rms": attention.estimate_root(np.square(weights - target).sum(axis=1)),
        }
        for times in (1, 2, 4):
            both = sum(attention.attend_two_heads(projections, times * beta)) / 2
            estimates[f"two_{times}"] = attention.estimate_root(np.square(both - target).sum(axis=1))
        named |= {f"small.beta_{power}": beta, f"small.sd_formula_{power}": beta * math.sqrt(alpha) / 2}
        for name, estimate in estimates.items():
            named |= _with_interval(f"small.{name}_{power}", estimate)
    return named


def _noisy_norm() -> dict[str, float]:
    """One head and two heads on the same sampled keys; the length of k_a is uncertain."""
    projections = attention.sample_projections(SAMPLES, N, VANISHING, 0.5)
    named: dict[str, float] = {}
    positive, widest, off = projections[:, 0, 0] > 0, 0.0, 0.0
    for beta in BETAS:
        one = attention.attend_one_head(projections, beta)
        first, second = attention.attend_two_heads(projections, beta)
        both = (first + second) / 2
        limit, limit_1 = attention.single_head_limit(beta, n=N), attention.first_head_limit(beta, N)
        mean, given_positive = attention.estimate_mean(one[:, 0]), attention.estimate_total_variance(both[positive])
        widest = max(widest, given_positive.high - given_positive.value)
        off = max(off, (limit.mean() - mean.value) / ((mean.high - mean.value) / 1.96))
        variance, of_two = attention.estimate_total_variance(one), attention.estimate_total_variance(both)
        for name, estimate in {
            "single.mean": mean,
            "single.variance": variance,
            "single.taken": attention.estimate_share(one[:, :2].max(axis=1) > 0.99),
            "heads.variance1": attention.estimate_total_variance(first),
            "heads.variance": of_two,
            "heads.fails": attention.estimate_share(first[:, 0] < 0.5),
            "heads.mean1": attention.estimate_mean(first[:, 0]),
            "heads.variance_positive": given_positive,
        }.items():
            named |= _with_interval(f"{name}_{beta}", estimate)
        variance_1 = limit_1.variance() * N / (N - 1)
        for name, value in {
            "single.mean_exact": limit.mean(),
            "single.limit": 2 * attention.single_head_limit(beta).variance(),
            "single.exact": attention.single_head_variance(beta, N),
            "single.taken_exact": attention.takeover_probability(beta, N),
            "single.asymptote": 0.5 - 2 / (beta * math.sqrt(math.pi)),
            "single.taken_limit": 2 * ndtr(-math.sqrt(2) * math.log(99) / beta),
            "heads.limit1": variance_1,
            "heads.limit": variance_1 / 4,
            "heads.variance2": attention.estimate_total_variance(second).value,
            "heads.fails_limit": limit_1.below(0.5),
            "heads.mean1_exact": limit_1.mean(),
            "heads.times": variance.value / of_two.value,
        }.items():
            named[f"{name}_{beta}"] = value
    end = NEGATIVE * (1 - NEGATIVE) * N / (N - 1)
    named |= {"heads.positive_half": widest, "single.mean_off": off, "heads.negative": NEGATIVE}
    return named | {"heads.variance1_end": end, "heads.variance_end": end / 4, "heads.times_end": 0.5 / (end / 4)}


def _jumps() -> dict[str, float]:
    """The largest weight of head 1 if k_a . q_1 < 0, on average over samples."""
    named = {"heads.jump_even": 1 / (N - 1), "heads.half_10": math.log(N - 1) / 10}
    for name, alpha, seed in (("vanishing", VANISHING, 0), ("noisy", 1e-2, 1)):
        keys = attention.sample_projections(SAMPLES, N, alpha, 0.5, seed=seed)
        first, _ = attention.attend_two_heads(keys[keys[:, 0, 0] < 0], 50.0)
        named |= _with_interval(f"heads.jump_largest_{name}", attention.estimate_mean(first.max(axis=1)))
    return named


def _layer_norm() -> dict[str, float]:
    projections = attention.sample_projections(SAMPLES, N, VANISHING, 0.5, d=64, normalise=True)
    positive = projections[:, 0, 0] > 0
    named, widest = {"norm.single_end": NEGATIVE * (1 - NEGATIVE) / 2}, 0.0
    for beta in BETAS:
        one = attention.attend_one_head(projections, beta)
        first, second = attention.attend_two_heads(projections, beta)
        for name, sample in {"single": one, "single_positive": one[positive], "heads": (first + second) / 2}.items():
            estimate = attention.estimate_total_variance(sample)
            named[f"norm.{name}_{beta}"] = estimate.value
            widest = max(widest, estimate.high - estimate.value)
    raw = attention.attend_one_head(attention.sample_projections(SAMPLES, N, VANISHING, 0.5), 10)
    named["norm.times_10"] = attention.estimate_total_variance(raw).value / named["norm.single_10"]
    for name, rest in {"half": 0.5, "one": 1.0, "two": 2.0, "four": 4.0}.items():
        named[f"norm.slope_{name}"] = rest**2 / (1 + rest**2)
        named[f"norm.variance_{name}"] = attention.normalised_head_variance(10, rest)
    return named | {"norm.half": widest}


def _permutation() -> dict[str, float]:
    named = {
        "order.block": positions.equivariance_gap(12, 16),
        "order.block_causal": positions.equivariance_gap(12, 16, causal=True),
        "order.block_sinusoids": positions.equivariance_gap(12, 16, positions=True),
    }
    for layers in (1, 2, 3):
        named[f"order.decoder_{layers}"] = positions.decoder_equivariance_gap(layers, 12, causal=False)
        named[f"order.decoder_causal_{layers}"] = positions.decoder_equivariance_gap(layers, 12, causal=True)
        named[f"order.last_{layers}"] = positions.last_token_gap(layers, 12)
        named[f"order.probe_{layers}"] = positions.probe_positions(causal=True, layers=layers).r2
        named[f"order.probe_full_{layers}"] = positions.probe_positions(causal=False, layers=layers).r2
    for name, added in {"without": False, "with": True}.items():
        first, second = positions.average_outputs(SENTENCES, positions=added)
        named[f"order.sentences_{name}"] = np.abs(first - second).max()
    return named


def _sinusoids() -> dict[str, float]:
    T, d = 1000, 64
    table = positions.sinusoids(T + 37, d)
    named = {"sin.rotation": np.abs(table[37:] - table[:T] @ positions.rotation(37, d).T).max()}
    apart = np.array([1, 10, 100, 1000])
    wide, limit = positions.similarity(apart, 512) / 256, positions.similarity_limit(apart.astype(np.float64))
    for i, s in enumerate(apart):
        named |= {f"sin.similarity_{s}": wide[i], f"sin.similarity_limit_{s}": limit[i]}
        named[f"sin.log_law_{s}"] = 1 - (math.log(s) + np.euler_gamma) / math.log(positions.BASE)
    for s in (44, 710):
        named[f"sin.pair_{s}"] = positions.embedding_distance(np.array([s]), 2)[0]
        named[f"sin.pair_{s}_wide"] = positions.embedding_distance(np.array([s]), 64)[0]
    named["sin.float32_2048"] = positions.single_precision_error(2048, 64)
    named["sin.float32_million"] = positions.single_precision_error(10**6, 64)
    earlier, later = positions.find_first_repeat(20_000, 2, torch.bfloat16) or (math.nan, math.nan)
    return named | {"sin.bf16_earlier": float(earlier), "sin.bf16_later": float(later)}


def _nearest() -> dict[str, float]:
    named: dict[str, float] = {}
    for d in (2, 4, 6, 8, 16, 64):
        pair = positions.find_nearest_pair(10**6, d)
        named |= {f"near.apart_{d}": float(pair.t - pair.s), f"near.distance_{d}": pair.distance}
        named |= {f"near.exact_{d}": pair.exact, f"near.ties_{d}": float(pair.ties)}
    return named


if __name__ == "__main__":
    for name, value in numbers().items():
        print(f"{name:<32}{value:.6g}")
