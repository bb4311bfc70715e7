"""bench/: contenders take turns, ratios are taken within a round, and a question writes one line for each answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import BY_NAME_ONLY, QUESTIONS
from bench.page import PAGES, UNMEASURED, render, write_pages
from bench.race import Laps, peak_memory, race
from bench.recipes import STAND_IN_IDS, kinds_of, make_stand_in, time_recipe
from bench.record import RESULTS, ROOT
from hectogpt.lab.recipes import recipe


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
    keys = {
        "question",
        "bench",
        "setting",
        "settings",
        "begun",
        "date",
        "machine",
        "threads",
        "load",
        "commit",
        "dirty",
        "versions",
        "rows",
    }
    for line in lines:
        assert line.keys() == keys
        assert all(row["setting"] == "tiny" and row["contender"] and row["seconds"] >= 0 for row in line["rows"])
    assert lines[1]["threads"] == 1
    assert [row["contender"] for row in lines[1]["rows"]] == ["blocks", "head", "update", "step"]
    assert results.read_bytes() == before


# --- the page ---------------------------------------------------------------------------------------------------------


def lines(*records: dict[str, Any]) -> str:
    """Records of a question each, a day and a processor unless they say otherwise."""
    same = {"date": "2026-01-02T03:04:05+00:00", "machine": "a", "threads": 2, "load": 0.5, "commit": "1234567"}
    return "".join(json.dumps(same | {"versions": {"torch": "2"}} | record) + "\n" for record in records)


def row(contender: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {"contender": contender, "rounds": 5, "seconds": seconds, **more}


def fill(mark: str, results: str) -> str:
    """What is written at a mark."""
    begin, end = f"<!-- bench: {mark} -->", "<!-- end -->"
    return render(f"text {begin}old\n{end} text", results).removeprefix(f"text {begin}").removesuffix(f"{end} text")


def test_the_committed_pages_are_what_the_committed_records_give() -> None:
    """Byte for byte; `python -m bench --page` writes them."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert render(text, RESULTS.read_text(encoding="utf-8")) == text, page.name
    assert "<!-- bench: tables" in PAGES[0].read_text(encoding="utf-8")


def test_filling_in_twice_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(lines({"question": "waiting", "rows": [row("b", 2.0)]}))
    page = tmp_path / "page.md"
    page.write_text("a <!-- bench: tables wait* --><!-- end -->\nb <!-- bench: value waiting | | b | seconds -->"
                    "<!-- end -->\n")  # fmt: skip
    plain = tmp_path / "plain.md"
    plain.write_text("no mark")
    assert write_pages([page, plain], tmp_path / "results.jsonl") == [page]
    once = page.read_text()
    assert "| b | 2 |" in once
    assert "-->2<!-- end -->" in once
    write_pages([page], tmp_path / "results.jsonl")
    assert page.read_text() == once


def asked(setting: str, day: int, settings: tuple[str, ...] = ("small", "wide")) -> dict[str, Any]:
    begun = f"2026-01-0{day}T00:00:00+00:00"
    return {"bench": "step", "setting": setting, "settings": list(settings), "begun": begun, "date": begun}


def test_a_table_has_whatever_the_newest_rows_have() -> None:
    """Of each setting the newest run; what the module no longer has or asks is left out; columns differ."""
    results = lines(
        asked("large", 1, ("large", "small")) | {"question": "step", "rows": [row("ours", 1.0, setting="large")]},
        asked("wide", 1) | {"question": "step", "rows": [row("ours", 3.0, setting="wide", peak_mb=7)]},
        asked("small", 1) | {"question": "step", "rows": [row("ours", 2.0, setting="small")]},
        asked("small", 1) | {"question": "step, memory", "rows": [row("ours", 2.0, setting="small")]},
        asked("small", 2)
        | {"question": "step", "rows": [row("ours", 1234.5, setting="small"), row("new|er", 0.00012, setting="small")]},
    )
    text = fill("tables step", results)
    assert text.splitlines() == [
        "",
        "| setting | contender | seconds | peak MB |",
        "| --- | --- | --: | --: |",
        "| small | ours | 1,234 |  |",
        "| small | new\\|er | 0.00012 |  |",
        "| wide | ours | 3 | 7 |",
        "",
        "Rounds: 5.",
    ]
    assert fill("value step | small | ours | seconds", results) == "1,234"
    assert fill("value step | large | ours | seconds", results) == UNMEASURED
    assert fill("tables step,*", results).strip() == UNMEASURED, "the newest run of small no longer asks it"
    assert fill("tables nothing", results).strip() == UNMEASURED


def test_figures_are_of_one_machine() -> None:
    """Of the machine and threads that answer most questions; a few figures of another machine do not replace them."""
    both = [{"question": name, "rows": [row("ours", 1.0)]} for name in ("head", "step")]
    results = lines(*both, {"question": "step", "rows": [row("ours", 9.0)], "machine": "b", "dirty": True})
    assert fill("value step | | ours | seconds", results) == "1"
    assert "2026-01-02; a, with 2 threads; load 0.5 to 0.5; torch 2; commit 1234567." in fill("where", results)
    results += lines(*(record | {"threads": 1, "date": "2026-01-03T00:00:00+00:00"} for record in both))
    assert "a, with 1 thread" in fill("where", results), "the newest of equals"


def test_an_older_record_names_contenders_otherwise() -> None:
    results = lines({"question": "decode", "rows": [{"name": "ours", "tokens_per_s": 80.0}]})
    assert fill("value decode | | ours | tokens_per_s", results) == "80"
    assert fill("tables dec*", results).startswith("\n**decode**\n\n| contender | tokens/s |\n")


def test_a_mark_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="a mark is one of where, tables, value"):
        fill("tabel step", "")


def test_a_damaged_line_is_an_error() -> None:
    with pytest.raises(ValueError, match="no usable"):
        fill("where", lines({"question": "step", "rows": []}))


def test_the_two_kinds_of_steps_of_soap_are_counted_apart() -> None:
    """Its bases follow in the first twenty steps and in every fifth after them."""
    count = Counter(map(kinds_of(recipe("soap")), range(100)))
    assert count == {"slow": 20 + 16, "usual": 64}
    assert Counter(map(kinds_of(recipe("muon")), range(100))) == {"usual": 100}


def test_the_seconds_of_a_recipe_are_counted_from_a_few_steps() -> None:
    corpus = make_stand_in("tinystories")
    assert len(np.unique(corpus.train)) == STAND_IN_IDS
    run = recipe("soap")
    model = replace(run.model, d_model=32, n_heads=1, n_layers=1, inputs=(), value_embeddings=())
    run = replace(run, steps=23, threads=1, model=model, data=replace(run.data, batch_size=1, seq_len=16))
    found = {key: float(number) for key, number in time_recipe(run, corpus, 1).items()}
    assert (found["steps"], found["rounds"], found["slow_steps"]) == (23, 1, 21)
    counted = found["build_seconds"] + found["first_step_seconds"] + 20 * found["slow_step_seconds"]
    assert found["seconds"] == pytest.approx(counted + 2 * found["step_seconds"], abs=0.1)


def test_what_takes_long_is_asked_by_name_only() -> None:
    assert set(BY_NAME_ONLY) < set(QUESTIONS)
