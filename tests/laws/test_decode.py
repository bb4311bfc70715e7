"""Decoding with a cache computes what the model computes without one, whatever the texts' lengths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from model_kinds import GPT2, KINDS, L, build, random_ids
from torch import Tensor

from hectogpt.generation.decode import Decoder
from hectogpt.model import Transformer


def uncached(model: Transformer, text: list[int]) -> Tensor:
    """Next-token logits of one text, computed from its last L tokens without any cache."""
    with torch.no_grad():
        return model(torch.tensor([text[-model.config.context_length :]]))[0, -1]


@given(
    kind=st.sampled_from(sorted(KINDS)),
    lengths=st.lists(st.integers(1, 2 * L), min_size=1, max_size=4),
    new=st.integers(1, 14),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@example(kind="looks back", lengths=[3, 9, 1, 10], new=14, seed=1, dtype=torch.float64)
@example(kind="gpt2", lengths=[L - 1, L, L + 1, 10 * L], new=3, seed=2, dtype=torch.float64)
@example(kind="alibi", lengths=[L - 1, L, L + 1, 1], new=14, seed=2, dtype=torch.float64)
@example(kind="alibi among others", lengths=[3, 9, 1, 10], new=14, seed=1, dtype=torch.float64)
@example(kind="alibi among others", lengths=[7, 7], new=5, seed=1, dtype=torch.float64)
@example(kind="everything else", lengths=[3, 9, 1, 10], new=14, seed=1, dtype=torch.float64)
@settings(max_examples=25)
def test_cached_ragged_rows_equal_each_row_uncached(kind, lengths, new, seed, dtype) -> None:
    """The cache changes nothing.

    1. Several texts of unequal lengths are decoded together; shorter ones are padded on the left.
    2. After the prompts, and after every further token, each row's logits equal those of its own text alone, computed
       from scratch.
    3. This holds past the context length L, where each token is conditioned on exactly the last L tokens.
    """
    model = build(KINDS[kind], seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(model.config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
    decoder = Decoder(model, texts, new)
    logits = decoder.prefill()
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    for _ in range(new):
        alone = torch.stack([uncached(model, text) for text in texts])
        torch.testing.assert_close(logits, alone, rtol=tolerance, atol=tolerance)
        tokens = logits.argmax(dim=-1).tolist()
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        logits = decoder.decode(tokens)


def test_long_texts_pass_the_steps_in_which_slots_are_shown() -> None:
    """Attention sees slots in steps of 64, and buffers grow in steps of 256: nothing changes there."""
    model = build(replace(KINDS["everything else"], context_length=300))
    texts = [random_ids(1, n)[0].tolist() for n in (60, 250)]
    decoder = Decoder(model, texts, 12)
    logits = decoder.prefill()
    for step in range(12):
        alone = torch.stack([uncached(model, text) for text in texts])
        torch.testing.assert_close(logits, alone, rtol=1e-10, atol=1e-10)
        for text in texts:
            text.append(step)
        logits = decoder.decode([step, step])


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_a_text_needs_a_token_to_start_from(prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Decoder(build(GPT2), prompts, 2)
