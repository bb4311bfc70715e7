"""bench/: contenders take turns, one that fails costs its own row, and a question writes one line for each answer; the
page is what the records give; tools.same_bits: what it compares."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.page import PAGE, render
from bench.race import Race
from bench.record import RESULTS, ROOT
from tools.same_bits import Result, first_difference, read_result


def test_contenders_take_turns_in_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round does not count. Who fails costs its own row, which says why; who waits does not compute."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "programs"))
    race = Race(rounds=2, threads=2, without=("left",))
    names = ["a", "crashes", "missing", "left out", "b"]
    (laps,) = race.run("racers", "", names, folder=str(tmp_path))
    turns = "a crashes b a crashes b a b "
    assert (tmp_path / "turns").read_text(encoding="utf-8") == turns
    found = laps.rows(lambda name: {"seconds": laps.median(name), "ratio": laps.ratio(name, "missing")}, d=1)
    missing = "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"
    assert found == [
        {"contender": "a", "d": 1, "rounds": 2, "seconds": 2.5},
        {"contender": "crashes", "d": 1, "failed": "SIGILL"},
        {"contender": "missing", "d": 1, "failed": missing},
        {"contender": "b", "d": 1, "rounds": 2, "seconds": 2.5},
    ]
    assert race.failed == {"crashes": "SIGILL", "missing": missing}
    assert laps.ratio("a", "b") == 1
    assert laps.median("a", "idle") < 0.05


@pytest.mark.thorough
def test_tiny_questions_run_and_are_recorded_only_where_asked(tmp_path: Path) -> None:
    results = ROOT / "results" / "bench.jsonl"
    before, out = results.read_bytes(), tmp_path / "bench.jsonl"
    options = ["roofline", "--tiny", "--rounds", "1", "--threads", "1", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "bench", *options], check=True, cwd=ROOT)
    (line,) = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    keys = {"question", "bench", "setting", "settings", "begun", "date", "machine", "threads", "load", "commit"}
    keys |= {"dirty", "versions", "rows", "processor"}
    assert line.keys() == keys
    assert all(row["setting"] == "tiny" and row["seconds"] >= 0 for row in line["rows"])
    assert (line["question"], line["threads"]) == ("roofline", 1)
    assert [row["contender"] for row in line["rows"]] == ["blocks", "head", "update", "step"]
    assert results.read_bytes() == before


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_committed_page_is_what_the_committed_records_give() -> None:
    """Byte for byte; `python -m bench --page` writes it."""
    text = PAGE.read_text(encoding="utf-8")
    assert render(text, RESULTS.read_text(encoding="utf-8")) == text
    assert "<!-- bench: table" in text


def test_a_column_names_its_processor_and_whether_it_is_older_than_the_code() -> None:
    """Of the new processor the newest run counts; what the newest record does not have is not shown."""
    new = {"name": "P", "vendor_id": "AuthenticAMD", "cpu family": 25, "model": 17}
    kind: dict[str, Any] = {
        "question": "q",
        "bench": "step",
        "setting": "s",
        "settings": ["s"],
        "threads": 2,
        "dirty": False,
    }
    kind |= {"versions": {}, "load": 1, "machine": "P"}
    runs: tuple[tuple[str, dict[str, Any], list[tuple[str, dict[str, Any]]]], ...] = (
        ("2026-01-01", {}, [("ours", {"x": 1, "y": 2}), ("gone", {"x": 3})]),
        ("2026-01-02", {"processor": new}, [("ours", {"x": 5})]),
        ("2026-01-03", {"processor": new}, [("ours", {"x": 0.5}), ("rival", {"failed": "a | b"})]),
    )
    records = [
        kind
        | more
        | {"begun": day, "date": day, "commit": day[-1], "rows": [{"contender": n} | row for n, row in rows]}
        for day, more, rows in runs
    ]
    page = (
        "<!-- bench: processors step 2026-01-02 --><!-- end -->"
        "<!-- bench: table q; x, y -->old<!-- end --><!-- bench: times q; s; ours / rival; x --><!-- end -->"
    )
    written = render(page, "\n".join(map(json.dumps, records)))
    assert written == render(written, "\n".join(map(json.dumps, records)))
    rows = [line for line in written.splitlines() if line.startswith("| ")]
    assert rows == [
        "| contender | EPYC, Zen 4; 2026-01-03, 3 | P (model not recorded); 2026-01-01, 1† |",
        "| --- | --: | --: |",
        "| ours | 0.5 | 1 (2) |",
        "| rival | failed: a / b |  |",
    ]
    assert written.endswith("-->(not measured)<!-- end -->")


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
