"""Models with classes of a user's own file: their export carries the classes, and says why where it cannot."""

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


@pytest.mark.thorough
@pytest.mark.parametrize(("example", "change"), [("attention.py", with_score_bias), ("input.py", with_input)])
def test_the_file_carries_the_idea(tmp_path: Path, example: str, change: Any) -> None:
    model = write_run(tmp_path / "run", EXAMPLES / example, change)
    done = export(tmp_path / "run", tmp_path / "out", idea=[EXAMPLES / example])
    theirs, ids = open_theirs(done.folder), random_ids(2, 10, VOCAB)
    with torch.no_grad():
        assert difference(model(ids), theirs(ids).logits) <= 1e-12
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(theirs.generate(ids[:, :5], max_new_tokens=12, **options), model.generate(ids[:, :5], 12))
    code = (done.folder / "modeling_hectogpt.py").read_text(encoding="utf-8")
    assert "import Run" not in code
    assert "def idea(" not in code  # the recipe is not the model's
    again = export(done.folder, tmp_path / "again", idea=[done.folder / "idea.py"])
    assert contents(again.folder) == contents(done.folder)
    assert open_model(done.folder, idea=done.folder / "idea.py")[0].config == model.config


OWN = """
from dataclasses import dataclass

from torch import nn

{imports}


@dataclass(frozen=True)
class {name}(InputPart):
    def build(self, d_model, vocab_size, norm):
        return {name}Layer()


class {name}Layer(nn.Module):
    def forward(self, x, ids, cache=None):
        return {value}
"""


@pytest.mark.parametrize(
    ("imports", "name", "value", "said"),
    [
        ("from hectogpt import InputPart\nimport beside_it", "Beside", "beside_it.double(x)", "imports beside_it"),
        ("from hectogpt import InputPart, Run", "Running", "x * len(str(Run))", "hectogpt.training.run"),
        ("import hectogpt\nfrom hectogpt import InputPart", "Whole", "x * len(str(hectogpt))", "use hectogpt"),
        ("from hectogpt import InputPart\nfrom math import *", "Star", "x * cos(0)", "the name cos"),
        (
            "from hectogpt import InputPart\nfrom hectogpt import shift as move",
            "Mover",
            "move(x, 1, 0, cache)",
            "name move",
        ),
        ("from hectogpt import InputPart\nclass MLP: pass", "Twin", "x * len(str(MLP))", "the name MLP"),
        ("from hectogpt import InputPart\nimport math as F", "Alias", "x * F.pi", "the name F"),
        ("from hectogpt import InputPart\nCACHE = 2.0", "Fixed", "x * CACHE", "the name CACHE"),
    ],
)
def test_what_does_not_fit_into_one_file_is_named(
    tmp_path: Path, imports: str, name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside_it.py").write_text("def double(x):\n    return 2 * x\n", encoding="utf-8")
    file = tmp_path / "mine.py"
    file.write_text(OWN.format(imports=imports, name=name, value=value), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    write_run(tmp_path / "run", file, lambda m, config: replace(config, inputs=(getattr(m, name)(),)))
    with pytest.raises(UserError, match="cannot be exported") as caught:
        export(tmp_path / "run", tmp_path / "out", idea=[file])
    assert said in str(caught.value)
    assert caught.value.code == errors.CHECKPOINT
    assert not (tmp_path / "out").exists()
