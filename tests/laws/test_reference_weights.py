"""The textbook reads other people's weights: Hugging Face's names and layout, a folder, the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gpt2_twins import CONFIG, assert_close, hugging_face, in_our_names, token_ids
from model_solution import ModelConfig, Transformer
from utils import state_dict_converter


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("masks", [False, True])
def test_converter_agrees(prefix: str, masks: bool) -> None:
    theirs = hugging_face(torch.float32)
    state = {key.replace("transformer.", prefix): value for key, value in theirs.state_dict().items()}
    if masks:
        for n in range(CONFIG.n_layers):
            state[f"{prefix}h.{n}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
            state[f"{prefix}h.{n}.attn.masked_bias"] = torch.tensor(-1e4)
    converted = state_dict_converter(state)
    expected = in_our_names(theirs, lambda parameter: parameter.data)
    assert converted.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(converted[name], value), name
        assert converted[name].is_contiguous(), name
    assert len({value.untyped_storage().data_ptr() for value in converted.values()}) == 37  # no shared memory
    Transformer(CONFIG).load_state_dict(converted, strict=True)


def test_pretrained_from_a_folder(tmp_path: Path) -> None:
    tied = hugging_face(torch.float32, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path)
    ours = Transformer.from_pretrained(str(tmp_path))
    ids = token_ids(2, CONFIG.context_length)
    assert ours.config == CONFIG
    assert_close(ours(ids), tied(ids).logits, 1e-4)
    assert ours.lm_head.weight.data_ptr() != ours.embeddings.weight.data_ptr()
    once = {key: value for key, value in tied.state_dict().items() if key != "lm_head.weight"}
    Transformer(CONFIG).load_state_dict(state_dict_converter(once))

    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"activation_function": "gelu"}))
    with pytest.raises(ValueError, match="activation_function = gelu"):
        Transformer.from_pretrained(str(tmp_path))


@pytest.mark.network
def test_pretrained_from_the_hub() -> None:
    model = Transformer.from_pretrained()
    assert model.config == ModelConfig(768, 12, 12, 1024, 50257)
    ids = torch.tensor([[464, 6193, 286, 262, 995, 318]])
    assert torch.equal(model.generate(ids, 8)[:, :6], ids)
