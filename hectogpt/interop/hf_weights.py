"""The model in a folder in Hugging Face's layout: a GPT-2, or one of our own that was exported with its code.

GPT-2's names of tensors are a table that is read in both directions. The code in a folder is not run: the classes are
the package's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.interop.hf_config import parse_config
from hectogpt.model.config import ModelConfig
from hectogpt.model.transformer import Transformer, name_as_saved
from hectogpt.model.weights import MODEL_TYPE, check_header, model_of, read_config, read_tensors
from hectogpt.serialization import load

SAFETENSORS = "model.safetensors"
DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32"}  # the latter two of maps of ids
SAVE = "in transformers: AutoModelForCausalLM.from_pretrained(FOLDER{0}).save_pretrained(FOLDER, max_shard_size='99GB')"
HALF = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
PREFIX = "model."  # of the names of tensors in a model that was exported with its code
GPT2_PREFIX = "transformer."  # of every name in a GPT-2 but the head's; files on the hub may lack it
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)\Z")  # constants in old files

# GPT-2's name of a tensor -> ours, several where theirs is these on top of each other. In a layer both stand behind
# their prefix and before .weight and .bias. The weights of attn and mlp are [in, out] there (Conv1D), [out, in] here.
MODEL = {
    "wte.weight": ("embeddings.weight",),
    "wpe.weight": ("position_embeddings.weight",),
    "ln_f.weight": ("final_layer_norm.weight",),
    "ln_f.bias": ("final_layer_norm.bias",),
    "lm_head.weight": ("lm_head.weight",),
}
LAYER = {
    "ln_1": ("pre_layer_norm",),
    "ln_2": ("post_layer_norm",),
    "attn.c_attn": ("attention.W_q", "attention.W_k", "attention.W_v"),
    "attn.c_proj": ("attention.W_o",),
    "mlp.c_fc": ("mlp.fc1",),
    "mlp.c_proj": ("mlp.fc2",),
}


def names(n_layers: int) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """The table for a model of `n_layers` layers, without the prefix: their name, ours, whether it is transposed."""
    yield from ((theirs, ours, False) for theirs, ours in MODEL.items())
    for layer in range(n_layers):
        for theirs, ours in LAYER.items():
            for kind in ("weight", "bias"):
                names = tuple(f"backbone.{layer}.{name}.{kind}" for name in ours)
                yield f"h.{layer}.{theirs}.{kind}", names, ".c_" in theirs and kind == "weight"


def is_mask(name: str) -> bool:
    """Whether a tensor of a Hugging Face file is one of the constants in old files."""
    return MASKS.match(name.removeprefix(GPT2_PREFIX)) is not None


def to_ours(state: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """Rename, split and transpose a Hugging Face state dict, with or without the prefix. Mask constants are dropped.

    A head that the file lacks stays absent (it is tied). Names that are not in the table are kept, so that
    `check_tensors` reports them.
    """
    left = {key.removeprefix(GPT2_PREFIX): tensor for key, tensor in state.items() if not is_mask(key)}
    result: dict[str, Tensor] = {}
    for theirs, ours, transposed in names(n_layers):
        if (tensor := left.pop(theirs, None)) is not None:
            tensor = tensor.t() if transposed and tensor.dim() == 2 else tensor
            parts = tensor.tensor_split(len(ours), dim=0) if tensor.dim() else (tensor,) * len(ours)
            result |= {name: part.contiguous() for name, part in zip(ours, parts, strict=True)}
    return result | left


def to_huggingface(state: dict[str, Tensor], n_layers: int, *, tied: bool) -> dict[str, Tensor]:
    """The inverse of `to_ours`: the state dict of a GPT2LMHeadModel, contiguous. A tied head is left out."""
    result = {}
    for theirs, ours, transposed in names(n_layers):
        if theirs != "lm_head.weight" or not tied:
            tensor = torch.cat([state[name] for name in ours])
            name = theirs if theirs == "lm_head.weight" else GPT2_PREFIX + theirs
            result[name] = (tensor.t() if transposed else tensor).contiguous()
    return result


def load_gpt2(folder: Path, note: Callable[[str], None] = lambda text: None) -> Transformer:
    """The folder's model, on the CPU, in evaluation mode. Float64 weights stay so; all others become float32, and
    `note` gets a sentence if they were not float32 before.

    Raises UserError (CHECKPOINT) for files that are missing, damaged or not GPT-2's, and for weights that are not
    float64, float32, float16 or bfloat16.
    """
    config = parse_config(read_config(folder), str(folder / "config.json"))
    path = find_weights(folder)
    return model_of(config, to_ours(widened(read_tensors(path), folder, note), config.n_layers), path)


def is_exported(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of an exported model; a run's has the model's fields themselves."""
    return config.get("model_type") == MODEL_TYPE and isinstance(config.get("model"), dict)


def load_exported(folder: Path, fields: dict[str, Any], note: Callable[[str], None]) -> Transformer:
    """The model of a folder that `hectogpt export` wrote with code of its own; `fields` is "model" of its config.json.
    Else as `load_gpt2`."""
    path = find_weights(folder)
    state = widened(read_tensors(path), folder, note)
    try:
        settings = load(ModelConfig, fields)
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
    dtypes = {tensor.dtype for name, tensor in state.items() if tensor.is_floating_point() and not is_mask(name)}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    if half := sorted(HALF[kind] for kind in dtypes if kind in HALF):
        target = str(dtype).removeprefix("torch.")
        note(f"the weights in {folder} are {' and '.join(half)}; they were converted to {target}")
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
