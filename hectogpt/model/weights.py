"""Save and load a model: config.json and model.safetensors, with the textbook's tensor names.

Loading reads numbers, never code. A file that does not match its config is refused, and the error
lists the first differences.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from hectogpt import errors, hardware
from hectogpt.errors import CheckpointError, UserError
from hectogpt.files import (
    MANIFEST,
    check_hashes,
    open_regular,
    parse_json_object,
    read_json_object,
    replacing,
    write_atomic,
)
from hectogpt.model.config import ModelConfig
from hectogpt.model.inputs import SpellingLayer
from hectogpt.model.transformer import Transformer
from hectogpt.serialization import IDEA_MODULE, dump, load

WEIGHTS = "model.safetensors"
MODEL_TYPE = "hectogpt"
CONFIG_IN_HEADER = "hectogpt_config"
FIX = "name a folder that `hectogpt train` wrote, or one in Hugging Face's GPT-2 layout"
LARGEST_CONFIG = 1 << 20  # bytes of config.json; ours have about 700
# Tensors in a safetensors file. In our format, GPT-2 XL has 773, and 500 layers have 8,000.
MOST_TENSORS = 10_000
HEADER_BYTES = 200  # bytes of the header allowed per tensor; ours need about 110
BLOCK = 512  # bytes; `hash_weights` adds up each block of this size


def save_model(model: Transformer, folder: Path) -> None:
    """Write config.json and model.safetensors, each atomically. Raises UserError (STORAGE)."""
    save_config(model.config, folder)
    path = folder / WEIGHTS
    try:
        with replacing(path) as temporary:
            save_file(saved_tensors(model), temporary, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise errors.unwritable(path, error) from None


def save_config(config: ModelConfig, folder: Path) -> None:
    """Write config.json. Raises UserError (STORAGE)."""
    content = {"model_type": MODEL_TYPE} | dump(config)
    write_atomic(folder / "config.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def saved_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """Copies of the model's tensors on the CPU, keyed by their names in files."""
    state: dict[str, torch.Tensor] = model.state_dict()
    if model.config.lm_head.tied:
        del state["lm_head.weight"]  # stored once; the config says that it is shared
    return {name: copied(tensor) for name, tensor in state.items()}


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def hash_weights(model: Transformer) -> str:
    """A hash of the model's parameters, as 16 hexadecimal digits.

    It is the SHA-256 of their names, dtypes and shapes, and of the sum of each block of 512
    bytes, read as 64-bit integers. Such sums are exact and fast: for 90 MB this takes 7 ms, and
    SHA-256 of all bytes takes 55 ms. Any flipped bit changes the hash.
    """
    return hash_named(model.named_parameters())


def hash_named(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The hash of some named parameters, computed as in `hash_weights`."""
    found = hashlib.sha256()
    for name, parameter in tensors:
        found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        content = parameter.detach().contiguous().reshape(-1).view(torch.uint8)
        if content.storage_offset() % 8:  # it cannot be viewed as 64-bit integers
            content = content.clone()
        whole = len(content) // BLOCK * BLOCK
        sums = content[:whole].view(torch.int64).reshape(-1, BLOCK // 8).sum(1)
        for part in (sums, content[whole:]):
            found.update(part.cpu().numpy().data)
    return found.hexdigest()[:16]


def load_tensors(model: Transformer, state: dict[str, torch.Tensor]) -> None:
    """Load tensors from `saved_tensors` into an existing model, on any device.

    Raises UserError (CHECKPOINT) if they belong to a different model.
    """
    state = _with_head(model.config, state)
    check_tensors(model, state, Path("the checkpoint"))
    model.load_state_dict(state)


def _with_head(config: ModelConfig, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tied = config.lm_head.tied and "embeddings.weight" in state
    return state | {"lm_head.weight": state["embeddings.weight"]} if tied else state


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of the folder's config.json.

    Without that file, returns the config in the header of model.safetensors, where the training
    page writes it. Raises UserError (CHECKPOINT) if there is neither, or if the file is invalid.
    """
    path = folder / "config.json"
    if not os.path.lexists(path):
        with contextlib.suppress(UserError, ValueError):
            check_header(folder / WEIGHTS)
            with safe_open(folder / WEIGHTS, "pt") as file:
                config = (file.metadata() or {}).get(CONFIG_IN_HEADER, "")
            return parse_json_object(config.encode())
        raise no_model(str(folder), "it has no config.json")
    return read_json_object(path, largest=LARGEST_CONFIG, fix=FIX)


def no_model(where: str, why: str) -> UserError:
    """The error for a folder without a model."""
    return CheckpointError(f"no model in {where}", why=why, fix=FIX)


def load_model(folder: Path) -> Transformer:
    """Load a model that `save_model` wrote, on the CPU and in evaluation mode.

    If the folder has a manifest, as a run's has, the hashes of both files are checked. Raises
    UserError (CHECKPOINT).
    """
    config = read_config(folder)
    check_manifest(folder)
    config.pop("model_type", None)
    return model_of(parse_config(config, folder), read_tensors(folder / WEIGHTS), folder / WEIGHTS)


def parse_config(fields: dict[str, Any], folder: Path) -> ModelConfig:
    """The ModelConfig from the fields of a folder's config.json. Raises UserError (CHECKPOINT)."""
    try:
        return load(ModelConfig, fields)
    except UserError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error.what}", why=error.why) from None


def check_manifest(folder: Path) -> None:
    """Refuse a config.json or model.safetensors that differs from the folder's manifest.

    The file formats themselves do not reveal a flipped bit. Raises UserError (CHECKPOINT).
    """
    if (folder / MANIFEST).exists():
        check_hashes(folder, "config.json", WEIGHTS)


def model_of(config: ModelConfig, state: dict[str, torch.Tensor], path: Path) -> Transformer:
    """The model with these weights, on the CPU and in evaluation mode.

    Names, shapes and dtypes are checked on the meta device, before memory is allocated.
    Afterwards, all values must be finite. If all floats of the state are float64, as a run in
    float64 saves them, the model is in float64. No value is converted. Errors name `path`.

    Raises UserError (CHECKPOINT).
    """
    state = _with_head(config, state)
    with building(path), torch.device("meta"), NoInit():
        model = Transformer(config)
        model.fit_to(state)
    floats = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    check_tensors(
        model, state, path, torch.float64 if floats == {torch.float64} else torch.float32
    )
    unsaved = [m._buffers[name] for m in model.modules() for name in m._non_persistent_buffers_set]
    if any(buffer is not None and buffer.is_meta for buffer in unsaved):
        # Parts compute such buffers when they are built, so build the model with real tensors.
        with (
            building(path),
            torch.random.fork_rng(devices=[]),
        ):
            # The initial weights are replaced right away.
            model = Transformer(config)
        model.fit_to(state)
    # A tensor in a file need not start at a multiple of 64 bytes, and products of
    # misaligned tensors round differently.
    aligned = {
        name: tensor.clone() if tensor.data_ptr() % 64 else tensor
        for name, tensor in state.items()
    }
    model.load_state_dict(aligned, assign=True)
    if config.lm_head.tied:
        model.lm_head.weight = cast(torch.nn.Parameter, model.embeddings.weight)
    return model.eval()


class NoInit(TorchFunctionMode):
    """Context manager for models on the meta device: weights get no random values.

    There, drawing from a normal distribution would import torch's compiler first, which takes
    longer than everything else in loading a model.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def building(path: Path) -> Iterator[None]:
    """Context manager: turn torch's errors for impossible sizes into a UserError (CHECKPOINT).

    Errors from a user's own file pass unchanged, so that their line can be reported.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
        modules = [
            frame.f_globals.get("__name__", "")
            for frame, _ in traceback.walk_tb(error.__traceback__)
        ]
        if any(module.startswith(IDEA_MODULE) for module in modules):
            raise
        raise CheckpointError(
            f"cannot build the model of {path.parent / 'config.json'}",
            why=f"{type(error).__name__}: {error}".partition("\n")[0][:200],
        ) from None


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file.

    Raises UserError: CHECKPOINT if it is missing or damaged, MEMORY if it is larger than the free
    memory.
    """
    check_header(path)
    try:
        need = path.stat().st_size
        have = hardware.free_memory()
        if need > have:
            raise UserError(
                f"{path} does not fit into memory",
                why=f"it has {need / 2**30:,.1f} GiB; {have / 2**30:,.1f} GiB are free",
                fix="close other programs, or use a machine with more memory",
                code=errors.MEMORY,
            )
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise errors.unreadable(path, error, code=errors.CHECKPOINT) from None


def check_header(path: Path, most_tensors: int = MOST_TENSORS) -> list[str]:
    """The names of all tensors in a safetensors file, read before the tensors take memory.

    The file must be a regular file whose header has at most 200 * `most_tensors` bytes. The
    library safetensors refuses tensors that overlap, leave holes or do not fill the file. Raises
    UserError (CHECKPOINT).
    """
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
        if length > (most := HEADER_BYTES * most_tensors):
            raise ValueError(f"its header claims {length:,} bytes, and at most {most:,} are read")
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (OSError, ValueError, SafetensorError) as error:
        raise errors.unreadable(
            path, error, fix="use an intact copy of the file", code=errors.CHECKPOINT
        ) from None


def check_tensors(
    model: Transformer,
    state: dict[str, torch.Tensor],
    path: Path,
    dtype: torch.dtype | None = None,
) -> None:
    """Refuse a state whose names, shapes, dtypes or values do not fit the model.

    Args:
        model: the model.
        state: the tensors by name.
        path: the file to name in the error, which lists the first differences.
        dtype: the expected dtype of floating-point tensors; None uses the model's own.

    Raises UserError (CHECKPOINT).
    """
    expected: dict[str, torch.Tensor] = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state]
    for name, tensor in state.items():
        if (own := expected.get(name)) is None:
            problems.append(f"{name[:80]} is unknown")
            continue
        wanted = (own.is_floating_point() and dtype) or own.dtype
        if tensor.shape != own.shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(own.shape)}")
        if tensor.dtype != wanted:
            found, expects = (str(kind).removeprefix("torch.") for kind in (tensor.dtype, wanted))
            problems.append(f"{name} has the dtype {found}, expected {expects}")
    if not problems:
        problems = [
            f"{name} is not finite"
            for name, tensor in state.items()
            if not tensor.isfinite().all()
        ] + [
            f"{name}.rows_of_token points outside its table"
            for name, part in model.named_modules()
            if isinstance(part, SpellingLayer)
            and (state[f"{name}.rows_of_token"] // part.table.num_embeddings).any()
        ]
    if problems:
        if len(problems) > 5:
            problems[5:] = [f"and {len(problems) - 5} more"]
        raise CheckpointError(f"{path} does not fit its config.json", why="; ".join(problems))


def hash_state(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of tensors, in the order of their names.

    It does not depend on how a model is divided into files.
    """
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
