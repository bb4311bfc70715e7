"""Folders in Hugging Face's layout: transformers' numbers, texts and ids, or one error that names the fault."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from model_folders import MERGES, SIZES, difference, make_gpt2, rewrite_config, write_vocabulary
from safetensors.torch import load_file, save_file

from hectogpt.data import load_tokenizer
from hectogpt.errors import UserError
from hectogpt.interop import open_model
from hectogpt.interop.hf_model import load_gpt2, parse_gpt2_config, read_tokenizer
from hectogpt.interop.open import find_folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_gpt2().save_pretrained(tmp_path)
    return tmp_path


def refused(folder: Path, *said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_gpt2(folder)
    for text in said:
        assert text in str(caught.value)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_are_theirs(tmp_path: Path, dtype: torch.dtype, tolerance: float, tied: bool) -> None:
    model = make_gpt2(dtype, tie_word_embeddings=tied, layer_norm_epsilon=1e-3)
    model.save_pretrained(tmp_path)
    ours = load_gpt2(tmp_path)
    ids = torch.randint(60, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = model(ids).logits, ours(ids)
    assert got.dtype == dtype
    assert difference(expected, got) <= tolerance
    assert expected.std() > 0.4
    assert (ours.lm_head.weight is ours.embeddings.weight) == tied
    assert not ours.training


def test_the_layout_on_the_hub_without_prefix_and_with_masks(saved: Path) -> None:
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


def test_pickles_are_refused_unread(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    refused(saved, "several files", "pickles", "save_pretrained", "max_shard_size")


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("transformer.h.1.mlp.c_fc.weight", None, "backbone.1.mlp.fc1.weight is missing"),
        ("transformer.h.1.mlp.c_fc.weight", torch.zeros(128, 32), "has shape"),
        ("transformer.h.0.attn.c_attn.weight", torch.zeros(32, 95), "has shape"),
        ("transformer.h.7.ln_1.weight", torch.zeros(32), "unknown"),
        ("transformer.ln_f.bias", torch.full((32,), float("nan")), "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved: Path, name: str, tensor: torch.Tensor | None, said: str) -> None:
    path = saved / "model.safetensors"
    state = load_file(path)
    state.pop(name, None)
    save_file(state if tensor is None else state | {name: tensor}, path)
    with pytest.raises(UserError, match="does not fit") as caught:
        load_gpt2(saved)
    assert said in caught.value.why


# --- config.json ------------------------------------------------------------------------------------------------------

GOOD = {**SIZES, "model_type": "gpt2", "n_inner": None, "layer_norm_epsilon": 1e-5}


def test_all_settings_that_change_the_formulas_are_named_at_once() -> None:
    bad = {**GOOD, "n_inner": 7, "activation_function": "relu", "scale_attn_by_inverse_layer_idx": True}
    del bad["vocab_size"]
    with pytest.raises(UserError) as caught:
        parse_gpt2_config(bad, Path())
    for name in ("vocab_size is missing", "n_inner is 7", "activation_function is 'relu'", "inverse_layer_idx is True"):
        assert name in caught.value.why


# --- tokenizer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["files", "pairs", "strings"])
def test_a_vocabulary_of_its_own(tmp_path: Path, kind: str) -> None:
    write_vocabulary(tmp_path, MERGES, kind)
    tokenizer = read_tokenizer(tmp_path, 262)
    assert tokenizer.encode("hello wé").tolist() == [260, 259, *tokenizer.encode("é").tolist()]
    assert tokenizer.end_of_text == 261
    with pytest.raises(UserError, match=r"no usable tokenizer(.|\n)* has 262 ids; the model has 297"):
        read_tokenizer(tmp_path, 297)


def test_a_folder_without_tokenizer_gets_gpt2s_only_at_its_size(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path, 50257).sha256 == load_tokenizer().sha256
    with pytest.raises(UserError, match="no usable tokenizer"):
        read_tokenizer(tmp_path, 60)


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"model": {"type": "WordPiece"}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": [[1, 2]]}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": {"type": "Metaspace"}}',
    ],
)
def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path, content: str) -> None:
    """And those of which one contradicts the other."""
    if content:
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    else:
        write_vocabulary(tmp_path, MERGES, "files", he=7)
    with pytest.raises(UserError, match="no usable tokenizer"):
        read_tokenizer(tmp_path, 262)


# --- one way to open a model ------------------------------------------------------------------------------------------


def test_opening_gives_model_and_tokenizer_and_draws_no_random_weights(tmp_path: Path) -> None:
    make_gpt2(vocab_size=262).save_pretrained(tmp_path)
    write_vocabulary(tmp_path, MERGES)
    before = torch.get_rng_state()
    model, tokenizer = open_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.training, tokenizer.n_vocab) == (False, 262)


def test_names_that_are_no_names_never_reach_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))
    for name in ("../x", "a/b/c", "gpt2\n"):
        with pytest.raises(UserError):
            find_folder(name, download=True)


@pytest.mark.network
def test_gpt2_from_the_hub() -> None:
    model, tokenizer = open_model("gpt2", download=True)
    ids = torch.tensor([tokenizer.encode("The capital of France is").astype(int).tolist()])
    assert "Paris" in tokenizer.decode(model.generate(ids, 30)[0].tolist())


def test_a_hub_that_never_answers_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import time

    with socket.socket() as silent:  # it takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("hectogpt.data.sources.TIMEOUT", 0.3)
        begun = time.monotonic()
        with pytest.raises(UserError, match="neither a folder") as caught:
            open_model("gpt2", download=True)
        assert time.monotonic() - begun < 3
    assert address in caught.value.why
    assert "config.json" in caught.value.fix
