"""The tool that compares training at two commits: its comparisons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tools.same_bits import Result, first_difference, read_result


def result(losses: tuple[float, ...] = (10.5, 9.25), **tensors: tuple[str, list[int], bytes]) -> Result:
    """A result with these losses, and these tensors (dtype, shape, bytes) beside one."""
    steps = [(n, loss, 1.5) for n, loss in enumerate(losses, start=1)]
    return Result(steps, {"w": ("F32", [1], b"\0\0\0\0"), **tensors}, ["float32", "float32"])


def test_the_first_difference_is_named_with_both_values() -> None:
    after = float(np.nextafter(9.25, 10))
    assert first_difference(result(), result((10.5, after))) == f"step 2, train/loss: 9.25 there, {after!r} here"
    assert first_difference(result(), result((10.5,))) == "2 steps there, 1 here"
    more = result(a=("F32", [1], b"\0\0\0\0"))
    assert first_difference(more, result()) == "tensor a exists only there"
    assert first_difference(result(), more) == "tensor a exists only here"
    half = result(w=("BF16", [2], b"\0\0\0\0"))
    assert first_difference(result(), half) == "tensor w: F32 [1] there, BF16 [2] here"


def test_a_run_is_read_from_its_folder(tmp_path: Path) -> None:
    metrics = '{"step": 1, "train/loss": 0.1, "train/grad_norm": 2.0}\n{"step": 1, "val/loss": 3.0}\n'
    for name, weight in (("a", 1.0), ("b", 1.25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(metrics)
        (tmp_path / name / "run.json").write_text('{"machine": {"dtype": "float32", "head_dtype": "bfloat16"}}')
        save_file({"w": torch.tensor([[0.5], [weight]])}, tmp_path / name / "model.safetensors")
    a, b = read_result(tmp_path / "a"), read_result(tmp_path / "b")
    assert (a.steps, a.dtypes) == ([(1, 0.1, 2.0)], ["float32", "bfloat16"])
    assert first_difference(a, read_result(tmp_path / "a")) == ""
    assert first_difference(a, b) == "tensor w: 1 entries of F32 [2, 1] differ, by 0.25 at most"
