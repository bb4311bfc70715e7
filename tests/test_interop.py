"""Models and tokenizers in Hugging Face's layout: transformers' numbers, or one error that names the fault."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hectogpt import errors
from hectogpt.data import load_tokenizer
from hectogpt.errors import UserError
from hectogpt.interop import hf_config, hub, open_model
from hectogpt.interop.gpt2_names import to_huggingface, to_ours
from hectogpt.interop.hf_config import parse_config
from hectogpt.interop.hf_tokenizer import read_tokenizer
from hectogpt.interop.hf_weights import load_gpt2

SIZES = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 24, "vocab_size": 60}


def theirs(dtype: torch.dtype = torch.float32, **changes: object):
    """A GPT2LMHeadModel with weights that leave nothing trivial: peaked attention, gains, biases."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(**(SIZES | {"bos_token_id": 0, "eos_token_id": 0} | changes))
    model = GPT2LMHeadModel(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = (torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3).to(dtype)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    theirs().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_are_theirs(tmp_path, dtype, tolerance, tied):
    model = theirs(dtype, tie_word_embeddings=tied, layer_norm_epsilon=1e-3)
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
    rewrite(saved, n_ctx=24, torch_dtype="float32")
    got = load_gpt2(saved).state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_half_precision_files_are_widened(tmp_path):
    theirs(torch.bfloat16).save_pretrained(tmp_path)
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
    ours, other = load_gpt2(saved), theirs()
    ids = torch.tensor([[1, 2, 3], [9, 8, 7]])
    expected = other.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(ours.generate(ids, 20), expected)


# --- config.json ------------------------------------------------------------------------------------------------------

GOOD = {**SIZES, "model_type": "gpt2", "n_inner": None, "layer_norm_epsilon": 1e-5}


def test_all_problems_are_named_at_once():
    bad = {
        **GOOD,
        "n_embd": "32",
        "n_layer": True,
        "activation_function": "relu",
        "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
        "layer_norm_epsilon": float("nan"),
    }
    del bad["vocab_size"]
    with pytest.raises(UserError) as caught:
        parse_config(bad)
    assert caught.value.code == errors.CHECKPOINT
    for name in ("vocab_size is missing", "n_embd", "n_layer", "activation", "inverse", "reorder", "epsilon"):
        assert name in caught.value.why


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_head", 3),
        ("n_head", 0),
        ("n_embd", 1e2),
        ("n_embd", 10**9),
        ("n_inner", 64),
        ("n_inner", "128"),
        ("model_type", "llama"),
        ("model_type", None),
        ("scale_attn_weights", False),
        ("add_cross_attention", True),
        ("tie_word_embeddings", "yes"),
        ("tie_word_embeddings", 1),
        ("layer_norm_epsilon", 0),
        ("activation_function", ["gelu_new"]),
    ],
)
def test_what_is_not_gpt2_is_refused_by_name(name, value):
    with pytest.raises(UserError) as caught:
        parse_config({**GOOD, name: value})
    assert name in caught.value.why


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})


@given(changes=st.dictionaries(st.sampled_from([*GOOD, *hf_config.FIXED]), json_values))
@settings(max_examples=200)
def test_any_config_is_read_or_refused(changes):
    with contextlib.suppress(UserError):  # and no other error
        parse_config({**GOOD, **changes})


# --- damaged folders --------------------------------------------------------------------------------------------------


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


# --- tokenizers -------------------------------------------------------------------------------------------------------


def write_vocabulary(folder: Path, merges: list[str], kind: str = "files", **changes: int) -> dict[str, int]:
    """A small byte-level BPE in either of the two forms."""
    from hectogpt.data import Tokenizer

    vocabulary = Tokenizer("\n".join(merges).encode()).vocabulary() | changes
    if kind == "files":
        text = "#version: 0.2\n" + "\n".join(merges) + "\n"
        (folder / "merges.txt").write_text(text, encoding="utf-8")
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        return vocabulary
    special = {"<|endoftext|>": vocabulary.pop("<|endoftext|>")}
    content = {
        "added_tokens": [{"id": i, "content": token, "special": True} for token, i in special.items()],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": [merge.split(" ") for merge in merges] if kind == "pairs" else merges,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return vocabulary | special


MERGES = ["h e", "l l", "he ll", "Ġ w", "hell o"]


@pytest.mark.parametrize("kind", ["files", "pairs", "strings"])
def test_a_vocabulary_of_its_own(tmp_path, kind):
    write_vocabulary(tmp_path, MERGES, kind)
    tokenizer = read_tokenizer(tmp_path, 262)
    assert tokenizer.encode("hello wé").tolist() == [260, 259, *tokenizer.encode("é").tolist()]
    assert tokenizer.end_of_text == 261


def test_it_tokenises_as_transformers_does(tmp_path):
    from transformers import GPT2TokenizerFast

    write_vocabulary(tmp_path, MERGES)
    other = GPT2TokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer = read_tokenizer(tmp_path, 262)
    for text in ("hello world", "  hello\n\nshell's 123 wée🙂", ""):
        assert tokenizer.encode(text).tolist() == other.encode(text)


def test_a_folder_without_tokenizer_gets_gpt2s_only_at_its_size(tmp_path):
    assert read_tokenizer(tmp_path, 50257).sha256 == load_tokenizer().sha256
    with pytest.raises(UserError, match="no usable tokenizer"):
        read_tokenizer(tmp_path, 60)


def test_files_that_contradict_each_other_are_refused(tmp_path):
    write_vocabulary(tmp_path, MERGES, "files", he=7)
    with pytest.raises(UserError, match="'he' has id 7") as caught:
        read_tokenizer(tmp_path, 262)
    assert caught.value.code == errors.DATA


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"model": {"type": "WordPiece"}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE"}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": [[1, 2]]}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": {"type": "Metaspace"}}',
    ],
)
def test_damaged_tokenizer_files_are_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_tokenizer(tmp_path, 50257)
    assert caught.value.code == errors.DATA


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    write_vocabulary(tmp_path, MERGES)
    with pytest.raises(UserError, match="no usable tokenizer"):
        read_tokenizer(tmp_path, 261)


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b/c", "", "-rf", "a b", "gpt2\n", "https://x/y"])
def test_names_that_are_no_names_never_reach_the_hub(name, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(UserError):
        hub.fetch(name)


def test_without_network_one_error_says_what_to_copy(monkeypatch, tmp_path):
    def offline(*_: object, **__: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="neither a folder") as caught:
        open_model("gpt2", download=True)
    assert "model.safetensors" in caught.value.fix


@pytest.mark.network
def test_gpt2_from_the_hub():
    model, tokenizer = open_model("gpt2", download=True)
    ids = torch.tensor([tokenizer.encode("The capital of France is").astype(int).tolist()])
    assert "Paris" in tokenizer.decode(model.generate(ids, 30)[0].tolist())
