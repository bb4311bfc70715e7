"""Read and write models and tokenizers in Hugging Face's layout.

A folder holds a GPT-2, or one of our models with its code. config.json is converted to a
ModelConfig and back; settings that change GPT-2's formulas are refused. One table of GPT-2's
tensor names serves both directions. The code in a folder is never run: this package's own classes
are used instead.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hectogpt import errors
from hectogpt.data import Tokenizer, load_tokenizer
from hectogpt.data.tokenizer import MERGES, read_merges, tokenizer_of
from hectogpt.display import Note
from hectogpt.errors import CheckpointError, DataError, UserError
from hectogpt.files import read_json_object
from hectogpt.model.config import ModelConfig
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import LayerNorm
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import WEIGHTS, model_of, parse_config, read_config, read_tensors
from hectogpt.serialization import diff

# --- config.json

# GPT-2's name of each size -> ours.
SIZES = {
    "vocab_size": "vocab_size",
    "n_positions": "context_length",
    "n_embd": "d_model",
    "n_layer": "n_layers",
    "n_head": "n_heads",
}
# Settings that can change GPT-2's formulas, with the values that leave them unchanged. The first
# value is the default.
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
}


def parse_gpt2_config(config: dict[str, Any], folder: Path) -> ModelConfig:
    """The config of the GPT-2 in a folder.

    Raises UserError (CHECKPOINT) if it is not a GPT-2. The error lists the settings that are
    missing or change GPT-2's formulas.
    """
    width = config.get("n_embd")
    fixed = FIXED | {"n_inner": (None, 4 * width if isinstance(width, int) else None)}
    odd = [f"{name} is missing" for name in SIZES if name not in config]
    odd += [
        f"{n} is {config[n]!r:.40}"
        for n, values in fixed.items()
        if config.get(n, values[0]) not in values
    ]
    if odd:
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe a GPT-2",
            why="; ".join(odd),
        )
    fields = {ours: config[name] for name, ours in SIZES.items()}
    fields["norm"] = {"type": "LayerNorm", "eps": config.get("layer_norm_epsilon", 1e-5)}
    fields["lm_head"] = {"tied": config.get("tie_word_embeddings", True)}
    return parse_config(fields, folder)


def gpt2_differences(config: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """The fields in which a model differs from a GPT-2 of the same sizes.

    Returns field -> (GPT-2's value, this model's value). Settings that GPT-2's own config.json can
    express (sizes, the norm's epsilon, a tied head) do not count.
    """
    gpt2 = ModelConfig(
        config.d_model, config.n_heads, config.n_layers, config.context_length, config.vocab_size
    )
    gpt2 = replace(gpt2, lm_head=LMHeadConfig(tied=config.lm_head.tied))
    if type(config.norm) is LayerNorm:
        gpt2 = replace(gpt2, norm=config.norm)
    if not config.n_layers:  # transformers' cache refuses models without layers
        gpt2 = replace(gpt2, n_layers=1)
    return diff(gpt2, config)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The contents of config.json for a GPT2LMHeadModel.

    The inverse of `parse_gpt2_config`, except that a tied head is not mentioned. There is no
    dropout here, so all dropout probabilities are 0.
    """
    assert isinstance(config.norm, LayerNorm)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{name: getattr(config, ours) for name, ours in SIZES.items()},
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm.eps,
        "initializer_range": 0.02,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


# --- names of tensors

GPT2_PREFIX = "transformer."  # prefix of all names except the head's; files on the hub may lack it
# Mask constants in old files.
MASKS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)\Z")

# GPT-2's name of a tensor -> our name, or our names if GPT-2 stacks our tensors into one. In a
# layer, a prefix precedes both names, and .weight or .bias follows. GPT-2 stores the weights of
# attn and mlp as [in, out] (Conv1D); we store them as [out, in].
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
    """Yield the table of names for `n_layers` layers, without the prefix.

    Each row has GPT-2's name, our names, and True if our tensors are the transpose of GPT-2's.
    """
    yield from ((theirs, ours, False) for theirs, ours in MODEL.items())
    for layer in range(n_layers):
        for theirs, ours in LAYER.items():
            for kind in ("weight", "bias"):
                names = tuple(f"backbone.{layer}.{name}.{kind}" for name in ours)
                yield f"h.{layer}.{theirs}.{kind}", names, ".c_" in theirs and kind == "weight"


def to_ours(state: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """Rename, split and transpose a Hugging Face state dict, with or without the prefix.

    Mask constants are dropped. A tied head, which the file lacks, is not added. Names that are not
    in the table are kept, so that `check_tensors` reports them.
    """
    left = {
        key.removeprefix(GPT2_PREFIX): tensor
        for key, tensor in state.items()
        if not MASKS.match(key)
    }
    result: dict[str, Tensor] = {}
    for theirs, ours, transposed in names(n_layers):
        if (tensor := left.pop(theirs, None)) is not None:
            tensor = tensor.t() if transposed and tensor.dim() == 2 else tensor
            parts = (
                tensor.tensor_split(len(ours), dim=0) if tensor.dim() else (tensor,) * len(ours)
            )
            result |= {name: part.contiguous() for name, part in zip(ours, parts, strict=True)}
    return result | left


def to_huggingface(state: dict[str, Tensor], n_layers: int, *, tied: bool) -> dict[str, Tensor]:
    """The state dict of a GPT2LMHeadModel, with contiguous tensors; the inverse of `to_ours`.

    A tied head is left out.
    """
    result = {}
    for theirs, ours, transposed in names(n_layers):
        if theirs != "lm_head.weight" or not tied:
            tensor = torch.cat([state[name] for name in ours])
            name = theirs if theirs == "lm_head.weight" else GPT2_PREFIX + theirs
            result[name] = (tensor.t() if transposed else tensor).contiguous()
    return result


# --- the folder

FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
SAVE = (
    "in transformers: AutoModelForCausalLM.from_pretrained(FOLDER, "
    "dtype=torch.float32).save_pretrained(FOLDER, "
    "max_shard_size='99GB')"
)
PREFIX = "model."  # before tensor names in a model that was exported with its code


def load_gpt2(folder: Path, note: Note = warnings.warn) -> Transformer:
    """Load the GPT-2 in a folder, on the CPU and in evaluation mode.

    The weights become float64 if one of them is float64, and float32 otherwise. `note` is called
    with a sentence if 16-bit weights are converted.

    Raises UserError (CHECKPOINT) for files that are missing, damaged or not GPT-2's, and for
    weights that are not float64, float32, float16 or bfloat16.
    """
    config = parse_gpt2_config(read_config(folder), folder)
    return model_of(config, to_ours(read_weights(folder, note), config.n_layers), folder / WEIGHTS)


def load_exported(folder: Path, fields: dict[str, Any], note: Note) -> Transformer:
    """Load a model that `hectogpt export` wrote with its own code, as `load_gpt2` does.

    Args:
        folder: the folder.
        fields: the value of "model" in its config.json.
        note: called with a sentence if 16-bit weights are converted.
    """
    state = {
        name.removeprefix(PREFIX): tensor for name, tensor in read_weights(folder, note).items()
    }
    return model_of(parse_config(fields, folder), state, folder / WEIGHTS)


def read_weights(folder: Path, note: Note) -> dict[str, Tensor]:
    """The tensors of model.safetensors, in float64 if one of them is, otherwise in float32.

    Integers keep their dtype. Pickles are not read.

    Raises UserError (CHECKPOINT) if the file is missing, or has a floating-point dtype that is not
    in FLOATS.
    """
    path = folder / WEIGHTS
    if not os.path.lexists(path):
        raise CheckpointError(
            f"no {WEIGHTS} in {folder}",
            why="weights in several files and pickles (.bin, .pt), which can run code, are not "
            "read",
            fix=SAVE,
        )
    state = read_tensors(path)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if other := dtypes - FLOATS:
        raise CheckpointError(
            f"the weights in {path} cannot be used",
            why=f"some have the dtype {other.pop()}",
            fix=SAVE,
        )
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    if half := dtypes & {torch.float16, torch.bfloat16}:
        was, now = (
            " and ".join(sorted(str(d).removeprefix("torch.") for d in some))
            for some in (half, {dtype})
        )
        note(f"the weights in {folder} are {was}; they were converted to {now}")
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


# --- the folder's tokenizer: tokenizer.json, or merges.txt with vocab.json

TOKENIZER_FIX = "use the vocab.json and merges.txt that the model came with"


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Read the folder's byte-level BPE, for a model with `vocab_size` ids.

    A folder without tokenizer files gets GPT-2's own. Raises UserError (DATA) if the files
    describe a different kind of tokenizer, contradict each other, or differ from the model in the
    number of ids.
    """
    vocabulary: dict[str, Any] | None = None
    if os.path.lexists(folder / "tokenizer.json"):
        merges, vocabulary = _parse_tokenizer_json(folder / "tokenizer.json")
        tokenizer = tokenizer_of(merges, folder.name)
    elif os.path.lexists(folder / MERGES):
        tokenizer = read_merges(folder / MERGES, folder.name)
        if os.path.lexists(folder / "vocab.json"):
            vocabulary = _json(folder / "vocab.json")
    else:
        tokenizer = load_tokenizer()
    if vocabulary is not None and vocabulary != tokenizer.vocabulary():
        raise _no_tokenizer(
            folder,
            "its ids are not in GPT-2's order: 256 bytes, the merges in order, end-of-text",
        )
    if tokenizer.n_vocab != vocab_size:
        # A model with more ids could generate some that stand for no text.
        raise _no_tokenizer(
            folder, f"{tokenizer.name} has {tokenizer.n_vocab:,} ids; the model has {vocab_size:,}"
        )
    return tokenizer


def _parse_tokenizer_json(path: Path) -> tuple[bytes, dict[str, int]]:
    """Return the merges in the format of merges.txt, and token -> id."""
    content = _json(path)
    try:
        model = content["model"]
        split = content["pre_tokenizer"]
        if (
            model.get("type", "BPE") != "BPE"
            or split["type"] != "ByteLevel"
            or split.get("add_prefix_space")
        ):
            raise ValueError
        merges = [
            merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]
        ]
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        return "\n".join(merges).encode(), model["vocab"] | added
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
    ):
        # A part of the format is missing or has the wrong type.
        raise _no_tokenizer(
            path.parent, f"{path.name} is not a byte-level BPE with GPT-2's word pattern"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path, fix=TOKENIZER_FIX, code=errors.DATA)


def _no_tokenizer(folder: Path, why: str) -> UserError:
    return DataError(f"no usable tokenizer in {folder}", why=why, fix=TOKENIZER_FIX)
