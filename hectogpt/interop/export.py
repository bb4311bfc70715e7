"""A model as a folder for others: transformers, and by GGUF llama.cpp.

A model that is GPT-2 becomes a GPT2LMHeadModel. Any other comes with one file of its own code (remote_code.py). The
folder is written beside its place and gets its name when it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hectogpt import errors
from hectogpt.data import Tokenizer
from hectogpt.data.tokenizer import VOCABULARY_SHA256
from hectogpt.errors import UserError
from hectogpt.files import remove_leftovers, replace_folder, replacing, temporary_folder, write_atomic
from hectogpt.idea_file import IdeaFile, imported
from hectogpt.interop import gguf_file, remote_code
from hectogpt.interop.gpt2_names import to_huggingface
from hectogpt.interop.hf_config import gpt2_differences, write_config
from hectogpt.interop.hf_tokenizer import tokenizer_config, tokenizer_json
from hectogpt.interop.model_card import read_facts, title_of, write_card
from hectogpt.interop.open import find_folder, ideas_of, open_model
from hectogpt.json_files import read_bytes
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import MODEL_TYPE, saved_tensors
from hectogpt.serialization import IDEA_MODULE, classes_in

README = "README.md"
LARGEST_CARD = 1 << 20  # bytes of a README that is taken along
# All that an export writes; a folder with anything else is not replaced.
OURS = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
OURS |= {README, remote_code.FILE, gguf_file.FILE}
CACHED = "__pycache__"  # Python leaves it beside a modelling file


@dataclass(frozen=True)
class Exported:
    """What was written. kind: "GPT2LMHeadModel", "HectoGPTForCausalLM" or "gguf". differences: field -> (GPT-2's value,
    this model's), empty for a GPT-2. files: their names, in the folder."""

    folder: Path
    kind: str
    differences: dict[str, tuple[Any, Any]]
    files: tuple[str, ...]


def export(
    source: str | Path,
    folder: Path,
    to: Literal["hf", "gguf"] = "hf",
    *,
    overwrite: bool = False,
    idea: Sequence[Path | str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write the model of a run, of a folder in Hugging Face's layout, or of a name on the hub into `folder`.

    to: "hf" for transformers, "gguf" for llama.cpp. overwrite: replace an earlier export in `folder`.
    idea: the user's own files whose classes the model has, as for `open_model`.

    Raises UserError: USAGE for a folder that is not empty and for a model that GGUF has no name for, STORAGE for what
    cannot be written, and what `open_model` raises. Nothing is left of an export that fails.
    """
    check_target(folder, overwrite)
    target = folder.resolve()
    place = find_folder(source, download=True)
    model, tokenizer = open_model(place, idea=idea, note=note)
    differences = gpt2_differences(model.config)
    name = place.name if place.resolve() == Path(source).resolve() else str(source)  # no path, which tells of a home
    write = _write_gguf if to == "gguf" else _write_remote if differences else _write_gpt2
    new, missing = temporary_folder(target), [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        new.mkdir()
        kind = write(_Job(model, tokenizer, place, name, new, folder, differences))
        written = tuple(sorted(path.name for path in new.iterdir()))
        replace_folder(new, target)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}", why=error.strerror or str(error), fix="another folder", code=errors.STORAGE
        ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
        for parent in missing if not target.exists() else ():
            with contextlib.suppress(OSError):
                parent.rmdir()
    return Exported(folder, kind, differences, written)


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that is not empty: without `overwrite` any, with it one that holds more than an export.
    Raises UserError."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file", fix="name a folder", kept="the file, untouched")
    if folder.samefile("."):
        raise UserError(f"{folder} is where you are", why="it would be replaced", fix="name a folder inside it")
    found = sorted(path.name for path in folder.iterdir())
    if not found:
        return
    foreign = [name for name in found if name not in OURS and name != CACHED and not _is_idea(name)]
    if foreign or not overwrite:
        why = f"it holds {', '.join((foreign or found)[:4])}{' and more' if len(foreign or found) > 4 else ''}"
        fix = "name another folder" + ("" if foreign else ", or set overwrite to True")
        raise UserError(f"{folder} is not empty", why=why, fix=fix, kept="the folder, untouched")


def _is_idea(name: str) -> bool:
    return name.startswith("idea") and name.endswith(".py")


@dataclass(frozen=True)
class _Job:
    """One export. place: the model's folder. name: as the user wrote it. new: where to write. target: where it goes."""

    model: Transformer
    tokenizer: Tokenizer
    place: Path
    name: str
    new: Path
    target: Path
    differences: dict[str, tuple[Any, Any]]


def _write_gpt2(job: _Job) -> str:
    config = write_config(job.model.config, job.tokenizer.end_of_text, _dtype(job.model))
    state = to_huggingface(saved_tensors(job.model), job.model.config.n_layers, tied=job.model.config.lm_head.tied)
    _write_shared(job, config, state)
    return "GPT2LMHeadModel"


def _write_remote(job: _Job) -> str:
    settings = job.model.config
    ideas = _ideas_of(job.model)
    code = remote_code.assemble(settings, ideas)
    kept = {f"idea{'' if n == 1 else f'_{n}'}.py": idea for n, idea in enumerate(ideas, start=1)}
    names = {source.sha256: Path(source.path).name for source in ideas_of(job.place)}
    compact = job.model.lm_head.row_of_token is not None
    config = {
        "architectures": ["HectoGPTForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {
            "AutoConfig": f"{remote_code.FILE.removesuffix('.py')}.HectoGPTConfig",
            "AutoModelForCausalLM": f"{remote_code.FILE.removesuffix('.py')}.HectoGPTForCausalLM",
        },
        "model": remote_code.settings(settings),
        "head_rows": len(job.model.lm_head.weight) if compact else None,
        "ideas": [
            {"file": file, "path": names.get(idea.sha256, idea.path.name), "sha256": idea.sha256}
            for file, idea in kept.items()
        ],
        "vocab_size": settings.vocab_size,
        "max_position_embeddings": settings.context_length,
        "hidden_size": settings.d_model,
        "num_hidden_layers": settings.n_layers,
        "num_attention_heads": settings.n_heads,
        "bos_token_id": job.tokenizer.end_of_text,
        "eos_token_id": job.tokenizer.end_of_text,
        "tie_word_embeddings": settings.lm_head.tied,
        "use_cache": True,
        "dtype": _dtype(job.model),
    }
    write_atomic(job.new / remote_code.FILE, code)
    for file, idea in kept.items():
        write_atomic(job.new / file, idea.source)
    _write_shared(job, config, remote_code.state_of(job.model))
    return "HectoGPTForCausalLM"


def _write_gguf(job: _Job) -> str:
    if job.differences:
        fields = ", ".join(job.differences)
        raise UserError(
            f"the model of {job.name} cannot be written as GGUF",
            why=f"llama.cpp knows GPT-2, and this model differs from it in {fields}",
            fix="set to to hf: a folder with the model's own code, for transformers",
        )
    gguf_file.write(job.model, job.tokenizer, job.new / gguf_file.FILE, title_of(read_facts(job.place), job.name))
    _write_card(job)
    return "gguf"


def _write_shared(job: _Job, config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """The files that every folder for transformers has."""
    end = job.tokenizer.end_of_text
    _write_json(job.new / "config.json", config)
    _write_json(job.new / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
    path = job.new / "model.safetensors"
    try:
        with replacing(path) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"cannot write {path}", why=str(error), code=errors.STORAGE) from None
    _write_json(job.new / "tokenizer.json", tokenizer_json(job.tokenizer), indent=None)
    _write_json(job.new / "tokenizer_config.json", tokenizer_config(job.model.config.context_length))
    _write_card(job)


def _write_card(job: _Job) -> None:
    """README.md: of a run a new one; of another folder its own, which says whose the weights are."""
    old = job.place / README
    if not (job.place / "run.json").exists() and old.is_file():
        write_atomic(job.new / README, read_bytes(old, LARGEST_CARD))
        return
    parameters = sum(p.numel() for p in job.model.parameters())
    own = job.tokenizer.sha256 != VOCABULARY_SHA256
    card = write_card(read_facts(job.place), job.name, job.target.name, parameters, job.differences, own)
    write_atomic(job.new / README, card)


def _ideas_of(model: Transformer) -> list[IdeaFile]:
    """The users' own files whose classes the model has."""
    modules = dict.fromkeys(kind.__module__ for kind in classes_in(model.config))
    found = [imported(module) for module in modules if module.startswith(IDEA_MODULE)]
    return [idea for idea in found if idea is not None]


def _write_json(path: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    write_atomic(path, json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def _dtype(model: Transformer) -> str:
    return str(model.embeddings.weight.dtype).removeprefix("torch.")
