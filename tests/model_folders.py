"""Folders with small models: GPT-2s as transformers writes them, ours as runs leave them, and exports of these."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from helpers import peaked
from model_kinds import KINDS, build

from hectogpt.interop.export import Exported, export
from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.weights import save_model

SIZES = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 24, "vocab_size": 60}
MERGES = ["h e", "l l", "he ll", "Ġ w", "hell o"]


def make_gpt2(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A GPT2LMHeadModel with weights that leave nothing trivial: peaked attention, gains, biases."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(**(SIZES | {"bos_token_id": 0, "eos_token_id": 0} | changes))
    model: Any = GPT2LMHeadModel(config)
    return peaked(model.to(dtype).eval(), scale=0.3)


def rewrite_config(folder: Path, **changes: Any) -> None:
    """Change fields of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def write_vocabulary(folder: Path, merges: list[str], kind: str = "files", **changes: int) -> dict[str, int]:
    """Write a small byte-level BPE as vocab.json and merges.txt ("files"), or as tokenizer.json in one of its two forms
    ("pairs", "strings"). Returns token -> id."""
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


# --- models of ours in folders, exported and opened by transformers ---------------------------------------------------


VOCAB = 262  # ids of the small vocabulary that comes with each folder


def write_run(folder: Path, config: ModelConfig) -> Transformer:
    """A model over GPT-2's ids in its run's folder, which is new."""
    model = peaked(Transformer(config), scale=0.1)
    folder.mkdir()
    save_model(model, folder)
    return model


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


@torch.no_grad()
def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest, in units of the largest value where that exceeds 1."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max()) / max(1.0, float(ours.abs().max()))


def contents(folder: Path) -> dict[str, bytes]:
    """File -> bytes, without what Python leaves beside code."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
