"""Order and sinusoids: what sees order, rotations and distances, and nearest pairs found without trying all."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt.model.parts import SinusoidalPositions
from tools import positions

SMALL = settings(max_examples=30, deadline=None)


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


def test_similarity_tends_to_its_integral() -> None:
    apart = np.array([1, 7, 100, 2000])
    wide = positions.similarity(apart, 1 << 16) / (1 << 15)
    np.testing.assert_allclose(wide, positions.similarity_limit(apart.astype(np.float64)), atol=1e-4)


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


def test_coarse_positions_collide_where_the_text_says() -> None:
    assert torch.tensor(257.0).bfloat16() == torch.tensor(256.0).bfloat16()
    assert len(torch.arange(257).bfloat16().unique()) == 257
    assert np.float32(2**24 + 1) == np.float32(2**24)
    assert positions.find_first_repeat(20_000, 4, torch.bfloat16) is None
    pair = positions.find_nearest_pair(50_000, 32)
    assert pair.t - pair.s == 1
