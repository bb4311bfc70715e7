"""One way to open a model: run folders, Hugging Face folders, and the hub's names only where that is allowed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from gpt2_folders import MERGES, make_gpt2, write_vocabulary

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.interop import hub, open_model
from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.weights import save_model


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))


def test_a_run_folder_gives_its_model_and_gpt2s_tokenizer(tmp_path: Path) -> None:
    saved = Transformer(ModelConfig(8, 2, 1, 16, 50257))
    save_model(saved, tmp_path)
    model, tokenizer = open_model(tmp_path)
    assert (model.config, model.training, tokenizer.n_vocab) == (saved.config, False, 50257)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.state_dict().items())


def test_a_hugging_face_folder_gives_its_model_and_its_tokenizer(tmp_path: Path) -> None:
    theirs = make_gpt2(vocab_size=262)
    theirs.save_pretrained(tmp_path)
    write_vocabulary(tmp_path, MERGES)
    model, tokenizer = open_model(str(tmp_path))
    assert torch.equal(model.embeddings.weight, theirs.transformer.wte.weight)
    assert tokenizer.encode("hello").tolist() == [260]


@pytest.mark.parametrize("own", [True, False])
def test_opening_draws_no_random_weights(tmp_path: Path, own: bool) -> None:
    if own:
        save_model(Transformer(ModelConfig(8, 2, 1, 16, 50257)), tmp_path)
    else:
        make_gpt2(vocab_size=262).save_pretrained(tmp_path)
        write_vocabulary(tmp_path, MERGES)
    before = torch.get_rng_state()
    open_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "runs/nowhere"])
def test_without_download_a_name_is_a_folder(name: str) -> None:
    with pytest.raises(UserError, match="no model in") as caught:
        open_model(name)
    assert caught.value.code == errors.CHECKPOINT


@pytest.mark.parametrize("config", [None, "[]", "{", '{"model_type": "bert"}', '{"model_type": "hectogpt"}'])
def test_a_folder_without_a_model_is_one_error(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        open_model(tmp_path, download=True)
    assert caught.value.code == errors.CHECKPOINT


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["../x", "/etc", "a/b/c", "", "-rf", "a b", "gpt2\n", "https://x/y"])
def test_names_that_are_no_names_never_reach_the_hub(name):
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


def test_a_run_that_has_saved_no_weights_yet(tmp_path):
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="no model yet") as caught:
        open_model(tmp_path)
    assert caught.value.code == errors.CHECKPOINT


def test_a_hub_that_never_answers_is_told_within_seconds(monkeypatch, tmp_path):
    import time

    with socket.socket() as silent:  # it takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("hectogpt.data.hub.TIMEOUT", 0.3)
        begun = time.monotonic()
        with pytest.raises(UserError, match="neither a folder") as caught:
            open_model("gpt2", download=True)
        assert time.monotonic() - begun < 3
    assert address in caught.value.why
    assert "config.json" in caught.value.fix
