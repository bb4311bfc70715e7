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

from bench import QUESTIONS
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


def test_help_lists_the_questions_without_torch() -> None:
    program = "import sys, bench.__main__ as b\nsys.argv = ['bench', '--help']\ntry: b.main()\nfinally: "
    program += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.endswith("\nFalse\n")
    assert all(name in done.stdout and (ROOT / "bench" / f"{name}.py").is_file() for name in QUESTIONS)


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


def result(losses: tuple[float, ...] = (10.5, 9.25), **tensors: torch.Tensor) -> Result:
    """A result with these losses, and these tensors beside one."""
    steps = [(n, loss, 1.5) for n, loss in enumerate(losses, start=1)]
    return Result(steps, {"w": torch.zeros(1), **tensors}, ["float32", "float32"])


def test_the_first_difference_is_named_with_both_values() -> None:
    after = float(np.nextafter(9.25, 10))
    assert first_difference(result(), result((10.5, after))) == f"step 2, train/loss: 9.25 there, {after!r} here"
    assert first_difference(result(), result((10.5,))) == "2 steps there, 1 here"
    more = result(a=torch.zeros(()))
    assert first_difference(more, result()) == "tensor a exists only there"
    assert first_difference(result(), more) == "tensor a exists only here"
    assert first_difference(more, more) == ""
    half = result(w=torch.zeros(2, dtype=torch.bfloat16))
    assert first_difference(result(), half) == "tensor w: float32 [1] there, bfloat16 [2] here"
    numbers = [result(w=torch.tensor([math.nan, 0.0, x], dtype=torch.bfloat16)) for x in (0.0, -0.0)]
    assert first_difference(numbers[0], numbers[0]) == ""
    assert first_difference(*numbers) == "tensor w: 1 entries of bfloat16 [3] differ, by 0.0 at most"


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
    assert first_difference(a, b) == "tensor w: 1 entries of float32 [2, 1] differ, by 0.25 at most"
