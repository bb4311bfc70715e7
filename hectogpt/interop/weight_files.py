"""The tensors of a model's folder: model.safetensors, the files of an index, or pytorch_model.bin, in this order.

A .bin file is a pickle. It is read by torch's restricted reader, which makes tensors and nothing else, and only in the
zip form that torch has written since 2020.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hectogpt import errors, hardware
from hectogpt.errors import UserError
from hectogpt.json_files import open_regular, read_json_object
from hectogpt.model.safetensors_header import check_header
from hectogpt.model.weights import read_tensors

SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
FLOATS = {"F64", "F32", "F16", "BF16"}
FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WHOLE = {"I64", "I32"}  # of maps of ids
MOST_FILES = 1000
FIX = "in transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
WIDEN = "in transformers: AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).save_pretrained(FOLDER)"


@dataclass(frozen=True)
class Weights:
    """The files that hold a model's tensors. path: the file, or the index of several. names: which tensors each file is
    to hold; None: all that it has."""

    path: Path
    files: dict[Path, set[str] | None]

    def read(self) -> dict[str, Tensor]:
        """All tensors. Raises UserError: CHECKPOINT for a damaged file, and for an index that tells otherwise; MEMORY
        if they do not fit."""
        need, have = sum(path.stat().st_size for path in self.files), hardware.free_memory()
        if need > have:
            raise UserError(
                f"the weights in {self.path.parent} do not fit into memory",
                why=f"they have {need / 2**30:,.1f} GiB, {have / 2**30:,.1f} GiB are free",
                fix="close other programs, or use a machine with more memory",
                code=errors.MEMORY,
            )
        state: dict[str, Tensor] = {}
        for path, wanted in self.files.items():
            found = read_pickle(path) if path.suffix == ".bin" else read_tensors(path)
            if wanted is not None and (odd := sorted(wanted ^ found.keys())):
                holds = "holds" if odd[0] in found else "lacks"
                why = f"{path.name} {holds} {odd[0][:80]}" + (f", and {len(odd) - 1} more" if len(odd) > 1 else "")
                raise UserError(f"{path} is not as {self.path.name} tells", why=why, fix=FIX, code=errors.CHECKPOINT)
            state |= found
        return state


def find_weights(folder: Path, is_dropped: Callable[[str], bool]) -> Weights:
    """The files of a folder that hold its tensors, checked as far as their headers tell.

    is_dropped: names of tensors that are not used, whatever their dtype. Raises UserError (CHECKPOINT) that names all
    files which are missing, or the tensors whose dtype is no weight's.
    """
    weights = _find(folder)
    problems = []
    for path in weights.files:
        if path.suffix == ".bin":
            continue
        for name, (dtype, _) in check_header(path).items():
            if not is_dropped(name) and dtype not in FLOATS | WHOLE:
                problems.append(f"{name[:80]} has the dtype {dtype}")
    if problems:
        raise _odd(weights.path, problems)
    return weights


def _odd(path: Path, problems: list[str]) -> UserError:
    more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    what = f"{path} holds no weights that can be used"
    return UserError(what, why="; ".join(problems[:5]) + more, fix=WIDEN, code=errors.CHECKPOINT)


def _find(folder: Path) -> Weights:
    for file, index in ((SAFETENSORS, INDEX), (PICKLE, PICKLE_INDEX)):
        if os.path.lexists(folder / file):
            return Weights(folder / file, {folder / file: None})
        if os.path.lexists(folder / index):
            return Weights(folder / index, _files_of(folder / index))
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5"))
    why = f"it has {others[0]}, which is not read" if others else "the folder holds no weights"
    fix = FIX if others else f"copy the model's {SAFETENSORS} there"
    raise UserError(f"no {SAFETENSORS} in {folder}", why=why, fix=fix, code=errors.CHECKPOINT)


def _files_of(index: Path) -> dict[Path, set[str] | None]:
    """File -> the tensors that it holds, as an index of several files tells. Raises UserError (CHECKPOINT)."""
    told = read_json_object(index, fix=FIX).get("weight_map")
    ending = ".bin" if index.name == PICKLE_INDEX else ".safetensors"
    sound = isinstance(told, dict) and bool(told)
    names = list(told.values()) if isinstance(told, dict) else []
    if not sound or not all(isinstance(name, str) and _is_plain(name, ending) for name in names):
        why = f"its weights are split over several files, but its weight_map does not name {ending} files beside it"
        raise UserError(f"cannot use {index}", why=why, fix=FIX, code=errors.CHECKPOINT)
    files: dict[Path, set[str] | None] = {}
    for tensor, name in told.items() if isinstance(told, dict) else ():
        wanted = files.setdefault(index.parent / name, set())
        assert wanted is not None
        wanted.add(tensor)
    if len(files) > MOST_FILES:
        why = f"it names {len(files):,} files, at most {MOST_FILES:,} are read"
        raise UserError(f"cannot use {index}", why=why, code=errors.CHECKPOINT)
    missing = [path.name[:80] for path in files if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"weights are missing in {index.parent}",
            why=f"{index.name} names {len(files)} files, and there is no {', '.join(missing[:5])}{more}",
            fix="copy the missing files there",
            code=errors.CHECKPOINT,
        )
    return files


def _is_plain(name: str, ending: str) -> bool:
    return len(name) <= 255 and name.endswith(ending) and name[0] != "." and not set(name) & set("/\\\0:")


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin file. Raises UserError (CHECKPOINT) for one that holds anything else."""
    try:
        _check_archive(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
        ):
            raise ValueError("it is a pickle of something else than tensors by name")
    except Exception as error:  # whatever a damaged or crafted file brings torch's reader to
        why = str(error).partition("\n")[0][:200] or type(error).__name__
        if type(error).__name__ == "UnpicklingError":
            why = "it is a pickle of more than tensors, and reading one can run code"
        raise UserError(f"cannot read {path}", why=why, fix=FIX, code=errors.CHECKPOINT) from None
    odd = [name for name, t in found.items() if t.is_floating_point() and t.dtype not in FLOAT_DTYPES]
    if odd:
        raise _odd(path, [f"{name[:80]} has the dtype {found[name].dtype}" for name in odd])
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def _check_archive(path: Path) -> None:
    """Refuse what is not a zip of about the size of its content, which torch does not compress. Raises ValueError,
    OSError."""
    with open_regular(path) as file:
        if file.read(4) != b"PK\3\4":
            raise ValueError("it is a pickle of the old form, and reading one can run code")
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > 2 * os.fstat(file.fileno()).st_size:
            raise ValueError(f"it is a damaged pickle that would unpack to {unpacked:,} bytes")
