"""A model on disk: config.json and model.safetensors in one folder, with the textbook's tensor names.

Only numbers are read back, never code; a file that does not match its config is refused with the first differences.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import replacing, write_atomic
from hectogpt.model.config import ModelConfig
from hectogpt.model.transformer import Transformer
from hectogpt.serialization import dump, load

MODEL_TYPE = "hectogpt"


def save_model(model: Transformer, folder: Path) -> None:
    """Write config.json and model.safetensors, each complete or not at all. Raises UserError (STORAGE)."""
    config = {"model_type": MODEL_TYPE} | dump(model.config)
    write_atomic(folder / "config.json", json.dumps(config, indent=2, allow_nan=False) + "\n")
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    if model.config.lm_head.tied:
        del state["lm_head.weight"]  # one tensor, stored once; the config says that it is shared
    path = folder / "model.safetensors"
    try:
        with replacing(path) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}", why=str(error), code=errors.STORAGE) from None


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
    """Read a model that save_model wrote, on the CPU, in evaluation mode. Raises UserError (CHECKPOINT)."""
    config = read_config(folder)
    if config.pop("model_type", None) != MODEL_TYPE:
        raise UserError(f"{folder / 'config.json'} is not a hectogpt model's", code=errors.CHECKPOINT)
    try:
        parsed = load(ModelConfig, config)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error.what}", why=error.why, code=errors.CHECKPOINT) from None
    return model_of(parsed, read_tensors(folder / "model.safetensors"), folder / "model.safetensors")


def model_of(config: ModelConfig, state: dict[str, torch.Tensor], path: Path) -> Transformer:
    """The model with these weights, which `path` held, on the CPU, in evaluation mode. Everything is checked before
    memory is taken. Raises UserError (CHECKPOINT)."""
    if config.lm_head.tied and "embeddings.weight" in state:
        state = state | {"lm_head.weight": state["embeddings.weight"]}
    with torch.device("meta"):
        model = Transformer(config)
    model.fit_to(state)
    check_tensors(model, state, path)
    unsaved = [m._buffers[name] for m in model.modules() for name in m._non_persistent_buffers_set]
    if any(buffer is not None and buffer.is_meta for buffer in unsaved):  # a part computes it: build the part for real
        with torch.random.fork_rng(devices=[]):  # its first weights are replaced at once
            model = Transformer(config)
        model.fit_to(state)
    model.load_state_dict(state, assign=True)
    if config.lm_head.tied:
        model.lm_head.tie(model.embeddings)
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
