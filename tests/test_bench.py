"""bench/: contenders take turns, ratios are taken within a round, and a question writes one line for each answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import QUESTIONS
from bench.race import Laps, peak_memory, race
from bench.record import ROOT


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []

    def lap(name: str) -> float:
        turns.append(name)
        return float(len(turns))

    laps = race({"a": lambda: lap("a"), "b": lambda: lap("b")}, rounds=2)
    assert turns == ["a", "b"] * 3
    assert laps.seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert race({"a": lambda: lap("a")}, rounds=2, warm_up=False).seconds == {"a": [7.0, 8.0]}


def test_a_ratio_is_taken_within_a_round() -> None:
    laps = Laps({"a": [1.0, 10.0, 2.0], "b": [2.0, 20.0, 4.0]})  # the machine was busy in the second round
    assert laps.ratio("b", "a") == 2.0
    assert laps.median("a") == 2.0


@pytest.mark.thorough
def test_peak_memory_is_that_of_the_work_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "def prepare(setting, contender):\n    kept = bytearray(b'x' * (64 << 20))\n"
    program += "    return lambda: (kept, bytearray(b'x') * int(setting))\n"
    (tmp_path / "hungry.py").write_text(program, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert peak_memory("hungry", str(512 << 20), "a") == pytest.approx(512 << 20, rel=0.05)
    with pytest.raises(RuntimeError, match="memory of a: exit code 1"):
        peak_memory("hungry", "no number", "a")


def test_help_lists_the_questions_without_torch() -> None:
    done = run_bench("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in QUESTIONS)
    assert all((ROOT / "bench" / f"{name}.py").is_file() for name in QUESTIONS)
    program = "import sys, bench.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("arguments", [["nothing"], ["head", "--setting", "7"], ["--setting", "33"], ["--rounds", "0"]])
def test_what_cannot_be_asked_is_refused(arguments: list[str]) -> None:
    done = run_bench(*arguments)
    assert done.returncode == 2
    assert "error:" in done.stderr


@pytest.mark.thorough
def test_tiny_questions_run_and_are_recorded_only_where_asked(tmp_path: Path) -> None:
    results = ROOT / "results" / "bench.jsonl"
    before, out = results.read_bytes(), tmp_path / "bench.jsonl"
    done = run_bench("start", "roofline", "--tiny", "--rounds", "1", "--threads", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["question"] for line in lines] == ["waiting", "roofline"]
    keys = {"question", "date", "machine", "threads", "load", "commit", "dirty", "versions", "rows"}
    for line in lines:
        assert line.keys() == keys
        assert all(row["setting"] == "tiny" and row["contender"] and row["seconds"] >= 0 for row in line["rows"])
    assert lines[1]["threads"] == 1
    assert [row["contender"] for row in lines[1]["rows"]] == ["blocks", "head", "update", "step"]
    assert results.read_bytes() == before
