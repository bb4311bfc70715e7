"""The header of a safetensors file, read with limits before its tensors take memory."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.json_files import open_regular

Tensors = dict[str, tuple[str, tuple[int, ...]]]

MOST_TENSORS = 10_000  # GPT-2 XL has 773 here; 500 layers have 8,000
HEADER_BYTES = 200  # of the header per tensor that is allowed; ours have about 110


def check_header(path: Path, most_tensors: int = MOST_TENSORS) -> Tensors:
    """Name -> (dtype as the format spells it, shape) of all tensors of a file that `read_header` accepts."""
    return read_header(path, most_tensors)[0]


def read_header(path: Path, most_tensors: int = MOST_TENSORS) -> tuple[Tensors, dict[str, str]]:
    """Name -> (dtype as the format spells it, shape) of all tensors of a safetensors file, and its metadata.

    The file is a regular one, its header has at most 200 bytes per tensor of `most_tensors`. The library refuses
    tensors that overlap, leave holes, or do not fill the file. Raises UserError (CHECKPOINT).
    """
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
        if length > (most := HEADER_BYTES * most_tensors):
            raise ValueError(f"its header should have {length:,} bytes, at most {most:,} are read")
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no dict
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            return found, file.metadata() or {}
    except (OSError, ValueError, SafetensorError) as error:
        missing = isinstance(error, FileNotFoundError)
        why = "there is no such file" if missing else getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot read {path}", why=why, fix="use a whole copy of the file", code=errors.CHECKPOINT
        ) from None
