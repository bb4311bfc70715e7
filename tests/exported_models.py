"""Small models in folders, exported and opened by transformers, for tests of the export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpt2_folders import MERGES, write_vocabulary
from model_kinds import KINDS, build

from hectogpt.interop.export import Exported, export
from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.weights import save_model

VOCAB = 262  # ids of the small vocabulary that comes with each folder


def write_model(folder: Path, config: ModelConfig, dtype: torch.dtype = torch.float64) -> Transformer:
    """A model whose every weight counts, in a folder as a run leaves it, with a small vocabulary."""
    model = build(replace(config, vocab_size=VOCAB), dtype=dtype)
    folder.mkdir(exist_ok=True)
    save_model(model, folder)
    write_vocabulary(folder, MERGES)
    return model


def export_kind(folder: Path, kind: str, dtype: torch.dtype = torch.float64) -> tuple[Transformer, Exported]:
    """A model of tests/model_kinds.py, and its export in folder/"out"."""
    model = write_model(folder / "run", KINDS[kind], dtype)
    return model, export(folder / "run", folder / "out")


def open_theirs(folder: Path, **options: Any) -> Any:
    """The exported model as transformers opens it. Its own code is run."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest, in units of the largest value where that exceeds 1."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max()) / max(1.0, float(ours.abs().max()))


def contents(folder: Path) -> dict[str, bytes]:
    """File -> bytes, without what Python leaves beside code."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
