"""A model on disk: config.json and model.safetensors in one folder, with the textbook's tensor names.

Only numbers are read back, never code; a file that does not match its config is refused with the first differences.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.model.config import ModelConfig
from hectogpt.model.transformer import Transformer
from hectogpt.values import dump, load

MODEL_TYPE = "hectogpt"


def save_model(model: Transformer, folder: Path) -> None:
    """Write config.json and model.safetensors, each complete or not at all."""
    config = {"model_type": MODEL_TYPE} | dump(model.config)
    write_text(folder / "config.json", json.dumps(config, indent=2, allow_nan=False) + "\n")
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    if model.config.head.tied:
        del state["lm_head.weight"]  # one tensor, stored once; the config says that it is shared
    temporary = folder / f".model.safetensors.{os.getpid()}"
    try:
        save_file(state, temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {folder / 'model.safetensors'}", why=str(error), code=errors.STORAGE) from None


def write_text(path: Path, text: str) -> None:
    """Replace a file by new text in one step, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}", why=error.strerror or str(error), code=errors.STORAGE) from None


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as a dict. Raises UserError (code CHECKPOINT) if there is none or it is not JSON."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no model in {folder}",
            why="it has no config.json",
            fix="name a folder that `hectogpt train` wrote, or one in Hugging Face's GPT-2 layout",
            code=errors.CHECKPOINT,
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}", why=str(error), code=errors.CHECKPOINT) from None
    if not isinstance(config, dict):
        raise UserError(f"cannot read {path}", why="it is not a JSON object", code=errors.CHECKPOINT)
    return config


def load_model(folder: Path) -> Transformer:
    """Read a model that save_model wrote, on the CPU, in evaluation mode."""
    config = read_config(folder)
    if config.pop("model_type", None) != MODEL_TYPE:
        raise UserError(f"{folder / 'config.json'} is not a hectogpt model's", code=errors.CHECKPOINT)
    try:
        model = Transformer(load(ModelConfig, config))
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error.what}", why=error.why, code=errors.CHECKPOINT) from None
    state = read_tensors(folder / "model.safetensors")
    if model.config.head.tied:
        state["lm_head.weight"] = state["embeddings.weight"]
    check_tensors(model, state, folder / "model.safetensors")
    model.load_state_dict(state)
    return model.eval()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. Raises UserError (code CHECKPOINT) if it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}", why=str(error), code=errors.CHECKPOINT) from None


def check_tensors(model: Transformer, state: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse a state whose names, shapes or numbers do not fit the model, naming the first few differences."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]}"
        for name, tensor in state.items()
        if name in expected and tuple(tensor.shape) != expected[name]
    ]
    if not problems:
        problems += [f"{name} is not finite" for name, tensor in state.items() if not tensor.isfinite().all()]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise UserError(
            f"{path} does not fit its config.json", why="; ".join(problems[:5]) + more, code=errors.CHECKPOINT
        )
