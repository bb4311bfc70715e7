"""bench/: contenders take turns, ratios are taken within a round, and a question writes one line for each answer;
tools.same_bits: what it compares."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.page import PAGES, render
from bench.race import race
from bench.record import RESULTS, ROOT
from tools.same_bits import Result, first_difference, read_result


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []

    def lap(name: str) -> float:
        turns.append(name)
        return float(len(turns))

    laps = race({"a": lambda: lap("a"), "b": lambda: lap("b")}, rounds=2)
    assert turns == ["a", "b"] * 3
    assert laps.seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert race({"a": lambda: lap("a")}, rounds=2, warm_up=False).seconds == {"a": [7.0, 8.0]}


@pytest.mark.thorough
def test_tiny_questions_run_and_are_recorded_only_where_asked(tmp_path: Path) -> None:
    results = ROOT / "results" / "bench.jsonl"
    before, out = results.read_bytes(), tmp_path / "bench.jsonl"
    options = ["roofline", "--tiny", "--rounds", "1", "--threads", "1", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "bench", *options], check=True, cwd=ROOT)
    (line,) = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    keys = {"question", "bench", "setting", "settings", "begun", "date", "machine", "threads", "load", "commit"}
    keys |= {"dirty", "versions", "rows"}
    assert line.keys() == keys
    assert all(row["setting"] == "tiny" and row["seconds"] >= 0 for row in line["rows"])
    assert (line["question"], line["threads"]) == ("roofline", 1)
    assert [row["contender"] for row in line["rows"]] == ["blocks", "head", "update", "step"]
    assert results.read_bytes() == before


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_committed_pages_are_what_the_committed_records_give() -> None:
    """Byte for byte; `python -m bench --page` writes them."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert render(text, RESULTS.read_text(encoding="utf-8")) == text, page.name
    assert "<!-- bench: tables" in PAGES[0].read_text(encoding="utf-8")


# --- tools.same_bits --------------------------------------------------------------------------------------------------


def result_of(
    folder: Path, loss: float, entry: float, dtype: torch.dtype = torch.float32, **more: torch.Tensor
) -> Result:
    """What is read from a run's folder with this loss in its second step, and this entry in its weights."""
    rows = [{"step": n, "train/loss": value, "train/grad_norm": 2.0} for n, value in ((1, 0.1), (2, loss))]
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"step": 2, "val/loss": 3.0}])))
    (folder / "run.json").write_text('{"machine": {"dtype": "float32", "head_dtype": "bfloat16"}}')
    save_file({"w": torch.tensor([[math.nan], [entry]], dtype=dtype), **more}, folder / "model.safetensors")
    return read_result(folder)


def test_the_first_difference_of_two_runs_is_named_with_both_values(tmp_path: Path) -> None:
    same, after = result_of(tmp_path / "a", 9.25, 0.0), float(np.nextafter(9.25, 10))
    assert (same.steps, same.dtypes) == ([(1, 0.1, 2.0), (2, 9.25, 2.0)], ["float32", "bfloat16"])
    more, half = torch.zeros(()), torch.bfloat16
    for other, difference in (
        (result_of(tmp_path / "c", 9.25, 0.0), ""),
        (result_of(tmp_path / "b", after, 0.0), f"step 2, train/loss: 9.25 there, {after!r} here"),
        (Result(same.steps[:1], same.tensors, same.dtypes), "2 steps there, 1 here"),
        (result_of(tmp_path / "d", 9.25, 0.0, a=more), "tensor a exists only here"),
        (result_of(tmp_path / "e", 9.25, 0.0, half), "tensor w: float32 [2, 1] there, bfloat16 [2, 1] here"),
        (result_of(tmp_path / "f", 9.25, 0.25), "tensor w: 1 entries of float32 [2, 1] differ, by 0.25 at most"),
        (result_of(tmp_path / "g", 9.25, -0.0), "tensor w: 1 entries of float32 [2, 1] differ, by 0.0 at most"),
    ):
        assert first_difference(same, other) == difference
    assert first_difference(result_of(tmp_path / "h", 9.25, 0.0, a=more), same) == "tensor a exists only there"
