"""Models in Hugging Face's layout: transformers' numbers, or one error that names the fault."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpt2_folders import make_gpt2, rewrite_config
from safetensors.torch import load_file, save_file

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.interop.gpt2_names import to_huggingface, to_ours
from hectogpt.interop.hf_weights import load_gpt2


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_gpt2().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_are_theirs(tmp_path, dtype, tolerance, tied):
    model = make_gpt2(dtype, tie_word_embeddings=tied, layer_norm_epsilon=1e-3)
    model.save_pretrained(tmp_path)
    ours = load_gpt2(tmp_path)
    ids = torch.randint(60, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = model(ids).logits, ours(ids)
    scale = max(1.0, expected.abs().max().item())
    assert got.dtype == dtype
    assert (got - expected).abs().max().item() <= tolerance * scale
    assert expected.std() > 0.4
    assert (ours.lm_head.weight is ours.embeddings.weight) == tied
    assert not ours.training


def test_the_layout_on_the_hub_without_prefix_and_with_masks(saved):
    expected = load_gpt2(saved).state_dict()
    path = saved / "model.safetensors"
    old = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    for layer in range(2):
        old[f"h.{layer}.attn.bias"] = torch.ones(24, 24).tril()[None, None]
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(old, path)
    rewrite_config(saved, n_ctx=24, torch_dtype="float32")
    got = load_gpt2(saved).state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_half_precision_files_are_widened(tmp_path):
    make_gpt2(torch.bfloat16).save_pretrained(tmp_path)
    assert load_gpt2(tmp_path).embeddings.weight.dtype == torch.float32


@pytest.mark.parametrize("tied", [True, False])
def test_the_table_reads_both_ways(saved, tied):
    file = load_file(saved / "model.safetensors")
    if not tied:
        file["lm_head.weight"] = torch.randn(60, 32)
    back = to_huggingface(to_ours(file, 2), 2, tied=tied)
    assert back.keys() == file.keys()
    assert all(torch.equal(back[name], file[name]) for name in file)


def test_generation_matches_transformers(saved):
    ours, other = load_gpt2(saved), make_gpt2()
    ids = torch.tensor([[1, 2, 3], [9, 8, 7]])
    expected = other.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(ours.generate(ids, 20), expected)


# --- damaged folders ---


def test_pickles_are_refused_unread(saved):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(UserError, match="pickle") as caught:
        load_gpt2(saved)
    assert caught.value.code == errors.CHECKPOINT


def test_missing_and_sharded_weights_are_told_apart(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_gpt2(saved)
    (saved / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="several files"):
        load_gpt2(saved)


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("transformer.h.1.mlp.c_fc.weight", None, "backbone.1.mlp.fc1.weight is missing"),
        ("transformer.h.1.mlp.c_fc.weight", torch.zeros(128, 32), "has shape"),
        ("transformer.h.0.attn.c_attn.weight", torch.tensor(1.0), "has shape"),
        ("transformer.h.0.attn.c_attn.weight", torch.zeros(32, 95), "has shape"),
        ("transformer.h.7.ln_1.weight", torch.zeros(32), "unknown"),
        ("transformer.ln_f.bias", torch.full((32,), float("nan")), "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, name, tensor, said):
    path = saved / "model.safetensors"
    state = load_file(path)
    state.pop(name, None)
    save_file(state if tensor is None else state | {name: tensor}, path)
    with pytest.raises(UserError, match="does not fit") as caught:
        load_gpt2(saved)
    assert said in caught.value.why


def test_a_cut_file_is_refused(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError) as caught:
        load_gpt2(saved)
    assert caught.value.code == errors.CHECKPOINT
