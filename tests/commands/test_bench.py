"""bench/: contenders take turns, one that fails costs its own row, and the page is what the records give.
tools.same_bits: what it compares."""

from __future__ import annotations

import json
import math
from pathlib import Path

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
    race, names = Race(rounds=2, threads=2, without=("left",)), ["a", "crashes", "missing", "left out", "b"]
    (laps,) = race.run("racers", "", names, folder=str(tmp_path))
    assert (tmp_path / "turns").read_text(encoding="utf-8") == "a crashes b a crashes b a b "
    found = laps.rows(lambda name: {"seconds": laps.median(name), "ratio": laps.ratio(name, "missing")})
    why = {"crashes": "SIGILL", "missing": "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"}
    assert race.failed == why
    lost = [{"contender": name, "failed": words} for name, words in why.items()]
    a, b = ({"contender": name, "rounds": 2, "seconds": 3.5} for name in "ab")
    assert found == [a, *lost, b]
    assert laps.ratio("a", "b") == 1
    assert laps.median("a", "idle") < 0.05


def test_the_committed_page_is_what_the_committed_records_give() -> None:
    """Byte for byte; `python -m bench --page` writes it."""
    text = PAGE.read_text(encoding="utf-8")
    assert render(text, RESULTS.read_text(encoding="utf-8")) == text


def test_a_column_names_its_processor_and_whether_it_is_older_than_the_code() -> None:
    """Of the new processor the newest run counts; what the newest record does not have is not shown."""
    same = {"question": "q", "bench": "step", "setting": "s", "settings": ["s"], "threads": 2, "dirty": False}
    same |= {"versions": {}, "load": 1, "machine": "P"}
    new = {"processor": {"name": "P", "vendor_id": "AuthenticAMD", "cpu family": 25, "model": 17}}
    old, ours = [{"contender": "ours", "x": 1, "y": 2}, {"contender": "gone", "x": 3}], {"contender": "ours", "x": 0.5}
    runs = [("1", {}, old), ("2", new, []), ("3", new, [ours, {"contender": "rival", "failed": "a | b"}])]
    records = [same | more | {"begun": n, "date": n, "commit": n, "rows": rows} for n, more, rows in runs]
    page = "<!-- bench: processors step 2 --><!-- end --><!-- bench: table q; x, y -->old<!-- end -->"
    written = render(page, "\n".join(map(json.dumps, records)))
    assert [line for line in written.splitlines() if line.startswith("| ")] == [
        "| contender | EPYC, Zen 4; 3, 3 | P (model not recorded); 1, 1† |",
        "| --- | --: | --: |",
        "| ours | 0.5 | 1 (2) |",
        "| rival | failed: a / b |  |",
    ]


# --- tools.same_bits --------------------------------------------------------------------------------------------------


def result_of(
    folder: Path, loss: float, entry: float, dtype: torch.dtype = torch.float32, **more: torch.Tensor
) -> Result:
    """What is read from a run's folder with this loss in its second step, and this entry in its weights."""
    rows = [{"step": n, "train/loss": value, "train/grad_norm": 2.0} for n, value in ((1, 0.1), (2, loss))]
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"step": 2, "dev/loss": 3.0}])))
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
