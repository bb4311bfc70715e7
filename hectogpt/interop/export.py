"""A model as a folder for others: transformers, and by GGUF llama.cpp.

A model that is GPT-2 becomes a GPT2LMHeadModel. Any other comes with modeling_hectogpt.py as it lies beside this file.
The folder is written beside its place, opened again, and gets its name when its logits are the model's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, util
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hectogpt import errors
from hectogpt.data import Tokenizer
from hectogpt.data.tokenizer import VOCABULARY_SHA256
from hectogpt.errors import UserError
from hectogpt.files import lock, remove_leftovers, replace_folder, replacing, temporary_folder, write_atomic
from hectogpt.idea_file import IdeaFile, imported
from hectogpt.interop import gguf_file
from hectogpt.interop.gpt2_names import to_huggingface
from hectogpt.interop.hf_config import gpt2_differences, write_config
from hectogpt.interop.hf_tokenizer import tokenizer_config, tokenizer_json
from hectogpt.interop.hf_weights import PREFIX
from hectogpt.interop.model_card import read_facts, title_of, write_card
from hectogpt.interop.open import find_checkpoint, find_folder, ideas_of, open_model
from hectogpt.json_files import read_bytes
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import MODEL_TYPE, saved_tensors
from hectogpt.serialization import IDEA_MODULE, classes_in, classes_of, dump

README = "README.md"
LARGEST_CARD = 1 << 20  # bytes of a README that is taken along
CODE = "modeling_hectogpt.py"
OWN_CODE = "modeling_own.py"  # the same with classes of the user's own files
# All that an export writes; a folder with anything else is not replaced.
OURS = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
OURS |= {README, CODE, OWN_CODE, gguf_file.FILE}
CACHED = "__pycache__"  # Python leaves it beside a modelling file
CHECKED_TOKENS = 64  # of the text with which an export is checked
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of logits, relative to the largest


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
    step: int | None = None,
    overwrite: bool = False,
    idea: Sequence[Path | str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write the model of a run, of a folder in Hugging Face's layout, or of a name on the hub into `folder`.

    to: "hf" for transformers, "gguf" for llama.cpp. step: of a run, as for `open_model`. overwrite: replace an earlier
    export in `folder`.
    idea: the user's own files whose classes the model has, as for `open_model`. note: is told where an export cannot be
    checked, because transformers is not installed.

    Raises UserError: USAGE for a folder that is not empty and for a model that GGUF has no name for, STORAGE for what
    cannot be written, CHECKPOINT for a model that does not compute the same there, LOCKED while another process exports
    to `folder`, and what `open_model` raises. Nothing is left of an export that fails.
    """
    check_target(folder, overwrite)
    target = folder.resolve()
    place = find_folder(source, download=True)
    at = find_checkpoint(place, step, note)
    model, tokenizer = open_model(place, step=step if at is None else at, idea=idea, note=note)
    differences = gpt2_differences(model.config)
    name = place.name if place.resolve() == Path(source).resolve() else str(source)  # no path, which tells of a home
    write = _write_gguf if to == "gguf" else _write_remote if differences else _write_gpt2
    new, missing = temporary_folder(target), [parent for parent in target.parents if not parent.exists()]
    try:
        with lock(target.parent / f".{target.name}.lock", f"exporting to {folder}", patience=0.0, remove=True):
            remove_leftovers(target)
            new.mkdir()
            kind = write(_Job(model, tokenizer, place, at, name, new, folder, differences))
            if to == "hf":
                check_logits(new, kind, model, note)
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


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """One export. place: the model's folder. step: of a run's checkpoint, if it is one. name: as the user wrote it.
    new: where to write. target: where it goes."""

    model: Transformer
    tokenizer: Tokenizer
    place: Path
    step: int | None
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
    ideas = {f"idea{'' if n == 1 else f'_{n}'}.py": idea for n, idea in enumerate(_ideas_of(job.model), start=1)}
    names = {source.sha256: Path(source.path).name for source in ideas_of(job.place)}
    module = (OWN_CODE if ideas else CODE).removesuffix(".py")
    config = {
        "architectures": ["HectoGPTForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {
            "AutoConfig": f"{module}.HectoGPTConfig",
            "AutoModelForCausalLM": f"{module}.HectoGPTForCausalLM",
        },
        "model": dump(settings),
        "head_rows": len(job.model.lm_head.weight) if settings.lm_head.compact_vocab else None,
        "ideas": [
            {"file": file, "path": names.get(idea.sha256, idea.path.name), "sha256": idea.sha256}
            for file, idea in ideas.items()
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
    write_atomic(job.new / CODE, Path(__file__).with_name(CODE).read_bytes())
    for file, idea in ideas.items():
        write_atomic(job.new / file, idea.source)
    if ideas:
        write_atomic(job.new / OWN_CODE, _own_code(job.model, ideas))
    _write_shared(job, config, {PREFIX + name: tensor for name, tensor in saved_tensors(job.model).items()})
    return "HectoGPTForCausalLM"


def _own_code(model: Transformer, ideas: dict[str, IdeaFile]) -> str:
    """The module that gives the modelling file the classes of the user's own files. They need hectogpt installed."""
    lines = ['"""The model with classes of its author\'s own, which need the package hectogpt."""', ""]
    kinds = dict.fromkeys(kind for kind in classes_in(model.config) if kind.__module__.startswith(IDEA_MODULE))
    for file, idea in ideas.items():
        own = sorted({kind.__name__ for kind in kinds if imported(kind.__module__) == idea})
        lines.append(f"from .{file.removesuffix('.py')} import {', '.join(own)}")
    lines.append("from .modeling_hectogpt import HectoGPTConfig, HectoGPTForCausalLM, add_part")
    lines += ["", '__all__ = ["HectoGPTConfig", "HectoGPTForCausalLM"]', ""]
    return "\n".join([*lines, *(f"add_part({kind.__name__})" for kind in kinds)]) + "\n"


def _write_gguf(job: _Job) -> str:
    if job.differences:
        fields = ", ".join(job.differences)
        raise UserError(
            f"the model of {job.name} cannot be written as GGUF",
            why=f"llama.cpp knows GPT-2, and this model differs from it in {fields}",
            fix="set to to hf: a folder with the model's own code, for transformers",
        )
    gguf_file.write(
        job.model, job.tokenizer, job.new / gguf_file.FILE, title_of(read_facts(job.place, job.step), job.name)
    )
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
    card = write_card(read_facts(job.place, job.step), job.name, job.target.name, parameters, job.differences, own)
    write_atomic(job.new / README, card)


def _ideas_of(model: Transformer) -> list[IdeaFile]:
    """The users' own files whose classes the model has. Raises UserError (CHECKPOINT) for a class of no file."""
    found: dict[str, IdeaFile] = {}
    for kind in classes_in(model.config):
        idea = imported(kind.__module__)
        if idea is not None:
            found[idea.sha256] = idea
        elif not kind.__module__.startswith("hectogpt."):
            raise UserError(
                f"the model cannot be exported: its class {kind.__name__} comes from {kind.__module__}",
                why="a class goes along in the file that a run was made from",
                fix="train FILE.py:FUNCTION with the class in that file",
                code=errors.CHECKPOINT,
            )
    return list(found.values())


def _write_json(path: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    write_atomic(path, json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def _dtype(model: Transformer) -> str:
    return str(model.embeddings.weight.dtype).removeprefix("torch.")


# --- checking ---------------------------------------------------------------------------------------------------------


def check_logits(folder: Path, kind: str, model: Transformer, note: Callable[[str], None]) -> None:
    """Open a folder as transformers does and compare its logits with the model's, with and without a cache. Raises
    UserError (CHECKPOINT) if they differ."""
    if util.find_spec("transformers") is None:
        note("the export was not checked, because transformers is not installed")
        return
    length = min(model.config.context_length, CHECKED_TOKENS)
    cut = max(1, length // 2)
    ids = torch.randint(model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    try:
        theirs = _open_as_transformers(folder, kind)
        with torch.no_grad():
            expected = model(ids)
            first = theirs(ids[:, :cut], use_cache=True)
            names = [name for name in ("cache", "past_key_values") if first.get(name) is not None][:1]  # the new name
            cache = {name: first[name] for name in names}
            pairs = [(expected, theirs(ids, use_cache=False).logits), (expected[:, :cut], first.logits)]
            if cut < length:
                pairs.append((expected[:, cut:], theirs(ids[:, cut:], use_cache=True, **cache).logits))
        worst = max(float((ours - found).abs().max()) for ours, found in pairs)
        why = f"its logits there differ by {worst:.1e} of at most {float(expected.abs().max()):.1e}"
        same = worst <= TOLERANCE[expected.dtype] * max(1.0, float(expected.abs().max()))
    except Exception as error:  # whatever a user's own class or another version of transformers brings
        same, why = False, f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    if not same:
        raise UserError(
            "the model cannot be exported: transformers does not compute the same with it",
            why=why,
            fix="generate with hectogpt, which opens the model as it is",
            kept="nothing was written",
            code=errors.CHECKPOINT,
        )


def _open_as_transformers(folder: Path, kind: str) -> Any:
    """The folder's model. Its code is imported from where it lies: AutoModel would keep a copy in the user's cache."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if kind == "GPT2LMHeadModel":
        return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    package = f"{IDEA_MODULE}export_{os.getpid()}"
    spec = ModuleSpec(package, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    written = sys.dont_write_bytecode
    try:
        sys.dont_write_bytecode, sys.modules[package] = True, util.module_from_spec(spec)
        code = (folder / OWN_CODE if (folder / OWN_CODE).exists() else folder / CODE).stem
        with classes_of(()):  # the classes of a user's file are defined anew
            module = import_module(f"{package}.{code}")
        return module.HectoGPTForCausalLM.from_pretrained(folder).eval()
    finally:
        sys.dont_write_bytecode = written
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
