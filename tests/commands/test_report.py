"""tools/report: numbers from the records alone, each record in its place, the same bytes every time."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT
from scipy import stats

from hectogpt.display import NGRAMS
from hectogpt.lab.record import Record
from tools import report
from tools.report import TEMPLATE, ladder_names, recipe_descriptions
from tools.report.front import WINDOW, code_length, steps_to_trigram
from tools.report.ladder_page import ladder_page
from tools.report.leaderboard import Leaderboard, build_leaderboards
from tools.report.tables import ladder_table

RESULTS, ANSWERS = ROOT / "results", ROOT / "answers"
LADDER = RESULTS / "ladder.jsonl"
NAMES = ["baseline", "learning_rate", "embedding_lr"]  # the ladder's first rungs


@pytest.fixture(scope="module")
def committed() -> report.Found:
    return report.read_all(LADDER)


@pytest.fixture(scope="module")
def records(committed: report.Found) -> list[Record]:
    """Records of the first rungs on TinyStories, tested ones of the same seeds."""
    board = committed.boards[0]
    rungs = [rung for name in NAMES if (rung := board.find(name))]
    assert len(rungs) == len(NAMES)
    seeds = set.intersection(*({r.seed for r in rung.records} for rung in rungs))
    assert len(seeds) >= 3
    return [r for rung in rungs for r in rung.records if r.seed in sorted(seeds)[:3]]


def board_of(records: Sequence[Record]) -> Leaderboard:
    return build_leaderboards(records, ladder_names())[0]


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_committed_texts_are_what_the_committed_records_give(committed: report.Found, tmp_path: Path) -> None:
    """Byte for byte; `python -m tools.report` writes them."""
    (tmp_path / "answers").mkdir()
    shutil.copy(ANSWERS / TEMPLATE, tmp_path / "answers")
    written = report.write_texts(committed, tmp_path / "results", tmp_path / "answers")
    assert [path.relative_to(tmp_path).as_posix() for path in written] == ["results/LADDER.md", "answers/learning.md"]
    for path in written:
        own, text = ROOT / path.relative_to(tmp_path), path.read_text(encoding="utf-8")
        assert text == own.read_text(encoding="utf-8")
        pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
        assert pictures
        assert [picture for picture in pictures if not (own.parent / picture).is_file()] == []


@pytest.mark.thorough
def test_the_committed_pictures_are_what_the_committed_records_give(committed: report.Found, tmp_path: Path) -> None:
    drawn = report.draw(committed, tmp_path, report.shown_pictures())
    pictures = {path.name: path.read_bytes() for path in drawn}
    there = RESULTS / "pictures"
    assert {path.name for path in there.glob("*.png")} == set(pictures)
    assert [name for name, content in pictures.items() if (there / name).read_bytes() != content] == []


# --- leaderboards -----------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_records(records: list[Record]) -> None:
    """Computed once more from the lines of the file."""
    seeds = {record.seed for record in records}
    lines = [json.loads(line) for line in LADDER.read_text(encoding="utf-8").splitlines()]
    test: dict[str, dict[int, float]] = {name: {} for name in NAMES}
    for row in lines:
        named = row["corpus"] == "tinystories" and row["recipe"] in NAMES and not row["overrides"]
        if named and row["seed"] in seeds and row["test_loss"] is not None:
            test[row["recipe"]][row["seed"]] = row["test_loss"]
    table = ladder_table(board_of(records), recipe_descriptions())
    assert [row[1] for row in table.rows[:3]] == NAMES
    assert {row[1] for row in table.rows[3:]} <= set(NGRAMS)
    cells = dict(zip(table.header, table.rows[1], strict=True))
    before, after = ([test[name][seed] for seed in sorted(seeds)] for name in NAMES[:2])
    assert cells["test"] == f"{np.mean(after):.3f} ± {np.std(after, ddof=1):.3f}"
    gains = np.subtract(before, after)
    low, high = stats.t.interval(0.95, 2, gains.mean(), stats.sem(gains))
    assert cells["gain over the rung below [95 %]"] == f"{gains.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
    assert cells["pairs"] == "3"


def test_every_kind_of_record_has_its_place(records: list[Record]) -> None:
    """The committed page has the rest: other recipes, ablations, longer runs, sweeps, rules broken, older settings."""
    first = records[3]
    assert first.recipe == "learning_rate"
    sick = replace(first, seed=1001, status="diverged", error="step 3: loss nan", test_loss=10.8, losses=[10.8, 10.7])
    scores: dict[str, Any] = dict.fromkeys(("dev_loss", "dev_bpb", "test_loss", "test_bpb", "params"))
    crashed = replace(first, seed=1002, status="failed", error="SIGKILL", losses=[], grad_norms=[], **scores)
    odd = replace(first, recipe="without-learning_rate", arm="without-learning_rate")
    board = board_of([*records, sick, crashed, odd])
    rung = board.find("learning_rate")
    assert rung is not None
    assert set(rung.losses("test")) == {*(record.seed for record in records), 1001}
    page = ladder_page([board], recipe_descriptions())
    assert "learning_rate: diverged, counted as a uniform guess: step 3: loss nan (seed 1001)" in page
    assert "learning_rate: failed, not counted: SIGKILL (seed 1002)" in page
    assert "without-learning_rate: not an ablation of any rung of today's ladder" in page
    older = [replace(r, run=r.run | {"optim": r.run["optim"] | {"lr": 0.5}}) for r in records[3:6]]
    rung = board_of([*older, *records]).find("learning_rate")
    assert rung is not None
    assert (rung.records, rung.superseded) == (tuple(records[3:6]), 3), "the newest settings count"
    untested = replace(first, test_loss=None, dev_loss=1.0)
    assert board_of([*records, untested]).find("learning_rate") == board_of(records).find("learning_rate")


# --- loss against seconds ---------------------------------------------------------------------------------------------


def test_steps_to_the_trigram_and_code_length(records: list[Record]) -> None:
    """The mean of the last WINDOW batches is compared, so one low batch is not enough."""

    def record_of(losses: list[float], level: float | None = 3.3) -> Record:
        return replace(records[0], losses=losses, ngram_kn3=level, run=records[0].run | {"steps": len(losses)})

    falling = [5.0, 5.0, 5.0, 5.0, 3.0, *[3.0] * WINDOW]
    assert steps_to_trigram(record_of(falling)) == 4 + WINDOW
    assert steps_to_trigram(record_of([5.0] * 5 + [0.1] + [5.0] * 5, 3.5)) is None
    assert steps_to_trigram(record_of(falling, None)) is None
    record = record_of(list(np.linspace(9, 3, 7)))
    assert code_length(record) == pytest.approx(6.0)
    record.run["steps"] = 8
    assert code_length(record) is None, "of a whole run only"
