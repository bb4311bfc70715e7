"""The numbers that the written answers quote, by name.

A name is `question.quantity`. The answers carry it in a comment behind the number; tools/answers.py compares the two.
Losses of trained models are not here: tools/answers.py reads them from their records.
"""

import math

import numpy as np
import torch
from scipy.special import ndtr

from hectogpt.explore import attention, estimates, positions

N = 16  # keys in the noisy questions
SAMPLES = 100_000
VANISHING = 1e-6  # alpha where the question asks for alpha -> 0
BETAS = (5, 10, 20, 50, 100)


def numbers() -> dict[str, float]:
    """Compute all of them; some seconds on one core."""
    parts = (
        _compute_copies,
        _compute_average,
        _compute_small_noise,
        _compute_noisy_norm,
        _compute_layer_norm,
        _compute_permutation,
        _compute_sinusoids,
        _compute_nearest,
    )
    return {name: float(value) for part in parts for name, value in part().items()}


def _compute_copies() -> dict[str, float]:
    n, gaps = 1000, (5, 10, 15, 20)
    result = attention.measure_copy(np.array(gaps, dtype=np.float64), n)
    found: dict[str, float] = {}
    for i, gap in enumerate(gaps):
        found[f"copy.missing_{gap}"] = result.missing[i]
        found[f"copy.tied_{gap}"] = result.tied[i]
        found[f"copy.bound_{gap}"] = result.bound[i]
        found[f"copy.error_{gap}"] = result.error[i]
        found[f"copy.error_bound_{gap}"] = result.error_bound[i]
    found["copy.need_2"] = attention.gap_for_weight(0.99, 2)
    found["copy.need_1000"] = attention.gap_for_weight(0.99, n)
    found["copy.need_50000"] = attention.gap_for_weight(0.99, 50_000)
    found["copy.weight_one_in_float32"] = math.log(n - 1) + 24 * math.log(2)
    found["copy.underflow_in_float32"] = 150 * math.log(2)
    rounded = attention.copy_in_float32(24, n)
    found["copy.float32_weight"] = rounded.weight
    found["copy.float32_differ"], found["copy.float32_largest"] = rounded.differ, rounded.largest
    found["copy.float32_differ_late"] = attention.copy_in_float32(104, n).differ
    return found


def _compute_average() -> dict[str, float]:
    found: dict[str, float] = {}
    for beta in (5, 10, 15, 20):
        found[f"average.leak_{beta}"] = attention.average_two(beta, 1000).leak
        found[f"average.error_{beta}"] = attention.average_two(beta, 1000).error
    for n in (10, 100, 1000, 4096):
        found[f"average.beta_{n}"] = attention.beta_for_error(0.01, n)
    found["average.literal"] = check_average_formula(2048, 10.0)
    return found


def check_average_formula(n: int, beta: float) -> float:
    """|measured - closed form| of the error; measured with n orthonormal keys and values in n dimensions."""
    keys, values = attention.orthonormal_vectors(n, n, seed=1), attention.orthonormal_vectors(n, n, seed=2)
    output = attention.attend(attention.query_for_average(keys, 3, 8, beta), keys, values).output
    measured = float(np.linalg.norm(output - (values[3] + values[8]) / 2))
    return abs(measured - attention.average_two(beta, n).error)


def _name(name: str, estimate: estimates.Estimate) -> dict[str, float]:
    """An estimate as three numbers: NAME, NAME_low and NAME_high."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _compute_small_noise() -> dict[str, float]:
    found: dict[str, float] = {}
    target = np.zeros(N)
    target[:2] = 0.5
    for power in (2, 4, 6, 8):
        alpha = 10.0**-power
        beta = alpha**-0.25
        projections = attention.sample_projections(SAMPLES, N, alpha, 0, seed=power)
        weights = attention.attend_one_head(projections, beta)
        found[f"small.beta_{power}"] = beta
        found[f"small.sd_formula_{power}"] = beta * math.sqrt(alpha) / 2
        found |= _name(f"small.sd_{power}", estimates.estimate_root(np.square(weights[:, 0] - weights[:, 0].mean())))
        found |= _name(f"small.leak_{power}", estimates.estimate_mean(1 - weights[:, :2].sum(axis=1)))
        found |= _name(f"small.rms_{power}", estimates.estimate_root(np.square(weights - target).sum(axis=1)))
        for times in (1, 2, 4):
            both = sum(attention.attend_two_heads(projections, times * beta)) / 2
            estimate = estimates.estimate_root(np.square(both - target).sum(axis=1))
            found |= _name(f"small.two_{times}_{power}", estimate)
    return found


def _compute_noisy_norm() -> dict[str, float]:
    """One head and two heads on the same sampled keys; the length of k_a is uncertain."""
    projections = attention.sample_projections(SAMPLES, N, VANISHING, 0.5)
    found: dict[str, float] = {}
    positive, widest, off = projections[:, 0, 0] > 0, 0.0, 0.0
    for beta in BETAS:
        one = attention.attend_one_head(projections, beta)
        first, second = attention.attend_two_heads(projections, beta)
        both = (first + second) / 2
        limit, limit_1 = attention.single_head_limit(beta, n=N), attention.first_head_limit(beta, N)
        given_positive = estimates.estimate_total_variance(both[positive])
        widest = max(widest, given_positive.high - given_positive.value)
        for name, estimate in {
            "single.mean": estimates.estimate_mean(one[:, 0]),
            "single.variance": estimates.estimate_total_variance(one),
            "single.taken": estimates.estimate_share(one[:, :2].max(axis=1) > 0.99),
            "heads.variance1": estimates.estimate_total_variance(first),
            "heads.variance": estimates.estimate_total_variance(both),
            "heads.fails": estimates.estimate_share(first[:, 0] < 0.5),
            "heads.mean1": estimates.estimate_mean(first[:, 0]),
            "heads.variance_positive": given_positive,
        }.items():
            found |= _name(f"{name}_{beta}", estimate)
        found[f"single.mean_exact_{beta}"] = limit.mean()
        error = (found[f"single.mean_{beta}_high"] - found[f"single.mean_{beta}"]) / 1.96
        off = max(off, (limit.mean() - found[f"single.mean_{beta}"]) / error)
        found[f"single.limit_{beta}"] = 2 * attention.single_head_limit(beta).variance()
        found[f"single.exact_{beta}"] = attention.single_head_variance(beta, N)
        found[f"single.taken_exact_{beta}"] = attention.takeover_probability(beta, N)
        found[f"single.asymptote_{beta}"] = 0.5 - 2 / (beta * math.sqrt(math.pi))
        found[f"single.taken_limit_{beta}"] = 2 * ndtr(-math.sqrt(2) * math.log(99) / beta)
        found[f"heads.limit1_{beta}"] = limit_1.variance() * N / (N - 1)
        found[f"heads.limit_{beta}"] = found[f"heads.limit1_{beta}"] / 4
        found[f"heads.variance2_{beta}"] = estimates.estimate_total_variance(second).value
        found[f"heads.fails_limit_{beta}"] = limit_1.below(0.5)
        found[f"heads.mean1_exact_{beta}"] = limit_1.mean()
        found[f"heads.times_{beta}"] = found[f"single.variance_{beta}"] / found[f"heads.variance_{beta}"]
    found["heads.positive_half"], found["single.mean_off"] = widest, off
    negative = float(ndtr(-math.sqrt(2)))
    found["heads.negative"] = negative
    found["heads.variance1_end"] = negative * (1 - negative) * N / (N - 1)
    found["heads.variance_end"] = found["heads.variance1_end"] / 4
    found["heads.times_end"] = 0.5 / found["heads.variance_end"]
    return found | _compute_jumps(projections)


def _compute_jumps(projections: np.ndarray) -> dict[str, float]:
    """The largest weight of head 1 if k_a . q_1 < 0, on average over samples."""
    found: dict[str, float] = {}
    noisy = attention.sample_projections(SAMPLES, N, 1e-2, 0.5, seed=1)
    for name, keys in {"vanishing": projections, "noisy": noisy}.items():
        first, _ = attention.attend_two_heads(keys[keys[:, 0, 0] < 0], 50.0)
        found |= _name(f"heads.jump_largest_{name}", estimates.estimate_mean(first.max(axis=1)))
    found["heads.jump_even"] = 1 / (N - 1)
    found["heads.half_10"] = math.log(N - 1) / 10
    return found


def _compute_layer_norm() -> dict[str, float]:
    projections = attention.sample_projections(SAMPLES, N, VANISHING, 0.5, d=64, normalise=True)
    positive = projections[:, 0, 0] > 0
    found: dict[str, float] = {}
    widest = 0.0
    for beta in BETAS:
        one = attention.attend_one_head(projections, beta)
        first, second = attention.attend_two_heads(projections, beta)
        for name, sample in {"single": one, "single_positive": one[positive], "heads": (first + second) / 2}.items():
            estimate = estimates.estimate_total_variance(sample)
            found |= _name(f"norm.{name}_{beta}", estimate)
            widest = max(widest, estimate.high - estimate.value)
    found["norm.half"] = widest
    negative = float(ndtr(-math.sqrt(2)))
    raw = attention.attend_one_head(attention.sample_projections(SAMPLES, N, VANISHING, 0.5), 10)
    found["norm.times_10"] = estimates.estimate_total_variance(raw).value / found["norm.single_10"]
    found["norm.single_end"] = negative * (1 - negative) / 2
    for name, rest in {"half": 0.5, "one": 1.0, "two": 2.0, "four": 4.0}.items():
        found[f"norm.slope_{name}"] = rest**2 / (1 + rest**2)
        found[f"norm.variance_{name}"] = attention.normalised_head_variance(10, rest)
    return found


SENTENCES = ("the dog bit the man", "the man bit the dog")


def _compute_permutation() -> dict[str, float]:
    found = {
        "order.block": positions.equivariance_gap(12, 16),
        "order.block_causal": positions.equivariance_gap(12, 16, causal=True),
        "order.block_sinusoids": positions.equivariance_gap(12, 16, positions=True),
    }
    for layers in (1, 2, 3):
        found[f"order.decoder_{layers}"] = positions.decoder_equivariance_gap(layers, 12, causal=False)
        found[f"order.decoder_causal_{layers}"] = positions.decoder_equivariance_gap(layers, 12, causal=True)
        found[f"order.last_{layers}"] = positions.last_token_gap(layers, 12)
        found[f"order.probe_{layers}"] = positions.probe_positions(causal=True, layers=layers).r2
        found[f"order.probe_full_{layers}"] = positions.probe_positions(causal=False, layers=layers).r2
    for name, added in {"without": False, "with": True}.items():
        first, second = positions.average_outputs(SENTENCES, positions=added)
        found[f"order.sentences_{name}"] = np.abs(first - second).max()
    return found


def _compute_sinusoids() -> dict[str, float]:
    T, d = 1000, 64
    table = positions.sinusoids(T + 37, d)
    found = {"sin.rotation": np.abs(table[37:] - table[:T] @ positions.rotation(37, d).T).max()}
    apart = np.array([1, 10, 100, 1000])
    wide, limit = positions.similarity(apart, 512) / 256, positions.similarity_limit(apart.astype(np.float64))
    for i, s in enumerate(apart):
        found[f"sin.similarity_{s}"] = wide[i]
        found[f"sin.similarity_limit_{s}"] = limit[i]
        found[f"sin.log_law_{s}"] = 1 - (math.log(s) + np.euler_gamma) / math.log(positions.BASE)
    for s in (44, 710):
        found[f"sin.pair_{s}"] = positions.embedding_distance(np.array([s]), 2)[0]
        found[f"sin.pair_{s}_wide"] = positions.embedding_distance(np.array([s]), 64)[0]
    found["sin.float32_2048"] = positions.single_precision_error(2048, 64)
    found["sin.float32_million"] = positions.single_precision_error(10**6, 64)
    repeat = positions.find_first_repeat(20_000, 2, torch.bfloat16) or (math.nan, math.nan)
    found |= {"sin.bf16_earlier": repeat[0], "sin.bf16_later": repeat[1]}
    return found


def _compute_nearest() -> dict[str, float]:
    found: dict[str, float] = {}
    for d in (2, 4, 6, 8, 16, 64):
        pair = positions.find_nearest_pair(10**6, d)
        found[f"near.apart_{d}"] = float(pair.t - pair.s)
        found[f"near.distance_{d}"] = pair.distance
        found[f"near.exact_{d}"] = pair.exact
        found[f"near.ties_{d}"] = pair.ties
    return found
