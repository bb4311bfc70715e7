"""The model in a folder in Hugging Face's layout: a GPT-2, or one of our own that was exported with its code.

The code in a folder is not run: the classes are the package's own, or those of the user's file that came along.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.interop.gpt2_names import is_mask, to_ours
from hectogpt.interop.hf_config import parse_config
from hectogpt.interop.weight_files import find_weights
from hectogpt.model.config import ModelConfig
from hectogpt.model.transformer import Transformer, name_as_saved
from hectogpt.model.weights import MODEL_TYPE, model_of, read_config
from hectogpt.serialization import load

HALF = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
PREFIX = "model."  # of the names of tensors in a model that was exported with its code


def load_gpt2(folder: Path, note: Callable[[str], None] = lambda text: None) -> Transformer:
    """The folder's model, on the CPU, in evaluation mode. Float64 weights stay so; all others become float32, and
    `note` is told if they were not float32 before.

    Raises UserError (CHECKPOINT) for files that are missing, damaged or not GPT-2's, and for weights that are not
    float64, float32, float16 or bfloat16.
    """
    config = parse_config(read_config(folder), str(folder / "config.json"))
    weights = find_weights(folder, is_mask)
    state = to_ours(widened(weights.read(), folder, note), config.n_layers)
    return model_of(config, state, weights.path)


def is_exported(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of an exported model; a run's has the model's fields themselves."""
    return config.get("model_type") == MODEL_TYPE and isinstance(config.get("model"), dict)


def load_exported(folder: Path, config: dict[str, Any], note: Callable[[str], None] = lambda text: None) -> Transformer:
    """The model of a folder that `hectogpt export` wrote with code of its own; `config` is its config.json. Else as
    `load_gpt2`."""
    weights = find_weights(folder, lambda name: False)
    state = widened(weights.read(), folder, note)
    try:
        settings = load(ModelConfig, config["model"])
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error.what}", why=error.why, code=errors.CHECKPOINT) from None
    # Earlier versions wrote the names of the package's modules, which differ from those of saved weights.
    named = name_as_saved({name.removeprefix(PREFIX): tensor for name, tensor in state.items()})
    return model_of(settings, named, weights.path)


def widened(state: dict[str, Tensor], folder: Path, note: Callable[[str], None]) -> dict[str, Tensor]:
    """The floating-point tensors in float64 if one of them is, else in float32; the others as they are."""
    found = {tensor.dtype for name, tensor in state.items() if tensor.is_floating_point() and not is_mask(name)}
    dtype = torch.float64 if torch.float64 in found else torch.float32
    if half := sorted(HALF[dtype] for dtype in found if dtype in HALF):
        target = str(dtype).removeprefix("torch.")
        note(f"the weights in {folder} are {' and '.join(half)}; they were converted to {target}")
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
