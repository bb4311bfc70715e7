"""Tools for the repository, and what they share: two checkouts beside each other, and a finished run as its bits.

A run is known by the files that `hectogpt train` writes alone: metrics.jsonl, model.safetensors and run.json.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

ROOT = Path(__file__).resolve().parent.parent


class Result(NamedTuple):
    """What a run computed. steps: step, loss, gradient norm, floats as hex. tensors: name -> dtype, shape, SHA-256.
    dtypes: of blocks and head. weights: their file; a cached result has none."""

    steps: list[list[Any]]
    tensors: dict[str, list[Any]]
    dtypes: list[str]
    weights: Path | None = None


def first_difference(theirs: Result, ours: Result) -> str:
    """The first difference in words, "" if there is none: losses and norms step by step, then weights by name."""
    for (step, *a), (our_step, *b) in zip(theirs.steps, ours.steps, strict=False):
        if step != our_step:
            return f"step {step} there, step {our_step} here"
        for what, x, y in zip(("loss", "grad_norm"), a, b, strict=True):
            if x != y:
                return f"step {step}, train/{what}: {float.fromhex(x)!r} there, {float.fromhex(y)!r} here"
    if len(theirs.steps) != len(ours.steps):
        return f"{len(theirs.steps)} steps there, {len(ours.steps)} here"
    for name in sorted(theirs.tensors.keys() | ours.tensors.keys()):
        if name not in ours.tensors or name not in theirs.tensors:
            return f"tensor {name} exists only {'there' if name in theirs.tensors else 'here'}"
        (*a, a_hash), (*b, b_hash) = theirs.tensors[name], ours.tensors[name]
        if a != b:
            return f"tensor {name}: {a[0]} {a[1]} there, {b[0]} {b[1]} here"
        if a_hash != b_hash and theirs.weights and ours.weights:
            count, largest = differing(a[0], *(read_tensors(p)[name][-1] for p in (theirs.weights, ours.weights)))
            return f"tensor {name}: {count:,} entries of {a[0]} {a[1]} differ, by {largest!r} at most"
        if a_hash != b_hash:
            return f"tensor {name}: bits differ"
    return ""


def differing(kind: str, theirs: bytes, ours: bytes) -> tuple[int, float]:
    """How many entries of two tensors of one kind and shape differ in their bits, and the largest difference."""
    names = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "BF16": "<u2"}
    dtype = np.dtype(names.get(kind, "u1"))
    bits = [np.frombuffer(raw, f"<u{dtype.itemsize}") for raw in (theirs, ours)]
    where = np.flatnonzero(bits[0] != bits[1])
    if kind == "BF16":  # the upper half of a float32
        bits, dtype = [raw.astype("<u4") << 16 for raw in bits], np.dtype("<f4")
    a, b = (raw[where].view(dtype).astype(np.float64) for raw in bits)
    with np.errstate(invalid="ignore"):
        return len(where), float(np.abs(a - b).max(initial=0.0))


def read_tensors(path: Path) -> dict[str, list[Any]]:
    """Name -> dtype, shape and raw bytes of a safetensors file's tensors."""
    return {n: [t["dtype"], list(t["shape"]), t["data"]] for n, t in safetensors.deserialize(path.read_bytes())}


def read_result(folder: Path) -> Result:
    """The result in a folder that `hectogpt train` wrote."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    numbers = [(r["step"], r["train/loss"], r["train/grad_norm"]) for r in rows if "train/loss" in r]
    weights = folder / "model.safetensors"
    tensors = {n: [*kind, hashlib.sha256(raw).hexdigest()] for n, (*kind, raw) in read_tensors(weights).items()}
    machine = json.loads((folder / "run.json").read_text(encoding="utf-8"))["machine"]
    steps = [[step, float(loss).hex(), float(norm).hex()] for step, loss, norm in numbers]
    return Result(steps, tensors, [machine["dtype"], machine["head_dtype"]], weights)


def git(*arguments: str, check: bool = True) -> str:
    """What git prints. Raises CalledProcessError."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=check, capture_output=True, text=True, start_new_session=True).stdout.strip()


def on_signals(action: Any) -> None:
    """Set what Ctrl-C and SIGTERM do."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, action)


@contextmanager
def checkouts(commit: str) -> Iterator[Path]:
    """A temporary folder with a copy of the working tree's package, here/, and a worktree of the commit, other/."""
    folder = Path(tempfile.mkdtemp(prefix="same-bits-"))
    try:
        on_signals(signal.SIG_IGN)  # git, half done, would leave a locked worktree
        git("worktree", "add", "--detach", str(folder / "other"), commit)
        on_signals(signal.default_int_handler)
        shutil.copytree(ROOT / "hectogpt", folder / "here/hectogpt", ignore=shutil.ignore_patterns("__pycache__"))
        yield folder
    finally:
        on_signals(signal.SIG_IGN)
        git("worktree", "remove", "--force", str(folder / "other"), check=False)
        shutil.rmtree(folder, ignore_errors=True)
