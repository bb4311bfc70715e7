"""GPT-2's tensors in a Hugging Face file and here: one table of names, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Name:
    """The name of one tensor in a Hugging Face file, and its names here.

    ours: several names where the file stacks several of our tensors along the output dimension, in this order.
    transposed: the file stores [in, out] (Conv1D); here it is [out, in].
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


MODEL = (
    Name("wte.weight", ("embeddings.weight",)),
    Name("wpe.weight", ("position_embeddings.weight",)),
    Name("ln_f.weight", ("final_layer_norm.weight",)),
    Name("ln_f.bias", ("final_layer_norm.bias",)),
)
LAYER = (
    *(
        Name(f"{theirs}.{kind}", (f"{ours}.{kind}",))
        for theirs, ours in (("ln_1", "pre_layer_norm"), ("ln_2", "post_layer_norm"))
        for kind in ("weight", "bias")
    ),
    *(
        Name(f"{theirs}.{kind}", tuple(f"{name}.{kind}" for name in ours), transposed=kind == "weight")
        for theirs, ours in (
            ("attn.c_attn", ("attention.W_q", "attention.W_k", "attention.W_v")),
            ("attn.c_proj", ("attention.W_o",)),
            ("mlp.c_fc", ("mlp.fc1",)),
            ("mlp.c_proj", ("mlp.fc2",)),
        )
        for kind in ("weight", "bias")
    ),
)
HEAD = Name("lm_head.weight", ("lm_head.weight",))
PREFIX = "transformer."  # of every name but the head's; files on the hub may lack it
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)\Z")  # constants in old files


def names(n_layers: int) -> Iterator[Name]:
    """The table for a model of `n_layers` layers, without the prefix and without the head."""
    yield from MODEL
    for layer in range(n_layers):
        for name in LAYER:
            ours = tuple(f"backbone.{layer}.{part}" for part in name.ours)
            yield Name(f"h.{layer}.{name.theirs}", ours, name.transposed)


def is_mask(name: str) -> bool:
    """Whether a tensor of a Hugging Face file is one of the constants in old files."""
    return MASKS.match(name.removeprefix(PREFIX)) is not None


def to_ours(state: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """Rename, split and transpose a Hugging Face state dict, with or without the prefix. Mask constants are dropped.

    A head that the file lacks stays absent (it is tied). Names that are not in the table are kept, so that
    `check_tensors` reports them.
    """
    left = {key.removeprefix(PREFIX): tensor for key, tensor in state.items() if not is_mask(key)}
    result: dict[str, Tensor] = {}
    for name in (*names(n_layers), HEAD):
        tensor = left.pop(name.theirs, None)
        if tensor is None:
            continue
        tensor = tensor.t() if name.transposed and tensor.dim() == 2 else tensor
        parts = tensor.tensor_split(len(name.ours), dim=0) if tensor.dim() else (tensor,) * len(name.ours)
        result |= {ours: part.contiguous() for ours, part in zip(name.ours, parts, strict=True)}
    return result | left


def to_huggingface(state: dict[str, Tensor], n_layers: int, *, tied: bool) -> dict[str, Tensor]:
    """The inverse of `to_ours`: the state dict of a GPT2LMHeadModel, contiguous. A tied head is left out."""
    result = {}
    for name in (*names(n_layers), *(() if tied else (HEAD,))):
        tensor = torch.cat([state[ours] for ours in name.ours])
        key = name.theirs if name is HEAD else PREFIX + name.theirs
        result[key] = (tensor.t() if name.transposed else tensor).contiguous()
    return result
