"""Texts continued: a row knows nothing of its neighbours, a seed is a text, texts end where they should, characters
come whole, bad input is refused by name; draws follow the softmax, filters keep what they say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

import pytest
import torch
from model_kinds import GPT2, KINDS, L, build
from scipy import stats

from hectogpt.cli.options import GenerateOptions
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, Token, generate
from hectogpt.generation.decode import choose, probabilities


def rows_of(tokens: Iterable[Token], rows: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(rows)]
    for token in tokens:
        found[token.row].append(token.id)
    return found


# --- rows and seeds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["everything", "everything else"])
def test_a_row_alone_is_the_row_in_a_batch_and_a_seed_is_a_text(kind: str) -> None:
    model = build(KINDS[kind])
    sampling = Sampling(max_new_tokens=8, do_sample=True, temperature=1.5)
    for prompt in ([1, 2, 3], [5] * 12):
        alone = [rows_of(generate(model, prompt, sampling, seed=s), 1)[0] for s in range(4)]
        assert rows_of(generate(model, prompt, replace(sampling, num_return_sequences=4)), 4) == alone
        assert alone[0] != alone[1]


def test_log_probabilities_are_the_model_s_own() -> None:
    model = build(GPT2)
    text = [1, 2]
    for token in generate(model, text, Sampling(max_new_tokens=12, do_sample=True, temperature=3.0, top_k=7)):
        logits = model(torch.tensor([text[-L:]]))[0, -1]
        assert token.logprob == pytest.approx(logits.log_softmax(-1)[token.id].item(), abs=1e-9)
        text.append(token.id)


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_text_ends_with_its_stop_token_and_the_others_go_on() -> None:
    model = build(GPT2)
    two = Sampling(max_new_tokens=15, do_sample=True, num_return_sequences=2)
    full = rows_of(generate(model, [1], two), 2)
    stop = full[0][4]
    ended = rows_of(generate(model, [1], replace(two, eos_token_id=(stop,))), 2)
    for before, after in zip(full, ended, strict=True):
        assert after == (before[: before.index(stop) + 1] if stop in before else before)


def test_generation_stops_at_a_stop_string() -> None:
    model = build(replace(GPT2, vocab_size=26))

    def spell(ids: Iterable[int]) -> bytes:
        return bytes(97 + i for i in ids)

    full = spell(rows_of(generate(model, [1], Sampling(max_new_tokens=20)), 1)[0])
    stop = full[5:8].decode()
    sampling = Sampling(max_new_tokens=20, stop_strings=("???", stop))
    text = spell(rows_of(generate(model, [1], sampling, decode_bytes=spell), 1)[0])
    assert text == full[: full.index(stop.encode()) + 3]
    with pytest.raises(UserError, match="tokenizer"):
        generate(model, [1], sampling)


# --- edges and errors -------------------------------------------------------------------------------------------------


def test_an_empty_prompt_starts_from_end_of_text() -> None:
    model = build(GPT2)
    numbers = Sampling(max_new_tokens=8)
    assert rows_of(generate(model, [], numbers), 1) == rows_of(generate(model, [39], numbers), 1)


# --- how the next token is chosen -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(do_sample=True, top_k=0),
        Sampling(do_sample=True, temperature=0.5),
        Sampling(do_sample=True, top_k=4, top_p=0.8),
        Sampling(do_sample=True, min_p=0.2, temperature=2.0),
    ],
)
def test_frequencies_follow_the_probabilities(sampling: Sampling) -> None:
    n = 4000
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0]).expand(n, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
    drawn = choose(logits, sampling, generators)
    p = probabilities(logits[:1], sampling)[0]
    counts = torch.bincount(drawn, minlength=7)
    assert (counts[p == 0] == 0).all()
    alive = p > 0
    assert stats.chisquare(counts[alive].numpy(), n * p[alive].numpy() / p[alive].sum().item()).pvalue > 1e-4


def test_filters_agree_with_transformers() -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).double() * 3
    ids = torch.tensor([[1, 2, 2], [4, 5, 6], [7, 7, 7]])
    z = logits / 0.8
    for warp in (TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)):
        z = warp(ids, z)  # type: ignore[arg-type]
    sampling = Sampling(do_sample=True, temperature=0.8, top_k=20, top_p=0.9, min_p=0.05)
    ours = probabilities(logits, sampling)
    torch.testing.assert_close(ours / ours.sum(-1, keepdim=True), z.softmax(-1))


@pytest.mark.parametrize("kind", ["gpt2", "everything", "everything else"])
def test_temperature_zero_is_greedy(kind: str) -> None:
    """And writes, with a cache and past the context, what `Transformer.generate` writes."""
    model = build(KINDS[kind])
    expected = model.generate(torch.tensor([[3, 1]]), 12)[0, 2:].tolist()
    zero = Sampling(max_new_tokens=12, do_sample=True, temperature=0.0)
    for sampling in (Sampling(max_new_tokens=12), zero, replace(zero, temperature=1e-12), replace(zero, top_k=1)):
        assert [token.id for token in generate(model, [3, 1], sampling)] == expected


# --- options ----------------------------------------------------------------------------------------------------------


def test_command_line_and_library_share_names() -> None:
    command = {f.name for f in fields(GenerateOptions)}
    assert {f.name for f in fields(Sampling)} - command == {"do_sample"}  # which is --greedy, turned round
