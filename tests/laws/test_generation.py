"""Generation. Decoding with a cache computes what the model computes without one; with weights of fewer bytes it is the
same function in float32, near it in bf16 and int8, and has less to read. A row knows nothing of its neighbours, a seed
is a text, texts end where they should, draws follow the softmax, filters keep what they say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from model_kinds import GPT2, KINDS, ALiBi, L, build, random_ids
from scipy import stats
from torch import Tensor

from hectogpt import torch_private
from hectogpt.cli.options import GenerateOptions
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, Token, generate
from hectogpt.generation.decode import Decoder, choose, probabilities
from hectogpt.generation.quantize import WeightFormat, quantize, round_rows
from hectogpt.kernels.build import describe, find
from hectogpt.model import Transformer
from hectogpt.model.lm_head import LMHeadConfig


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
    config = replace(GPT2, vocab_size=41, d_model=64, lm_head=head)
    model = Transformer(config).to(torch.float64 if compact else torch.float32)
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
        tokens = (torch.arange(4) + step + 4) % vocab  # the start of a document, 7, at another step in each row
        texts = torch.cat((texts, tokens[:, None]), dim=1)
        logits = together.decode(tokens)
        alone = torch.cat([decoder.decode(token) for decoder, token in zip(apart, tokens[:, None], strict=True)])


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
