"""The header of a safetensors file, checked before any library reads the file.

The safetensors library accepts what nobody writes: a name twice, hundreds of thousands of tensors, a pipe. This check
costs a read of the header alone, whose size is limited. Standard library only.

The format: 8 bytes, little-endian, the length of the header; the header, a JSON object of name -> {dtype, shape,
data_offsets}, and "__metadata__" with strings; then the bytes of the tensors without gaps.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.json_files import open_regular, parse_json_object

Tensors = dict[str, tuple[str, tuple[int, ...]]]

MOST_TENSORS = 10_000  # GPT-2 XL has 773 here; 500 layers have 8,000
HEADER_BYTES = 200  # of the header per tensor that is allowed; ours have about 110
ITEM_SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}


def check_header(path: Path, most_tensors: int = MOST_TENSORS) -> Tensors:
    """Name -> (dtype as the format spells it, shape) of all tensors of a file that `read_header` accepts."""
    return read_header(path, most_tensors)[0]


def read_header(path: Path, most_tensors: int = MOST_TENSORS) -> tuple[Tensors, dict[str, str]]:
    """Name -> (dtype as the format spells it, shape) of all tensors of a safetensors file, and its metadata.

    Accepted is a regular file whose header has at most 200 bytes per tensor of `most_tensors`, is a JSON object that
    names nothing twice, and describes at most `most_tensors` tensors of known dtypes that fill the rest of the file
    without holes or overlaps. Whether the numbers are finite is not looked at.

    Raises UserError (CHECKPOINT) for any other file.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"its header should have {length:,} bytes, the file has {size:,}: is it cut off?")
            if length > HEADER_BYTES * most_tensors:
                raise ValueError(f"its header has {length:,} bytes, at most {HEADER_BYTES * most_tensors:,} are read")
            header = file.read(length)
        return _check(header, size - 8 - length, most_tensors)
    except FileNotFoundError:
        why = "there is no such file"
    except OSError as error:
        why = error.strerror or str(error)
    except ValueError as error:
        why = str(error)
    raise UserError(f"cannot read {path}", why=why, fix="use a whole copy of the file", code=errors.CHECKPOINT)


def _check(header: bytes, n_bytes: int, most_tensors: int) -> tuple[Tensors, dict[str, str]]:
    """The tensors and metadata of a header, for a file with `n_bytes` after it. Raises ValueError."""
    if not header.startswith(b"{"):
        raise ValueError("it is not a safetensors file: its header is not a JSON object")
    try:
        entries = parse_json_object(header, deepest=3)
    except ValueError as error:
        raise ValueError(f"its header is damaged: {error}") from None
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its header is damaged: the metadata are not strings")
    if len(entries) > most_tensors:
        raise ValueError(f"it has {len(entries):,} tensors, at most {most_tensors:,} are read")
    tensors = {}
    places = []
    for name, entry in entries.items():
        dtype, shape, begin, end = _entry(name, entry)
        tensors[name] = (dtype, shape)
        places.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(places):
        if begin != reached:
            kind = "overlaps another" if begin < reached else f"leaves {begin - reached:,} bytes before it unused"
            raise ValueError(f"its header is damaged: tensor {name[:80]!r} {kind}")
        reached = end
    if reached != n_bytes:
        raise ValueError(f"its tensors have {reached:,} bytes, the file {n_bytes:,}: is it cut off?")
    return tensors, metadata


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of one tensor. Raises ValueError."""
    where = f"its header is damaged: tensor {name[:80]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise ValueError(f"{where} has the unknown dtype {str(dtype)[:40]!r}")
    if not _are_counts(shape) or len(shape) > 8:
        raise ValueError(f"{where} has no shape: {str(shape)[:60]}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{where} has no place: {str(offsets)[:60]}")
    begin, end = offsets
    n_bytes = ITEM_SIZES[dtype]
    for length in shape:
        n_bytes *= length
    if end - begin != n_bytes:
        raise ValueError(f"{where} has {end - begin:,} bytes, its shape and dtype need {n_bytes:,}")
    return dtype, tuple(shape), begin, end


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number < 2**63 for number in numbers)
