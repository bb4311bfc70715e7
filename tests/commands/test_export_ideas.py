"""Models with classes of a user's own file: the file goes along, or the export is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_models import VOCAB, contents, difference, open_theirs, write_model
from helpers import ROOT
from model_kinds import GPT2, random_ids

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.idea_file import load_idea, read_idea
from hectogpt.interop import open_model
from hectogpt.interop.export import export
from hectogpt.model import ModelConfig, Transformer

EXAMPLES = ROOT / "hectogpt" / "lab" / "examples"


def write_run(folder: Path, file: Path, change: Any) -> Transformer:
    """The model whose settings `change(module, GPT2)` gives, in a folder as a run of this file leaves it."""
    idea = read_idea(file)
    config: ModelConfig = change(load_idea(idea), GPT2)
    model = write_model(folder, config)
    (folder / "idea.py").write_text(idea.source, encoding="utf-8")
    ideas = [{"file": "idea.py", "path": str(file), "sha256": idea.sha256}]
    (folder / "run.json").write_text(json.dumps({"ideas": ideas}), encoding="utf-8")
    return model


def with_score_bias(module: Any, config: ModelConfig) -> ModelConfig:
    return replace(config, attention_parts=(module.LogDistance(0.3),))


def with_input(module: Any, config: ModelConfig) -> ModelConfig:
    return replace(config, inputs=(module.RecentMean(3),))


@pytest.mark.parametrize(("example", "change"), [("attention.py", with_score_bias), ("input.py", with_input)])
def test_the_file_goes_along(tmp_path: Path, example: str, change: Any) -> None:
    model = write_run(tmp_path / "run", EXAMPLES / example, change)
    done = export(tmp_path / "run", tmp_path / "out", idea=[EXAMPLES / example])
    theirs, ids = open_theirs(done.folder), random_ids(2, 10, VOCAB)
    with torch.no_grad():
        assert difference(model(ids), theirs(ids).logits) <= 1e-12
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(theirs.generate(ids[:, :5], max_new_tokens=12, **options), model.generate(ids[:, :5], 12))
    assert (done.folder / "idea.py").read_text(encoding="utf-8") == (EXAMPLES / example).read_text(encoding="utf-8")
    again = export(done.folder, tmp_path / "again", idea=[done.folder / "idea.py"])
    assert contents(again.folder) == contents(done.folder)
    assert open_model(done.folder, idea=done.folder / "idea.py")[0].config == model.config


LEANS_ON_A_NEIGHBOUR = """
from dataclasses import dataclass

import beside_it
from hectogpt import InputPart
from torch import nn


@dataclass(frozen=True)
class Doubled(InputPart):
    def build(self, d_model, vocab_size, norm):
        return DoubledLayer()


class DoubledLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("two", beside_it.TWO, persistent=False)

    def forward(self, x, ids, cache=None):
        return self.two * x
"""


def test_a_class_that_is_not_whole_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table is in no file, and transformers builds a model without numbers."""
    (tmp_path / "beside_it.py").write_text("import torch\n\nTWO = torch.tensor(2.0)\n", encoding="utf-8")
    file = tmp_path / "mine.py"
    file.write_text(LEANS_ON_A_NEIGHBOUR, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    write_run(tmp_path / "run", file, lambda module, config: replace(config, inputs=(module.Doubled(),)))
    with pytest.raises(UserError, match="cannot be exported") as caught:
        export(tmp_path / "run", tmp_path / "out", idea=[file])
    assert caught.value.code == errors.CHECKPOINT
    assert not (tmp_path / "out").exists()
