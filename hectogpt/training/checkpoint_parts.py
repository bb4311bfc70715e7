"""The tensors of a sharded checkpoint: several safetensors files, each with those parts that one process had.

torch.distributed.checkpoint writes them: a part is a whole tensor or rows of one, and the header of its file has the
place of its first number ("DCP_SHARDING_INFO"). No file is unpickled, and reading needs no other process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.json_files import parse_json_object
from hectogpt.manifest import damage
from hectogpt.model.safetensors_header import read_header

SUFFIX = ".safetensors"
INFO, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"  # names of torch.distributed.checkpoint
KEPT = re.compile(r"optimizer\.\d+\.state\.")  # names of what optimizers keep for each parameter
MOST_TENSORS = 50_000  # of a file; 500 layers with AdamW have 26,000


@dataclass(frozen=True, order=True)
class _Part:
    """Rows begin to end of a tensor, in a file; of a tensor without dimensions the only one."""

    begin: int
    end: int
    file: str


class PartFiles:
    """The tensors of a checkpoint's files, once it is known that the parts of each cover it exactly once."""

    def __init__(self, folder: Path, manifest: dict[str, Any], sound: bool) -> None:
        """sound: whether the hashes of all files are checked; if not, those of a file are before it is first read.

        Raises ValueError that says what does not fit, UserError (CHECKPOINT) for a header that is refused.
        """
        self.folder, self.manifest = folder, manifest
        self.dtypes, self.shapes = {}, {}
        for name, form in manifest["tensors"].items():
            self.dtypes[name], self.shapes[name] = _form(name, form)
        self._parts: dict[str, list[_Part]] = {name: [] for name in self.shapes}
        self._sound = set(manifest["files"]) if sound else set()
        for file in sorted(manifest["files"]):
            header, metadata = read_header(folder / file, MOST_TENSORS)
            places = _places(file, metadata)
            if header.keys() != places.keys():
                raise ValueError(f"{file} does not say of each of its tensors which part of it it has")
            for name, (_, shape) in header.items():
                self._add(name, file, shape, places[name])
        for name, parts in self._parts.items():
            self._check_cover(name, sorted(parts))

    def _add(self, name: str, file: str, shape: tuple[int, ...], place: list[int]) -> None:
        whole = self.shapes.get(name)
        if whole is None:
            raise ValueError(f"{file} has a tensor {name[:80]!r} that its manifest does not name")
        if len(shape) != len(whole) or len(place) != len(whole) or shape[1:] != whole[1:] or any(place[1:]):
            raise ValueError(f"{file} has no rows of {name[:80]!r}, but shape {list(shape)} at {place}")
        begin = place[0] if place else 0
        self._parts[name].append(_Part(begin, begin + (shape[0] if shape else 1), file))

    def _check_cover(self, name: str, parts: list[_Part]) -> None:
        shape = self.shapes[name]
        rows, reached = shape[0] if shape else 1, 0
        for part in parts:
            if part.begin != reached:
                kind = "overlap" if part.begin < reached else f"lack rows {reached} to {part.begin}"
                raise ValueError(f"the parts of {name[:80]!r} {kind}")
            reached = part.end
        if reached != rows or not parts or (rows == 0 and len(parts) > 1):
            raise ValueError(f"the parts of {name[:80]!r} have {reached} of its {rows} rows")

    def read(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """The rows of a tensor from `begin` to `end`, all of them by default; a tensor without dimensions. Raises
        ValueError for a part of another dtype, UserError (CHECKPOINT) for a damaged file, OSError, SafetensorError."""
        dtype, shape = self.dtypes[name], self.shapes[name]
        end = (shape[0] if shape else 1) if end is None else end
        rows = torch.empty((end - begin, *shape[1:]) if shape else (), dtype=dtype)
        for part in self._parts[name]:
            first, last = max(begin, part.begin), min(end, part.end)
            if first >= last and part.begin != part.end:
                continue
            self._check(part.file)
            with safe_open(self.folder / part.file, framework="pt") as file:
                found: Tensor = (
                    file.get_slice(name)[first - part.begin : last - part.begin] if shape else file.get_tensor(name)
                )
            if found.dtype != dtype:
                raise ValueError(f"{part.file} has {name[:80]!r} as {found.dtype}, its manifest says {dtype}")
            into = rows[first - begin : last - begin] if shape else rows
            into.copy_(found)  # the one that was found is a map of the file
        return rows

    def read_all(self, forms: bool = False) -> dict[str, Tensor]:
        """All tensors, by name. forms: of what optimizers keep for each parameter only the form, zeros that take no
        memory. Raises as `read`."""
        return {
            name: torch.zeros((), dtype=self.dtypes[name]).expand(shape)
            if forms and KEPT.match(name) and self.dtypes[name].is_floating_point
            else self.read(name)
            for name, shape in self.shapes.items()
        }

    def _check(self, file: str) -> None:
        if file not in self._sound:
            if found := damage(self.folder, self.manifest, [file]):
                raise UserError(f"the checkpoint in {self.folder} is damaged", why=found[0], code=errors.CHECKPOINT)
            self._sound.add(file)


def _form(name: str, form: Any) -> tuple[torch.dtype, tuple[int, ...]]:
    """dtype and shape of a tensor as a manifest has them. Raises ValueError."""
    dtype, shape = form if isinstance(form, list) and len(form) == 2 else (None, None)
    known, lengths = getattr(torch, dtype, None) if isinstance(dtype, str) else None, _counts(shape)
    if not isinstance(known, torch.dtype) or lengths is None:
        raise ValueError(f"its manifest has no dtype and shape for {name[:80]!r}")
    return known, tuple(lengths)


def _places(file: str, metadata: dict[str, str]) -> dict[str, list[int]]:
    """Tensor -> the index of its part's first number in the whole. Raises ValueError."""
    try:
        told = parse_json_object(metadata.get(INFO, "").encode(), deepest=3)
    except ValueError as error:
        raise ValueError(f"{file} does not say which parts it has: {error}") from None
    places = {}
    for name, entry in told.items():
        place = _counts(entry.get(OFFSETS)) if isinstance(entry, dict) else None
        if place is None:
            raise ValueError(f"{file} does not say which part of {name[:80]!r} it has")
        places[name] = place
    return places


def _counts(numbers: Any) -> list[int] | None:
    sound = isinstance(numbers, list) and all(type(number) is int and 0 <= number < 2**62 for number in numbers)
    return numbers if sound else None
