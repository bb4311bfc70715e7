"""The model in a folder in Hugging Face's GPT-2 layout: config.json and model.safetensors.

Pickled weights (.bin, .pt) are refused unread, because reading one can run code.
"""

from __future__ import annotations

from pathlib import Path

import torch

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.interop.gpt2_names import to_ours
from hectogpt.interop.hf_config import parse_config
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import model_of, read_config, read_tensors


def load_gpt2(folder: Path) -> Transformer:
    """The folder's model, on the CPU, in evaluation mode. Float64 weights stay so; all others become float32.

    Raises UserError (CHECKPOINT) for files that are missing, damaged or not GPT-2's.
    """
    config = parse_config(read_config(folder), str(folder / "config.json"))
    path = folder / "model.safetensors"
    if not path.exists():
        raise _no_weights(folder)
    state = to_ours(read_tensors(path), config.n_layers)
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in state.values()) else torch.float32
    return model_of(config, {name: tensor.to(dtype) for name, tensor in state.items()}, path)


def _no_weights(folder: Path) -> UserError:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    why, fix = "the folder holds no weights", "copy the model's model.safetensors there"
    if pickled or (folder / "model.safetensors.index.json").exists():
        why = f"{pickled[0]} is a pickle, and reading one can run code" if pickled else ""
        why = why or "its weights are split over several files"
        fix = "in transformers: GPT2LMHeadModel.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    return UserError(f"no model.safetensors in {folder}", why=why, fix=fix, code=errors.CHECKPOINT)
