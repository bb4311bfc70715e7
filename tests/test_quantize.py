"""Weights of fewer bytes: the same function in float32, near it in bf16 and int8, and less to read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_kinds import GPT2, KINDS, L, build, random_ids

from hectogpt.generate import Sampling, generate, quantize
from hectogpt.generate.decode import Decoder
from hectogpt.generate.quantize import QuantizedTransformer, weight_bytes
from hectogpt.model import Transformer
from hectogpt.model.lm_head import LMHeadConfig


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_nothing_changes(kind: str) -> None:
    """Same logits, without a cache and with one, of every kind of model; a compact head with its embedding map is
    folded into one matrix."""
    model = build(KINDS[kind], dtype=torch.float32)
    packed = QuantizedTransformer(model)
    assert packed.config == model.config
    ids = random_ids(3, model.config.context_length, model.config.vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(packed(ids), model(ids), rtol=2e-4, atol=2e-4)
    a, b = (Decoder(m, [[0, 1], [1]], 3) for m in (model, packed))
    torch.testing.assert_close(a.prefill(), b.prefill(), rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(a.decode([1, 0]), b.decode([1, 0]), rtol=2e-4, atol=2e-4)


def test_the_model_itself_is_left_as_it_was() -> None:
    """The copy shares the embeddings' memory, and nothing of the original is replaced or changed."""
    model = build(KINDS["everything else"], dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packed = QuantizedTransformer(model, "int8")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert packed.embeddings.weight is model.embeddings.weight


@pytest.mark.parametrize("bf16_products", [True, False])  # False: as on a processor that cannot multiply bf16
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(("form", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2), ("int8", 2e-2)])
def test_lighter_weights_stay_near(form, tolerance, compact, bf16_products, monkeypatch) -> None:
    if not bf16_products:
        monkeypatch.setattr(quantize, "_onednn_multiplies_bf16", lambda: False)
    head = LMHeadConfig(bias=True, soft_cap=9.0, compact_vocab=compact, embedding_map=0.3 if compact else 0.0)
    model = Transformer(replace(GPT2, vocab_size=41, d_model=64, lm_head=head))
    if compact:
        model.lm_head.compact(torch.arange(0, 41, 2))
        torch.nn.init.normal_(model.lm_head.weight, std=0.02)
        torch.nn.init.normal_(model.lm_head.embedding_map.weight, std=0.02)
    torch.nn.init.normal_(model.lm_head.bias)
    light = QuantizedTransformer(model, form)
    ids = random_ids(2, L, 41)
    with torch.no_grad():
        exact, near = model(ids), light(ids)
    assert near.shape == exact.shape
    assert (near - exact).abs().max() < tolerance * exact.std()
    assert weight_bytes(light) < weight_bytes(model) * {"float32": 1.01, "bfloat16": 0.6, "int8": 0.4}[form]
    assert len(list(generate(light, [[1, 2], [3]], Sampling(max_new_tokens=L + 3)))) == 2 * (L + 3)


def test_int8_is_off_by_at_most_half_a_step() -> None:
    model = Transformer(GPT2)
    packed = QuantizedTransformer(model, "int8").backbone[0].mlp.fc1
    back = packed.weight * packed.scale[:, None]
    original = model.backbone[0].mlp.fc1.weight
    assert ((back - original).abs() <= original.abs().amax(1, keepdim=True) / 254 * 1.0001).all()


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_steps_equal_plain_ones() -> None:
    program = Path(__file__).with_name("compiled_decoding.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n") == 12
