"""The model in a folder in Hugging Face's GPT-2 layout: config.json and model.safetensors.

Pickled weights (.bin, .pt) are refused unread, because reading one can run code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.interop.gpt2_names import is_mask, to_ours
from hectogpt.interop.hf_config import parse_config
from hectogpt.model.safetensors_header import check_header
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import model_of, read_config, read_tensors

FLOATS = {"F64", "F32", "F16", "BF16"}


def load_gpt2(folder: Path, note: Callable[[str], None] = lambda text: None) -> Transformer:
    """The folder's model, on the CPU, in evaluation mode. Float64 weights stay so; all others become float32, and
    `note` is told if they were not float32 before.

    Raises UserError (CHECKPOINT) for files that are missing, damaged or not GPT-2's, and for weights that are not
    float64, float32, float16 or bfloat16.
    """
    config = parse_config(read_config(folder), str(folder / "config.json"))
    path = folder / "model.safetensors"
    if not os.path.lexists(path):
        raise _no_weights(folder)
    dtypes = {name: dtype for name, (dtype, _) in check_header(path).items() if not is_mask(name)}
    odd = [f"{name[:80]} has the dtype {dtype}" for name, dtype in dtypes.items() if dtype not in FLOATS]
    if odd:
        raise UserError(
            f"{path} holds no weights that can be used",
            why="; ".join(odd[:5]) + (f" (and {len(odd) - 5} more)" if len(odd) > 5 else ""),
            fix="in transformers: GPT2LMHeadModel.from_pretrained(FOLDER, dtype=torch.float32).save_pretrained(FOLDER)",
            code=errors.CHECKPOINT,
        )
    state = to_ours(read_tensors(path), config.n_layers)
    dtype = torch.float64 if "F64" in dtypes.values() else torch.float32
    model = model_of(config, {name: tensor.to(dtype) for name, tensor in state.items()}, path)
    if half := sorted({"F16", "BF16"} & set(dtypes.values())):
        names = " and ".join({"F16": "float16", "BF16": "bfloat16"}[name] for name in half)
        note(f"the weights in {folder} are {names}; they were converted to {str(dtype).removeprefix('torch.')}")
    return model


def _no_weights(folder: Path) -> UserError:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    why, fix = "the folder holds no weights", "copy the model's model.safetensors there"
    if pickled or (folder / "model.safetensors.index.json").exists():
        why = f"{pickled[0]} is a pickle, and reading one can run code" if pickled else ""
        why = why or "its weights are split over several files"
        fix = "in transformers: GPT2LMHeadModel.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    return UserError(f"no model.safetensors in {folder}", why=why, fix=fix, code=errors.CHECKPOINT)
