"""Decoding with a cache computes what the model computes without one, whatever the lengths of the texts; with
weights of fewer bytes it is the same function in float32, near it in bf16 and int8, and has less to read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import Here
from hypothesis import example, given, settings
from hypothesis import strategies as st
from model_kinds import GPT2, KINDS, ALiBi, L, build, random_ids
from torch import Tensor

from hectogpt import torch_private
from hectogpt.generation import Sampling, generate
from hectogpt.generation.decode import Decoder
from hectogpt.generation.quantize import WeightFormat, quantize, round_rows
from hectogpt.kernels.build import describe, find
from hectogpt.model import Transformer
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.weights import save_model


@torch.no_grad()
def uncached(model: Transformer, texts: Tensor) -> Tensor:
    """Next-token logits of texts [rows, time], computed from their last L tokens without any cache."""
    return model(texts[:, -model.config.context_length :])[:, -1]


@given(
    kind=st.sampled_from(sorted(KINDS)),
    rows=st.integers(1, 4),
    length=st.integers(1, 2 * L),
    new=st.integers(1, 14),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@example(kind="looks back", rows=3, length=3, new=14, seed=1, dtype=torch.float64)
@example(kind="gpt2", rows=2, length=L, new=3, seed=2, dtype=torch.float64)
@example(kind="alibi", rows=1, length=L - 1, new=14, seed=2, dtype=torch.float64)
@example(kind="alibi among others", rows=2, length=7, new=5, seed=1, dtype=torch.float64)
@example(kind="everything else", rows=4, length=3, new=14, seed=1, dtype=torch.float64)
@settings(max_examples=12)
def test_a_cached_row_equals_its_text_uncached(
    kind: str, rows: int, length: int, new: int, seed: int, dtype: torch.dtype
) -> None:
    """The cache changes nothing.

    1. Several texts are decoded together.
    2. After the prompts, and after every further token, each row's logits equal those of its own text alone, computed
       from scratch.
    3. This holds past the context length L, where each token is conditioned on exactly the last L tokens.
    """
    model = build(KINDS[kind], seed, dtype)
    texts = random_ids(rows, length, model.config.vocab_size, seed)
    decoder = Decoder(model, texts, new)
    logits = decoder.prefill()
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    for _ in range(new):
        alone = torch.cat([uncached(model, text[None]) for text in texts])
        torch.testing.assert_close(logits, alone, rtol=tolerance, atol=tolerance)
        tokens = logits.argmax(dim=-1)
        texts = torch.cat((texts, tokens[:, None]), dim=1)
        logits = decoder.decode(tokens)


# --- weights of fewer bytes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_nothing_changes(kind: str) -> None:
    """Same logits, without a cache and with one, of every kind of model; a compact head with its embedding map is
    folded into one matrix."""
    model = build(KINDS[kind], dtype=torch.float32)
    packed = quantize(model)
    assert packed.config == model.config
    ids = random_ids(3, model.config.context_length, model.config.vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(packed(ids), model(ids), rtol=2e-4, atol=2e-4)
    a, b = (Decoder(m, torch.tensor([[0, 1], [1, 1]]), 3) for m in (model, packed))
    torch.testing.assert_close(a.prefill(), b.prefill(), rtol=2e-4, atol=2e-4)
    tokens = torch.tensor([1, 0])
    torch.testing.assert_close(a.decode(tokens), b.decode(tokens), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("compact", "bf16_products"), [(False, True), (True, False)])  # False: as where there are none
@pytest.mark.parametrize(("form", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2), ("int8", 2e-2)])
def test_lighter_weights_stay_near(
    form: WeightFormat, tolerance: float, compact: bool, bf16_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not bf16_products:
        monkeypatch.setattr(torch_private, "onednn_has_bf16", lambda: False)
    head = LMHeadConfig(bias=True, soft_cap=9.0, compact_vocab=compact, embedding_map=0.3 if compact else 0.0)
    model = Transformer(replace(GPT2, vocab_size=41, d_model=64, lm_head=head))
    if compact:
        model.lm_head.compact(torch.arange(0, 41, 2))
        torch.nn.init.normal_(model.lm_head.weight, std=0.02)
        torch.nn.init.normal_(model.lm_head.embedding_map.weight, std=0.02)
    torch.nn.init.normal_(model.get_parameter("lm_head.bias"))
    light = quantize(model, form)
    ids = random_ids(2, L, 41)
    with torch.no_grad():
        exact, near = model(ids), light(ids)
    assert near.shape == exact.shape
    assert (near - exact).abs().max() < tolerance * exact.std()
    assert bytes_of(light.backbone) < bytes_of(model.backbone) * {"float32": 1.01, "bfloat16": 0.6, "int8": 0.4}[form]
    assert len(list(generate(light, [1, 2], Sampling(max_new_tokens=L + 3)))) == L + 3


def bytes_of(module: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.buffers(), *module.parameters()))


def test_int8_is_off_by_at_most_half_a_step() -> None:
    original = torch.randn(9, 40)
    numbers, scale = round_rows(original)
    back = numbers * scale
    assert ((back - original).abs() <= original.abs().amax(1, keepdim=True) / 254 * 1.0001).all()


# --- our own products -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "rotary", "alibi among others", "everything", "everything else"])
def test_own_code_decodes_a_row_as_if_it_were_alone_and_uncached(kind: str) -> None:
    """Past the context too: the logits of a batch are those of each row alone, to the bit where attention is ours too
    (without a bias of the scores, and without torch's products in the pointer).

    Without a cache sums are added up in another order. Where their last bits tip the rounding of an activation, logits
    move by a part of such a step: below 2 % of their spread.
    """
    if find().library is None:
        pytest.skip(f"no kernels here: {describe()}")
    config = KINDS[kind]
    model, vocab = quantize(build(config, dtype=torch.float32), "int8"), config.vocab_size
    to_the_bit = config.pointer is None
    to_the_bit = to_the_bit and all(not isinstance(part, ALiBi) for part in config.attention_parts)
    texts = random_ids(4, 3, vocab)
    together, apart = Decoder(model, texts, L), [Decoder(model, text[None], L) for text in texts]
    logits, alone = together.prefill(), torch.cat([decoder.prefill() for decoder in apart])
    for step in range(L):
        expected = uncached(model, texts)
        assert torch.equal(logits, alone) or not to_the_bit
        for cached in (logits, alone):
            assert (cached - expected).abs().max() <= 0.02 * expected.std() + 1e-5
        tokens = torch.arange(4) * step % vocab
        texts = torch.cat((texts, tokens[:, None]), dim=1)
        logits = together.decode(tokens)
        alone = torch.cat([decoder.decode(token) for decoder, token in zip(apart, tokens[:, None], strict=True)])


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_the_command_has_every_format(form: str, tmp_path: Path, here: Here) -> None:
    save_model(Transformer(replace(GPT2, vocab_size=50257)), tmp_path)
    shown = here("generate", ".", "Hello", "--max-new-tokens", "3", "--precision", form, "--eos-token-id", "-1")
    assert shown.stdout.startswith("Hello")
    assert f"({form})" in shown.stderr
