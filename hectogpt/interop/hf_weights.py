"""The model in a folder in Hugging Face's layout: a GPT-2, or one of our own that was exported with its code.

The code in a folder is not run: the classes are the package's own, or those of the user's file that came along.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.interop.gpt2_names import is_mask, to_ours
from hectogpt.interop.hf_config import parse_config
from hectogpt.model.config import ModelConfig
from hectogpt.model.safetensors_header import check_header
from hectogpt.model.transformer import Transformer, name_as_saved
from hectogpt.model.weights import MODEL_TYPE, model_of, read_config, read_tensors
from hectogpt.serialization import load

SAFETENSORS = "model.safetensors"
DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32"}  # the latter two of maps of ids
SAVE = "in transformers: AutoModelForCausalLM.from_pretrained(FOLDER{0}).save_pretrained(FOLDER, max_shard_size='99GB')"
HALF = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
PREFIX = "model."  # of the names of tensors in a model that was exported with its code


def load_gpt2(folder: Path, note: Callable[[str], None] = lambda text: None) -> Transformer:
    """The folder's model, on the CPU, in evaluation mode. Float64 weights stay so; all others become float32, and
    `note` is told if they were not float32 before.

    Raises UserError (CHECKPOINT) for files that are missing, damaged or not GPT-2's, and for weights that are not
    float64, float32, float16 or bfloat16.
    """
    config = parse_config(read_config(folder), str(folder / "config.json"))
    path = find_weights(folder)
    return model_of(config, to_ours(widened(read_tensors(path), folder, note), config.n_layers), path)


def is_exported(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of an exported model; a run's has the model's fields themselves."""
    return config.get("model_type") == MODEL_TYPE and isinstance(config.get("model"), dict)


def load_exported(folder: Path, config: dict[str, Any], note: Callable[[str], None] = lambda text: None) -> Transformer:
    """The model of a folder that `hectogpt export` wrote with code of its own; `config` is its config.json. Else as
    `load_gpt2`."""
    path = find_weights(folder)
    state = widened(read_tensors(path), folder, note)
    try:
        settings = load(ModelConfig, config["model"])
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error.what}", why=error.why, code=errors.CHECKPOINT) from None
    # Earlier versions wrote the names of the package's modules, which differ from those of saved weights.
    named = name_as_saved({name.removeprefix(PREFIX): tensor for name, tensor in state.items()})
    return model_of(settings, named, path)


def find_weights(folder: Path) -> Path:
    """The folder's model.safetensors. Raises UserError (CHECKPOINT) if there is none, or if a tensor's dtype is no
    weight's. Pickles are not read."""
    path = folder / SAFETENSORS
    if not os.path.lexists(path):
        others = sorted(name for name in os.listdir(folder) if name.endswith((".index.json", ".bin", ".pt", ".pth")))
        why = "the folder holds no weights"
        if others:
            why = f"it has {others[0]}; weights in several files, and pickles, which can run code, are not read"
        fix = SAVE.format("") if others else f"copy the model's {SAFETENSORS} there"
        raise UserError(f"no {SAFETENSORS} in {folder}", why=why, fix=fix, code=errors.CHECKPOINT)
    odd = [f"{name[:80]} is {dtype}" for name, (dtype, _) in check_header(path).items() if dtype not in DTYPES]
    odd = [text for text in odd if not is_mask(text.split(" ")[0])]
    if odd:
        what, fix = f"{path} holds no weights that can be used", SAVE.format(", dtype=torch.float32")
        raise UserError(what, why=f"{len(odd)} tensors are no weights, as {odd[0]}", fix=fix, code=errors.CHECKPOINT)
    return path


def widened(state: dict[str, Tensor], folder: Path, note: Callable[[str], None]) -> dict[str, Tensor]:
    """The floating-point tensors in float64 if one of them is, else in float32; the others as they are."""
    found = {tensor.dtype for name, tensor in state.items() if tensor.is_floating_point() and not is_mask(name)}
    dtype = torch.float64 if torch.float64 in found else torch.float32
    if half := sorted(HALF[dtype] for dtype in found if dtype in HALF):
        target = str(dtype).removeprefix("torch.")
        note(f"the weights in {folder} are {' and '.join(half)}; they were converted to {target}")
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
