"""GPT-2 in Hugging Face's layout: config.json, model.safetensors, vocab.json and merges.txt or tokenizer.json.

Reads a local folder or a name on the hub. Refuses pickled weights (.bin, .pt) and models that are not GPT-2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hectogpt import errors
from hectogpt.data import Tokenizer, load_tokenizer
from hectogpt.errors import UserError
from hectogpt.model.config import ModelConfig
from hectogpt.model.folder import check_tensors, read_config, read_tensors
from hectogpt.model.parts import Head, LayerNorm
from hectogpt.model.transformer import Transformer

FILES = ("config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer.json")
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z")
HUB_SECONDS = 5.0  # to wait for the hub's answer

# --- names ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """One tensor's name there and its names here. `transposed`: stored [in, out] there (Conv1D), [out, in] here.
    Several names here are stacked there along the output, in this order."""

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


TABLE = (
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
PREFIX = "transformer."
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)\Z")  # constants that old files carry


def names(n_layers: int) -> Iterator[Name]:
    """The whole table for a model of so many layers, without the prefix and without the head."""
    yield from TABLE
    for layer in range(n_layers):
        for name in LAYER:
            ours = tuple(f"backbone.{layer}.{part}" for part in name.ours)
            yield Name(f"h.{layer}.{name.theirs}", ours, name.transposed)


def from_theirs(state: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """Rename, split and transpose a Hugging Face state dict, with or without the prefix; mask buffers are dropped.

    A head that the file lacks stays absent (it is tied). Names that are not GPT-2's are kept, for check_tensors to
    report.
    """
    left = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    left = {key: tensor for key, tensor in left.items() if not MASKS.match(key)}
    result: dict[str, Tensor] = {}
    for name in (*names(n_layers), HEAD):
        tensor = left.pop(name.theirs, None)
        if tensor is None:
            continue
        tensor = tensor.t() if name.transposed and tensor.dim() == 2 else tensor
        parts = tensor.tensor_split(len(name.ours), dim=0) if tensor.dim() else (tensor,) * len(name.ours)
        result |= {ours: part.contiguous() for ours, part in zip(name.ours, parts, strict=True)}
    return result | left


def to_theirs(state: dict[str, Tensor], n_layers: int, *, tied: bool) -> dict[str, Tensor]:
    """The inverse: a state dict of ours as GPT2LMHeadModel's, contiguous; a tied head is left out."""
    result = {}
    for name in (*names(n_layers), *(() if tied else (HEAD,))):
        tensor = torch.cat([state[ours] for ours in name.ours])
        key = name.theirs if name is HEAD else PREFIX + name.theirs
        result[key] = (tensor.t() if name.transposed else tensor).contiguous()
    return result


# --- config.json ------------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 10**7, "n_positions": 10**6, "n_embd": 10**5, "n_layer": 1000, "n_head": 10**4}
# Settings under which GPT-2's formulas change, and the values under which they do not.
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True, False),
}
DEFAULTS = {name: values[0] for name, values in FIXED.items()} | {"layer_norm_epsilon": 1e-5}


def parse_config(config: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """Sizes of a GPT-2 from its config.json. Raises UserError (CHECKPOINT) that lists every problem at once."""
    problems = []
    for name, most in SIZES.items():
        value = config.get(name)
        if type(value) is not int or not 1 <= value <= most:
            problems.append(f"{name} is {_shown(config, name)}, expected a whole number from 1 to {most:,}")
    if not problems and config["n_embd"] % config["n_head"]:
        problems.append(f"n_embd {config['n_embd']} is not divisible by n_head {config['n_head']}")
    chosen = DEFAULTS | config
    for name, allowed in FIXED.items():
        if not any(chosen[name] is value or (isinstance(value, str) and chosen[name] == value) for value in allowed):
            expected = " or ".join(json.dumps(value) for value in allowed)
            problems.append(f"{name} is {_shown(config, name)}, expected {expected}")
    inner = config.get("n_inner")
    if inner is not None and (type(inner) is not int or inner != 4 * (config.get("n_embd") or 0)):
        problems.append(f"n_inner is {_shown(config, 'n_inner')}, expected null or 4 n_embd")
    epsilon = chosen["layer_norm_epsilon"]
    if type(epsilon) is not float or not 0 < epsilon < 1:
        problems.append(f"layer_norm_epsilon is {_shown(config, 'layer_norm_epsilon')}, expected one between 0 and 1")
    if problems:
        raise UserError(f"{where} is not a GPT-2's", why="; ".join(problems), code=errors.CHECKPOINT)
    return ModelConfig(
        d_model=config["n_embd"],
        n_heads=config["n_head"],
        n_layers=config["n_layer"],
        context_length=config["n_positions"],
        vocab_size=config["vocab_size"],
        norm=LayerNorm(eps=epsilon),
        head=Head(tied=chosen["tie_word_embeddings"]),
    )


def _shown(config: dict[str, Any], name: str) -> str:
    return repr(config[name])[:40] if name in config else "missing"


# --- reading ----------------------------------------------------------------------------------------------------------


def load_model(folder: Path) -> Transformer:
    """The model of a local folder, on the CPU, in evaluation mode; float64 weights stay, all others become float32.

    Raises UserError (CHECKPOINT) for what is missing, damaged or not GPT-2.
    """
    config = parse_config(read_config(folder), str(folder / "config.json"))
    path = folder / "model.safetensors"
    if not path.exists():
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        sharded = (folder / "model.safetensors.index.json").exists()
        raise UserError(
            f"no model.safetensors in {folder}",
            why=f"{pickled[0]} is a pickle, and reading one can run code"
            if pickled
            else "its weights are split over several files"
            if sharded
            else "the folder holds no weights",
            fix="in transformers: GPT2LMHeadModel.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            if pickled or sharded
            else "copy the model's model.safetensors there",
            code=errors.CHECKPOINT,
        )
    state = from_theirs(read_tensors(path), config.n_layers)
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in state.values()) else torch.float32
    if config.head.tied and "embeddings.weight" in state:
        state["lm_head.weight"] = state["embeddings.weight"]
    with torch.device("meta"):
        model = Transformer(config)
    check_tensors(model, state, path)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
    if config.head.tied:
        model.lm_head.weight = model.embeddings.weight
    return model.eval()


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The byte-level BPE of a local folder; GPT-2's own where the folder has none and the size is GPT-2's.

    Raises UserError (DATA) if the files describe another kind of tokenizer, or do not fit each other or the model.
    """
    source = "tokenizer.json" if (folder / "tokenizer.json").exists() else "merges.txt"
    if not (folder / source).exists():
        own = load_tokenizer()
        if own.n_vocab == vocab_size:
            return own
        raise _no_tokenizer(
            folder, f"it has neither tokenizer.json nor merges.txt, and {vocab_size:,} ids, not GPT-2's"
        )
    if source == "tokenizer.json":
        vocabulary: dict[str, Any] | None
        merges, vocabulary = _parse_tokenizer_json(folder / source)
    else:
        merges = _read(folder / source).rstrip("\n").encode()
        vocabulary = _json(folder / "vocab.json") if (folder / "vocab.json").exists() else None
    tokenizer = Tokenizer(merges, name=folder.name)
    if vocabulary is not None and vocabulary != tokenizer.vocabulary():
        expected = tokenizer.vocabulary()
        odd = next((t for t in expected if vocabulary.get(t) != expected[t]), None) or next(
            t for t in vocabulary if t not in expected
        )
        raise _no_tokenizer(
            folder,
            f"{odd!r} has id {vocabulary.get(odd)}, where GPT-2's rule (256 bytes, the merges in order, end-of-text) "
            f"gives {expected.get(odd)}",
        )
    if tokenizer.n_vocab > vocab_size:
        raise _no_tokenizer(folder, f"it has {tokenizer.n_vocab:,} ids, the model {vocab_size:,}")
    return tokenizer


def _parse_tokenizer_json(path: Path) -> tuple[bytes, dict[str, int]]:
    """Merges in merges.txt's form, and token -> id."""
    content = _json(path)
    model = content.get("model")
    split = content.get("pre_tokenizer")
    if not isinstance(model, dict) or not isinstance(split, dict):
        raise _no_tokenizer(path.parent, f"{path.name} has no model or no pre_tokenizer")
    if model.get("type", "BPE") != "BPE" or split.get("type") != "ByteLevel" or split.get("add_prefix_space"):
        raise _no_tokenizer(path.parent, f"{path.name} is not a byte-level BPE with GPT-2's word pattern")
    merges: Any = model.get("merges")
    vocabulary: Any = model.get("vocab")
    if not isinstance(merges, list) or not isinstance(vocabulary, dict):
        raise _no_tokenizer(path.parent, f"{path.name} lacks its merges or its vocabulary")
    lines = [merge if isinstance(merge, str) else " ".join(map(str, merge)) for merge in merges]
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("content"), str) and isinstance(token.get("id"), int):
            vocabulary[token["content"]] = token["id"]
    return "\n".join(lines).encode(), vocabulary


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}", why=str(error), code=errors.DATA) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}", why=str(error), code=errors.DATA) from None
    if not isinstance(content, dict):
        raise UserError(f"cannot read {path}", why="it is not a JSON object", code=errors.DATA)
    return content


def _no_tokenizer(folder: Path, why: str) -> UserError:
    fix = "use the vocab.json and merges.txt that GPT-2 came with"
    return UserError(f"no usable tokenizer in {folder}", why=why, fix=fix, code=errors.DATA)


def fetch(name: str) -> Path:
    """The folder of a hub model: from the hub's cache on this machine if it is there, else downloaded.

    Raises UserError (CHECKPOINT) within seconds where the hub cannot be reached, telling what to copy where.
    """
    by_hand = f"copy {', '.join(FILES[:4])} into a folder and name that folder"
    if not HUB_NAME.match(name):
        raise UserError(f"no folder {name!r}", why="and it cannot be a name on the hub", fix=by_hand)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(
            f"no folder {name!r}",
            why="to look for it on the hub, the package huggingface_hub is needed",
            fix=f"python -m pip install 'hectogpt[hf]', or {by_hand}",
        ) from None
    patterns = list(FILES)
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        if (folder / "model.safetensors").exists():
            return folder
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=HUB_SECONDS))
    except (HfHubHTTPError, OSError, ValueError) as error:  # LocalEntryNotFoundError is one of them
        raise UserError(
            f"{name!r} is neither a folder here nor a model that the hub gave",
            why=str(error).strip().splitlines()[0][:200],
            fix=by_hand,
            code=errors.CHECKPOINT,
        ) from None


def load_pretrained(name_or_folder: str | Path) -> tuple[Transformer, Tokenizer]:
    """GPT-2 and its tokenizer, from a local folder in Hugging Face's layout or a name on the hub, such as "gpt2"."""
    folder = Path(name_or_folder)
    if not folder.is_dir():
        folder = fetch(str(name_or_folder))
    model = load_model(folder)
    return model, read_tokenizer(folder, model.config.vocab_size)
