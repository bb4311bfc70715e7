"""Folders with small GPT-2s in Hugging Face's layout, as transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from helpers import peaked

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
