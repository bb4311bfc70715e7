"""Export a model as a folder for other programs: transformers, or llama.cpp through GGUF.

A model that is a GPT-2 becomes a GPT2LMHeadModel. Any other model is exported with its code, a
copy of modeling_hectogpt.py. The folder is written under a temporary name, opened again, and
renamed only if its logits equal the model's.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hectogpt import errors
from hectogpt.data import Tokenizer
from hectogpt.data.tokenizer import END_OF_TEXT
from hectogpt.display import Note
from hectogpt.errors import CheckpointError, SetTo, UserError
from hectogpt.files import (
    check_free,
    lock,
    read_bytes,
    remove_leftovers,
    replacing_folder,
    write_atomic,
    write_json,
)
from hectogpt.interop import gguf_file
from hectogpt.interop.hf_model import PREFIX, gpt2_differences, to_huggingface, write_config
from hectogpt.interop.model_card import read_facts, title_of, write_card
from hectogpt.interop.open import (
    find_checkpoint,
    find_folder,
    ideas_of,
    is_readable,
    open_model,
    read_fields,
)
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import MODEL_TYPE, hash_weights, saved_tensors
from hectogpt.run_records import HASH, RUN
from hectogpt.serialization import dump

README = "README.md"
LARGEST_CARD = 1 << 20  # bytes; a longer README is not copied
CODE = "modeling_hectogpt.py"
# All files that an export writes, and Python's __pycache__. A folder that contains anything else
# is never replaced.
OURS = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    README,
    CODE,
    gguf_file.FILE,
    "__pycache__",
}
CHECKED_TOKENS = 64  # tokens per row in the check of an export
# The largest allowed difference of the logits, relative to the largest logit.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        folder: where it was written.
        kind: "GPT2LMHeadModel", "HectoGPTForCausalLM" or "gguf".
        differences: field -> (GPT-2's value, this model's); empty for a GPT-2.
        files: the names of the files in the folder.
        weights_hash: the hash of the weights, as in metrics.jsonl.
    """

    folder: Path
    kind: str
    differences: dict[str, tuple[Any, Any]]
    files: tuple[str, ...]
    weights_hash: str


def export(
    source: str | Path,
    folder: Path,
    to: Literal["hf", "gguf"] = "hf",
    *,
    step: int | None = None,
    overwrite: bool = False,
    note: Note = warnings.warn,
    opened: tuple[Transformer, Tokenizer] | None = None,
) -> Exported:
    """Write a model into `folder`, in a format that other programs read.

    Args:
        source: a run folder, a folder in Hugging Face's layout, or a name on the hub.
        folder: the folder to write.
        to: "hf" for transformers, "gguf" for llama.cpp.
        step: the step of a run to export, as in `open_model`.
        overwrite: replace an earlier export in `folder`.
        note: called with a sentence if the export cannot be checked because transformers is not
            installed, and in the cases that `open_model` lists.
        opened: the model after `step` and its tokenizer, if the run's folder does not have them.

    Raises UserError: USAGE for a folder that is not empty, a model that GGUF cannot express, or
    one with classes from a user's own file; STORAGE if writing fails; CHECKPOINT if the exported
    model does not compute the same logits; LOCKED while another process exports to `folder`; and
    the errors of `open_model`. A failed export leaves nothing behind.
    """
    check_target(folder, overwrite)
    target = folder.resolve()
    place = find_folder(source, download=True)
    checkpoint = step if opened else find_checkpoint(place, step, note)
    fields = read_fields(place, checkpoint)
    sources = ideas_of(place)
    if fields and sources and not is_readable(fields):
        raise UserError(
            f"the model in {place} cannot be exported",
            why=f"it has classes from {' or '.join(source.path for source in sources)}, which "
            "other programs do not have",
            fix="share its folder, which hectogpt opens",
        )
    model, tokenizer = opened or open_model(
        place, step=step if checkpoint is None else checkpoint, note=note
    )
    differences = gpt2_differences(model.config)
    # Not a path, which would reveal the home folder.
    name = place.name if place.resolve() == Path(source).resolve() else str(source)
    kind = "gguf" if to == "gguf" else "HectoGPTForCausalLM" if differences else "GPT2LMHeadModel"
    if kind == "gguf" and differences:
        raise UserError(
            f"{source} cannot be written as GGUF",
            why="llama.cpp supports GPT-2, and this model differs from it in "
            f"{', '.join(differences)}",
            fix=(SetTo("to", "hf"), ": a folder with its own code, for transformers"),
        )
    facts = read_facts(place, checkpoint)
    try:
        with lock(target.with_name(f".{target.name}.lock"), folder, "exporting to it"):
            remove_leftovers(target)
            with replacing_folder(target, lambda: check_target(target, overwrite)) as new:
                if kind == "gguf":
                    gguf_file.write(model, tokenizer, new / gguf_file.FILE, title_of(facts, name))
                else:
                    _write_folder(new, model, tokenizer, has_code=bool(differences))
                    check_logits(new, kind, model, note)
                card: str | bytes = write_card(
                    facts,
                    name,
                    folder.name,
                    sum(p.numel() for p in model.parameters()),
                    differences,
                    not tokenizer.is_gpt2,
                    {"hf": "transformers"}.get(to, to),
                )
                if not (place / RUN).exists():
                    # The source's README names the owners of the weights.
                    with contextlib.suppress(OSError):
                        card = read_bytes(place / README, LARGEST_CARD)
                write_atomic(new / README, card)
                written = tuple(sorted(path.name for path in new.iterdir()))
    except (OSError, SafetensorError) as error:
        raise errors.unwritable(folder, error, fix="another folder") from None
    return Exported(folder, kind, differences, written, hash_weights(model))


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise UserError unless a folder is empty or, with `overwrite`, holds an earlier export.

    The current folder is always refused.
    """
    check_free(
        folder,
        lambda names: overwrite and OURS.issuperset(names),
        ("name another folder, or, to replace an export, ", SetTo("overwrite", True)),
    )
    if folder.is_dir() and folder.samefile("."):
        raise UserError(
            f"{folder} is the current folder, and would be replaced", fix="name another folder"
        )


# --- writing


def _write_folder(folder: Path, model: Transformer, tokenizer: Tokenizer, has_code: bool) -> None:
    """Write the files that transformers reads, except README.md.

    They describe a GPT2LMHeadModel or, if `has_code`, a model with its own code.
    """
    config = model.config
    state = saved_tensors(model)
    end = tokenizer.end_of_text
    settings = {
        "bos_token_id": end,
        "eos_token_id": end,
        "tie_word_embeddings": config.lm_head.tied,
        "use_cache": True,
        "dtype": str(model.embeddings.weight.dtype).removeprefix("torch."),
        HASH: hash_weights(model),
    }
    if has_code:
        write_atomic(folder / CODE, Path(__file__).with_name(CODE).read_bytes())
        settings = _own_config(model) | settings
        state = {PREFIX + name: tensor for name, tensor in state.items()}
    else:
        settings = write_config(config) | settings
        state = to_huggingface(state, config.n_layers, tied=config.lm_head.tied)
    write_json(folder / "config.json", settings)
    write_json(folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "tokenizer.json", _tokenizer_json(tokenizer), indent=None)
    flags = {"add_prefix_space": False, "clean_up_tokenization_spaces": False}
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    about = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": config.context_length,
        **flags,
        **names,
    }
    write_json(folder / "tokenizer_config.json", about)


def _own_config(model: Transformer) -> dict[str, Any]:
    """The contents of config.json for a model with its own code."""
    config = model.config
    module = CODE.removesuffix(".py")
    return {
        "architectures": ["HectoGPTForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {
            "AutoConfig": f"{module}.HectoGPTConfig",
            "AutoModelForCausalLM": f"{module}.HectoGPTForCausalLM",
        },
        "model": dump(config),
        "head_rows": len(model.lm_head.weight) if config.lm_head.compact_vocab else None,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
    }


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of tokenizer.json.

    Other programs turn the text <|endoftext|> into the separator token; hectoGPT does not.
    """
    merges = [
        line
        for line in tokenizer.merges.decode("utf-8").splitlines()
        if not line.startswith("#version")
    ]
    by_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return {
        "version": "1.0",
        "added_tokens": [{"id": tokenizer.end_of_text, "content": END_OF_TEXT, **flags}],
        "pre_tokenizer": by_bytes,
        "post_processor": by_bytes | {"trim_offsets": False},
        "decoder": by_bytes,
        "model": {
            "type": "BPE",
            "vocab": tokenizer.vocabulary(),
            "merges": [line.split(" ") for line in merges],
        },
    }


# --- checking


def check_logits(folder: Path, kind: str, model: Transformer, note: Note) -> None:
    """Open the exported folder with transformers and compare its logits with the model's.

    Without transformers, only a note is given. The logits are compared with and without a cache.

    Raises UserError (CHECKPOINT) if they differ.
    """
    if util.find_spec("transformers") is None:
        note("the export was not checked, because transformers is not installed")
        return
    import transformers

    from hectogpt.interop.modeling_hectogpt import CACHE, HectoGPTForCausalLM

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    length = min(model.config.context_length, CHECKED_TOKENS)
    ids = torch.randint(
        model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0)
    )
    try:
        opened = transformers.GPT2LMHeadModel if kind == "GPT2LMHeadModel" else HectoGPTForCausalLM
        theirs = opened.from_pretrained(folder).eval()
        with torch.no_grad():
            ours = model(ids)
            first = theirs(ids[:, :1], use_cache=True)
            found = [theirs(ids, use_cache=False).logits, first.logits]
            if length > 1:
                found += [theirs(ids[:, 1:], use_cache=True, **{CACHE: first[CACHE]}).logits]
        worst = float((torch.cat(found, dim=1) - torch.cat((ours, ours), dim=1)).abs().max())
        why = f"its logits differ by {worst:.1e}; the largest is {float(ours.abs().max()):.1e}"
        same = worst <= TOLERANCE[ours.dtype] * max(1.0, float(ours.abs().max()))
    except Exception as error:  # unknown versions of transformers may raise any error
        same = False
        why = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    if not same:
        raise CheckpointError(
            "the model cannot be exported: transformers does not compute the same logits",
            why=why,
            fix="generate with hectogpt, which opens the model as it is",
            kept="nothing was written",
        )
