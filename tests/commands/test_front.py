"""Loss against seconds: the front, the seconds it is drawn from, and the two measures of a curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reports import DESCRIPTIONS, NAMES, WIDTH, boards_of, make_row, make_rows, write_rows

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.lab.record import Record
from tools.report import write_report
from tools.report.front import (
    WINDOW,
    build_fronts,
    code_length,
    format_steps_to_trigram,
    front_table,
    steps_to_trigram,
    where_measured,
)
from tools.report.plots import plot_front
from tools.report.seconds import QUESTION, Seconds, read_seconds


def timing(corpus: str, seconds: dict[str, float], **changes: Any) -> dict[str, Any]:
    rows = [{"contender": name, "setting": corpus, "text": corpus, "rounds": 3, "seconds": s} for name, s in
            seconds.items()]  # fmt: skip
    line = {"question": QUESTION, "date": "2026-01-02T03:04:05+00:00", "machine": "a processor", "threads": 2}
    return line | {"commit": "abcdefg", "rows": rows} | changes


def record_of(losses: list[float], **changes: Any) -> Record:
    row = make_row("schedule", 0, losses=losses, **changes)
    row["run"]["steps"] = len(losses)
    return Record(**row)


def test_the_front_has_what_no_other_is_below_in_both() -> None:
    """Losses fall along the ladder; `learning_rate` is slower and worse than `schedule`, the top is not measured."""
    seconds = Seconds({("tinystories", name): s for name, s in zip(NAMES, (10.0, 40.0, 30.0), strict=False)})
    [front] = build_fronts(boards_of(make_rows()), seconds, NAMES)
    assert [point.entry.name for point in front.points if point.best] == ["baseline", "schedule"]
    assert [point.mark for point in front.points] == ["0", "1", "2", "3"]
    assert [x for x, _ in front.line] == [10.0, 30.0]
    assert front.points[3].seconds is None
    table = front_table(front)
    assert [row[3] for row in table.rows] == ["on it", "", "on it", ""]
    assert front.top == pytest.approx(front.points[2].loss)


def test_a_recipe_stands_once_with_the_track_of_most_seeds() -> None:
    rows = [make_row("soap", 0), *(make_row("soap", seed, track="open-cpu") for seed in range(2))]
    rows += [make_row("counts", 0, track="open-cpu"), make_row("baseline", 0, corpus="sotu")]
    first, second = build_fronts(boards_of(rows), Seconds(), NAMES)
    assert [(p.mark, p.entry.name, p.track) for p in first.points] == [
        ("a", "soap", "open-cpu"),
        ("b", "counts", "open-cpu"),
    ]
    assert (second.corpus, [p.entry.name for p in second.points]) == ("sotu", ["baseline"])


def test_steps_to_the_trigram_counts_the_whole_window() -> None:
    """The mean of the last WINDOW batches is compared, so one low batch is not enough."""
    falling = [5.0, 5.0, 5.0, 5.0, 3.0, *[3.0] * WINDOW]
    assert steps_to_trigram(record_of(falling, ngram_kn3=3.3)) == 4 + WINDOW
    assert steps_to_trigram(record_of([5.0] * 5 + [0.1] + [5.0] * 5, ngram_kn3=3.5)) is None
    assert steps_to_trigram(record_of(falling, ngram_kn3=None)) is None
    assert steps_to_trigram(record_of([], ngram_kn3=3.5)) is None


def test_steps_to_the_trigram_in_words() -> None:
    rows = [make_row(WIDTH, seed, losses=[9.0] * 5 + [level] * 15) for seed, level in enumerate((2.0, 2.0, 5.0))]
    [board] = boards_of(rows)
    assert format_steps_to_trigram(board.rungs[0]) == "10 (2 of 3 seeds)"
    [board] = boards_of([make_row(WIDTH, 0)])
    assert format_steps_to_trigram(board.rungs[0]) == "never"


def test_code_length_is_the_mean_loss_of_a_whole_run() -> None:
    losses = list(np.linspace(9, 3, 7))
    record = record_of(losses)
    assert code_length(record) == pytest.approx(6.0)
    record.run["steps"] = 8
    assert code_length(record) is None


def test_the_newest_pass_counts(tmp_path: Path) -> None:
    """Seconds of another machine, number of threads or commit are not mixed with the newest."""
    lines = [timing("sotu", {"muon": 9.0}, machine="another"), timing("tinystories", {"muon": 8.0}, commit="older")]
    lines += [timing("sotu", {"muon": 7.0}), timing("tinystories", {"soap": 6.0}), {"question": "peaks"}]
    lines[3]["rows"][0]["text"] = "stand-in"
    seconds = read_seconds(write_rows(tmp_path / "b.jsonl", lines))
    assert seconds.of == {("sotu", "muon"): 7.0, ("tinystories", "soap"): 6.0}
    assert seconds.stand_in == ("tinystories",)
    assert "a processor; 2 threads; 2026-01-02, commit abcdefg" in where_measured(seconds)
    assert "For the seconds of tinystories" in where_measured(seconds)


def test_no_seconds_are_no_error(tmp_path: Path) -> None:
    assert read_seconds(None) == read_seconds(tmp_path / "none.jsonl") == Seconds()
    assert "No seconds" in where_measured(Seconds())


@pytest.mark.parametrize("changes", [{"rows": []}, {"rows": [{"contender": "a"}]}, {"machine": 1}])
def test_a_damaged_timing_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_rows(tmp_path / "b.jsonl", [timing("sotu", {"muon": 9.0}), timing("sotu", {"muon": 9.0}, **changes)])
    with pytest.raises(UserError, match="line 2: not a timing") as caught:
        read_seconds(path)
    assert caught.value.code == errors.DATA


def test_a_report_with_seconds_draws_the_front_twice_the_same(tmp_path: Path) -> None:
    records = write_rows(tmp_path / "l.jsonl", make_rows(2))
    seconds = {name: 20.0 + 3 * place for place, name in enumerate(NAMES)}
    timings = write_rows(tmp_path / "b.jsonl", [timing("tinystories", seconds)])
    write_report(records, tmp_path, tmp_path, NAMES, DESCRIPTIONS, timings)
    assert "![Loss against seconds](pictures/tinystories-front.png)" in (tmp_path / "LADDER.md").read_text()
    [front] = build_fronts(boards_of(make_rows(2)), read_seconds(timings), NAMES)
    plot_front(tmp_path / "again.png", front)
    picture = tmp_path / "pictures" / "tinystories-front.png"
    assert picture.read_bytes() == (tmp_path / "again.png").read_bytes()
