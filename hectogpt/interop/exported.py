"""A model that was exported with its own code, read back: its settings, its tensors and their names.

The code in the folder is not run: the classes are the package's own, or those of the user's file that came along.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.model.config import ModelConfig
from hectogpt.model.transformer import Transformer, name_as_saved
from hectogpt.model.weights import MODEL_TYPE, model_of
from hectogpt.serialization import load

PREFIX = "model."  # of the names of tensors


def is_exported(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of an exported model; a run's has the model's fields themselves."""
    return config.get("model_type") == MODEL_TYPE and isinstance(config.get("model"), dict)


def build_exported(config: dict[str, Any], state: dict[str, Tensor], folder: Path) -> Transformer:
    """The model of a folder with these tensors, on the CPU, in evaluation mode. Raises UserError (CHECKPOINT)."""
    try:
        settings = load(ModelConfig, config["model"])
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error.what}", why=error.why, code=errors.CHECKPOINT) from None
    named = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    return model_of(settings, name_as_saved(named), folder / "model.safetensors")
