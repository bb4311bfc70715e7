"""A saved model comes back bit for bit, also one of an earlier version; what is damaged is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_kinds import KINDS, build, random_ids
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hectogpt.errors import UserError
from hectogpt.model import ModelConfig
from hectogpt.model.inputs import EmbeddingNorm, NgramHash, Smear, TokenTable
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import QKNorm, ReLU2, RMSNorm, Rotary
from hectogpt.model.pointer import PointerHead
from hectogpt.model.weights import load_model, save_model
from hectogpt.serialization import dump

OLD_RUN = Path(__file__).parents[1] / "data" / "old_run"
OLD_CONFIG = ModelConfig(
    16,
    2,
    1,
    8,
    24,
    norm=RMSNorm(gain=True),
    activation=ReLU2(),
    inputs=(EmbeddingNorm(), NgramHash(2, 13, common=9), Smear((0.3, 0.2))),
    value_embeddings=(TokenTable(), NgramHash(3, 11)),
    attention_parts=(Rotary(100.0, 0.5), QKNorm()),
    attention_scale=0.5,
    lm_head=LMHeadConfig(bias=True, soft_cap=9.0, compact_vocab=True, embedding_map=0.3),
    pointer=PointerHead(query_scale=1.5, gate=-0.5),
)


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that are not saved included."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """It is built without memory first; buffers that files do not hold have to be real all the same."""
    model = build(KINDS[kind], dtype=torch.float32)
    save_model(model, tmp_path)
    random_state = torch.get_rng_state()
    again = load_model(tmp_path)
    assert torch.equal(random_state, torch.get_rng_state())  # whatever weights were drawn on the way
    assert again.config == model.config
    assert not again.training
    ours, theirs = all_tensors(model), all_tensors(again)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.lm_head.unused == model.lm_head.unused
    x = random_ids(3, model.config.context_length, model.config.vocab_size)
    assert torch.equal(again(x), model(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


# --- an earlier version -----------------------------------------------------------------------------------------------


def test_a_model_of_an_earlier_version_is_the_same_function() -> None:
    """data/old_run was saved by commit 7b14102, with everything in it that a model could have, and with the logits and
    the loss that it computed itself, in float64."""
    model = load_model(OLD_RUN)
    assert model.config == OLD_CONFIG
    outputs = json.loads((OLD_RUN / "outputs.json").read_text())
    ids = torch.tensor(outputs["ids"])
    model.double()
    logits = torch.tensor(outputs["logits"], dtype=torch.float64)
    torch.testing.assert_close(model(ids), logits, rtol=0, atol=1e-10)
    assert model.get_loss_on_batch(ids).item() == pytest.approx(outputs["loss"], abs=1e-10)


def test_names_in_files_are_those_of_the_earlier_version(tmp_path: Path) -> None:
    """Same names, same tensors after loading and saving; the config is written with today's names."""
    save_model(load_model(OLD_RUN), tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (OLD_RUN, tmp_path))
    assert before.keys() == after.keys()
    assert {"word_rows", "joint.weight", "copying.sharpness", "values.0.table.weight"} < before.keys()
    assert "backbone.0.attention.extra_share" in before
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "hectogpt", **dump(OLD_CONFIG)}


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_damaged_map_from_tokens_to_rows_is_refused(tmp_path: Path) -> None:
    """word_rows: [vocab], whole numbers, and every row but the last is exactly one token's."""
    save_model(build(KINDS["everything else"], dtype=torch.float32), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    rows = state.pop("word_rows")
    for damaged in ({}, *({"word_rows": wrong} for wrong in (rows.float(), rows + 1, rows.where(rows != 4, 5)))):
        save_file(state | damaged, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"rows|shape|unknown"):
            load_model(tmp_path)
