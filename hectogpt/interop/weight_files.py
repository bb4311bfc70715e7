"""The tensors of a model's folder: model.safetensors, or the files of its index. Pickles (.bin, .pt) are not read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hectogpt import errors, hardware
from hectogpt.errors import UserError
from hectogpt.json_files import read_json_object
from hectogpt.model.safetensors_header import check_header
from hectogpt.model.weights import read_tensors

SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F64", "F32", "F16", "BF16"}
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
            found = read_tensors(path)
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
        for name, (dtype, _) in check_header(path).items():
            if not is_dropped(name) and dtype not in FLOATS | WHOLE:
                problems.append(f"{name[:80]} has the dtype {dtype}")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        what = f"{weights.path} holds no weights that can be used"
        raise UserError(what, why="; ".join(problems[:5]) + more, fix=WIDEN, code=errors.CHECKPOINT)
    return weights


def _find(folder: Path) -> Weights:
    if os.path.lexists(folder / SAFETENSORS):
        return Weights(folder / SAFETENSORS, {folder / SAFETENSORS: None})
    if os.path.lexists(folder / INDEX):
        return Weights(folder / INDEX, _files_of(folder / INDEX))
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5"))
    why = "the folder holds no weights"
    if others:
        why = f"it has {others[0]}, which may be a pickle; reading one can run code, so none is read"
    fix = FIX if others else f"copy the model's {SAFETENSORS} there"
    raise UserError(f"no {SAFETENSORS} in {folder}", why=why, fix=fix, code=errors.CHECKPOINT)


def _files_of(index: Path) -> dict[Path, set[str] | None]:
    """File -> the tensors that it holds, as an index of several files tells. Raises UserError (CHECKPOINT)."""
    told = read_json_object(index, fix=FIX).get("weight_map")
    sound = isinstance(told, dict) and bool(told)
    names = list(told.values()) if isinstance(told, dict) else []
    if not sound or not all(isinstance(name, str) and _is_plain(name) for name in names):
        why = "its weights are split over several files, but its weight_map does not name .safetensors files beside it"
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


def _is_plain(name: str) -> bool:
    return len(name) <= 255 and name.endswith(".safetensors") and name[0] != "." and not set(name) & set("/\\\0:")
