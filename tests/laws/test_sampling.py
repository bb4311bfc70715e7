"""How the next token is chosen: draws follow the softmax, filters keep what they say, options fit or are refused."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_kinds import GPT2, build
from scipy import stats

from hectogpt.cli.options import GenerateOptions
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, generate
from hectogpt.generation.sampling import choose, penalise, probabilities

# --- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(do_sample=True, top_k=0),
        Sampling(do_sample=True, temperature=0.5),
        Sampling(do_sample=True, top_k=4, top_p=0.8),
        Sampling(do_sample=True, min_p=0.2, temperature=2.0),
    ],
)
def test_frequencies_follow_the_probabilities(sampling) -> None:
    n = 4000
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0]).expand(n, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
    drawn = choose(logits, sampling, generators)
    p = probabilities(logits[:1], sampling)[0]
    counts = torch.bincount(drawn, minlength=7)
    assert (counts[p == 0] == 0).all()
    alive = p > 0
    assert stats.chisquare(counts[alive].numpy(), n * p[alive].numpy() / p[alive].sum().item()).pvalue > 1e-4


levels = st.lists(st.integers(-4, 4), min_size=2, max_size=12)  # few values, so that ties are common


@given(levels=levels, p=st.floats(0, 1))
def test_top_p_keeps_the_smallest_sufficient_set_and_its_ties(levels, p) -> None:
    logits = torch.tensor([levels]).double()
    full = logits.softmax(-1)[0].tolist()
    kept = (probabilities(logits, Sampling(do_sample=True, top_k=0, top_p=p))[0] > 0).tolist()
    mass = math.fsum(q for q, k in zip(full, kept, strict=True) if k)
    assert any(kept)
    assert mass >= p - 1e-12
    least = min(q for q, k in zip(full, kept, strict=True) if k)
    assert all(k or q < least for q, k in zip(full, kept, strict=True))
    above = math.fsum(q for q in full if q > least)
    assert above < p + 1e-12 or above == 0


def test_filters_agree_with_transformers() -> None:
    from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).double() * 3
    ids = torch.tensor([[1, 2, 2], [4, 5, 6], [7, 7, 7]])
    z = RepetitionPenaltyLogitsProcessor(1.7)(ids, logits) / 0.8
    for warp in (TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)):
        z = warp(ids, z)
    sampling = Sampling(do_sample=True, temperature=0.8, top_k=20, top_p=0.9, min_p=0.05)
    ours = probabilities(
        penalise(logits, 1.7, torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)), sampling
    )
    torch.testing.assert_close(ours / ours.sum(-1, keepdim=True), z.softmax(-1))


def test_temperature_zero_is_greedy() -> None:
    model = build(GPT2)
    expected = model.generate(torch.tensor([[3, 1]]), 12)[0, 2:].tolist()
    zero = Sampling(max_new_tokens=12, do_sample=True, temperature=0.0)
    for sampling in (Sampling(max_new_tokens=12), zero, replace(zero, temperature=1e-12), replace(zero, top_k=1)):
        assert [token.id for token in generate(model, [[3, 1]], sampling)] == expected


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("temperature", math.nan, False),
        ("top_p", 1.1, False),
        ("top_p", 0.0, True),
        ("min_p", math.nan, False),
        ("repetition_penalty", math.nan, False),
        ("num_return_sequences", 0, False),
        ("stop_strings", ("",), False),
    ],
)
def test_numbers_of_sampling_work_or_are_refused_by_name(name, value, fits) -> None:
    if not fits:
        with pytest.raises(UserError, match=name):
            Sampling(do_sample=True, **{name: value})
        return
    sampling = replace(Sampling(do_sample=True, max_new_tokens=3), **{name: value})
    assert len(list(generate(build(GPT2), [[1]], sampling))) == 3


def test_command_line_and_library_share_names() -> None:
    command = {f.name for f in fields(GenerateOptions)}
    assert {f.name for f in fields(Sampling)} - command == {"do_sample"}  # which is --greedy, turned round
