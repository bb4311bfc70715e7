"""The mathematics of the written answers. One attention head by hand: closed forms agree with real keys and with
simulations, and bounds hold. Order and sinusoids: what sees order, rotations and distances, nearest pairs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import ks_2samp

from hectogpt.model.parts import SinusoidalPositions
from tools.research import attention, positions

SMALL = settings(max_examples=15)


@SMALL
@given(st.integers(2, 500), st.floats(0, 60), st.integers(0, 5))
def test_copying_stays_within_its_bounds(n: int, gap: float, seed: int) -> None:
    c = attention.measure_copy(np.array([gap]), n, seed=seed)
    slack = 1 + 1e-12
    assert math.exp(-gap) / (1 + math.exp(-gap)) <= c.missing[0] * slack
    assert c.missing[0] <= c.tied[0] * slack <= c.bound[0] * slack**2
    assert c.error[0] <= c.error_bound[0] * slack


def test_a_key_in_the_hull_of_the_others_cannot_be_copied() -> None:
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((4, 3))
    keys[0] = keys[1:].mean(axis=0)
    weights = attention.attend(20 * rng.standard_normal((1000, 3)), keys, np.eye(4)).weights
    assert weights[:, 0].max() <= 0.5


@pytest.mark.parametrize(("gap", "weight_is_one", "differ"), [(23.0, False, 1000), (24.0, True, 999), (104.0, True, 0)])
def test_in_float32_a_weight_of_one_is_not_yet_a_copy(gap: float, weight_is_one: bool, differ: int) -> None:
    """The denominator rounds to one at a gap of 23.5; the other weights round to zero at 103.97 only."""
    rounded = attention.copy_in_float32(gap, 1000)
    assert (rounded.weight == 1) is weight_is_one
    assert rounded.differ == differ
    assert (rounded.largest == 0) is (differ == 0)
    scores = torch.full((1000,), -gap)
    scores[0] = 0
    alike = torch.softmax(scores, 0)  # what a model computes; tiny numbers may be flushed to zero
    assert alike[0] == 1 or not weight_is_one
    if gap < 80:
        assert alike[1].item() == pytest.approx(math.exp(-gap), rel=1e-4)


@SMALL
@given(st.integers(3, 60), st.floats(-3, 30), st.integers(0, 3))
def test_average_of_two_is_what_real_keys_give(n: int, beta: float, seed: int) -> None:
    keys = attention.orthonormal_vectors(n, n + 3, seed=seed)
    values = attention.orthonormal_vectors(n, n, seed=seed + 9)
    c = attention.attend(attention.query_for_average(keys, 0, n - 1, beta), keys, values)
    closed = attention.average_two(beta, n)
    assert c.weights[0] == pytest.approx(closed.weight, abs=1e-12)
    assert np.linalg.norm(c.output - (values[0] + values[-1]) / 2) == pytest.approx(closed.error, abs=1e-12)


@pytest.mark.parametrize("normalise", [False, True])
def test_projections_are_distributed_as_those_of_real_keys(normalise: bool) -> None:
    n, d, alpha, spread, samples = 5, 12, 0.05, 0.5, 20_000
    means = attention.orthonormal_vectors(n, d, centred=True)
    rng = np.random.default_rng(3)
    keys = means + math.sqrt(alpha) * rng.standard_normal((samples, *means.shape))
    keys[:, 0] += math.sqrt(spread) * rng.standard_normal((samples, 1)) * means[0]
    if normalise:
        layer_norm = torch.nn.LayerNorm(d, eps=0, elementwise_affine=False)
        keys = layer_norm(torch.from_numpy(keys)).numpy() / math.sqrt(d)
    literal = keys @ means[:2].T
    short = attention.sample_projections(samples, n, alpha, spread, d=d, normalise=normalise, seed=4)
    for i in range(n):
        for direction in ([1, 0], [0, 1], [1, 1], [1, -2]):
            assert ks_2samp(literal[:, i] @ direction, short[:, i] @ direction).pvalue > 1e-4


@pytest.mark.parametrize("beta", [1.0, 10.0, 40.0])
@pytest.mark.parametrize("n", [2, 200])
def test_closed_forms_lie_in_the_simulated_intervals(beta: float, n: int) -> None:
    seen = attention.sample_projections(20_000, n, 1e-10, 0.5, seed=n)
    one, (first, second) = attention.attend_one_head(seen, beta), attention.attend_two_heads(seen, beta)
    wide = 2.0  # two half-widths: many intervals are looked at
    for estimate, closed in (
        (attention.estimate_mean(one[:, 0]), attention.single_head_limit(beta, n=n).mean()),
        (attention.estimate_mean(first[:, 0]), attention.first_head_limit(beta, n).mean()),
        (attention.estimate_total_variance(one), attention.single_head_variance(beta, n)),
        (attention.estimate_total_variance(first), attention.first_head_limit(beta, n).variance() * n / (n - 1)),
        (attention.estimate_share(one[:, :2].max(axis=1) > 0.99), attention.takeover_probability(beta, n)),
        (attention.estimate_share(first[:, 0] < 0.5), attention.first_head_limit(beta, n).below(0.5)),
    ):
        assert abs(estimate.value - closed) <= wide * (estimate.high - estimate.low) / 2 + 1e-9
    assert attention.estimate_total_variance(second).value < 1e-6
    half = attention.estimate_total_variance((first + second) / 2).value
    assert half == pytest.approx(attention.estimate_total_variance(first).value / 4, rel=1e-2)


@pytest.mark.parametrize("rest", [0.5, 2.0])
def test_the_variance_with_a_normalised_key_is_that_of_samples(rest: float) -> None:
    eps = 1 + math.sqrt(0.5) * np.random.default_rng(0).standard_normal(100_000)
    w = expit(10 * (attention.normalise_component(eps, rest) - 1))
    estimate = attention.estimate_total_variance(np.column_stack([w, 1 - w]))
    assert estimate.low < attention.normalised_head_variance(10, rest) < estimate.high
    far = attention.normalised_head_variance(10, 1e6)
    assert far == pytest.approx(2 * attention.single_head_limit(10).variance(), rel=1e-6)


# --- order and sinusoids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("causal", "added"), [(False, False), (True, False), (False, True)])
def test_only_a_block_without_mask_and_positions_is_blind_to_order(causal: bool, added: bool) -> None:
    gap = positions.equivariance_gap(10, 8, causal=causal, positions=added, seed=5)
    assert (gap < 1e-12) is not (causal or added)


def test_the_real_decoder_is_equivariant_under_a_full_mask_and_reads_order_through_depth() -> None:
    for layers in (1, 2, 4):
        assert positions.decoder_equivariance_gap(layers, 9, causal=False, seed=layers) < 1e-12
        assert positions.decoder_equivariance_gap(layers, 9, causal=True, seed=layers) > 0.1
    assert positions.last_token_gap(1, 9, seed=1) < 1e-12
    assert positions.last_token_gap(2, 9, seed=1) > 1e-2
    assert positions.probe_positions(causal=True, seed=7).r2 > 0.05
    assert positions.probe_positions(causal=False, seed=7).r2 < 0.02


@SMALL
@given(st.integers(0, 300), st.integers(-300, 300), st.sampled_from([2, 4, 10, 64]))
def test_shift_is_one_rotation(t: int, s: int, d: int) -> None:
    R = positions.rotation(s, d)
    here, there = positions.sinusoids_at(np.array([t, t + s]), d)
    np.testing.assert_allclose(R @ here, there, atol=1e-11)
    np.testing.assert_allclose(R @ R.T, np.eye(d), atol=1e-12)
    assert here @ there == pytest.approx(positions.similarity(np.array([s]), d)[0], abs=1e-10)
    apart = float(np.linalg.norm(here - there))
    assert apart == pytest.approx(positions.embedding_distance(np.array([abs(s)]), d)[0], abs=1e-10)


def test_sinusoids_follow_the_definition_and_the_model_has_the_same() -> None:
    phi = positions.sinusoids(20, 6)
    assert phi[7, 2] == pytest.approx(math.sin(7 / 10000 ** (2 / 6)), abs=1e-15)
    assert phi[7, 3] == pytest.approx(math.cos(7 / 10000 ** (2 / 6)), abs=1e-15)
    table = SinusoidalPositions().build(20, 6)(torch.arange(20)[None])[0]
    np.testing.assert_allclose(table.numpy(), phi, atol=2**-24)


@pytest.mark.parametrize("d", [2, 4, 8, 32])
@pytest.mark.parametrize("T", [2, 45, 711, 1500])
def test_nearest_pair_is_what_brute_force_finds(T: int, d: int) -> None:
    rows = positions.sinusoids(T, d).astype(np.float32).astype(np.float64)
    best = min(float(np.square(rows[i + 1 :] - rows[i]).sum(axis=1).min()) for i in range(T - 1))
    pair = positions.find_nearest_pair(T, d)
    assert 0 <= pair.s < pair.t < T
    assert pair.distance == pytest.approx(math.sqrt(best), rel=1e-9)
    assert pair.distance == pytest.approx(float(np.linalg.norm(rows[pair.s] - rows[pair.t])), rel=1e-9)
    assert abs(pair.distance - pair.exact) <= 2 * math.sqrt(d) * 2.0**-25
