"""tools/report: numbers from the records alone, each record in its place, the same bytes every time, named errors."""

from __future__ import annotations

import copy
import functools
import json
import math
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

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.lab.record import Record, read_records
from hectogpt.serialization import dump
from hectogpt.training.optim import AdamW
from hectogpt.training.run import Run
from hectogpt.training.schedules import LinearDecay
from tools.report import TEMPLATE, ladder_names, recipe_descriptions, write_report
from tools.report.front import WINDOW, build_fronts, code_length, front_table, steps_to_trigram
from tools.report.ladder_page import ladder_page
from tools.report.leaderboard import NGRAMS, Leaderboard, build_leaderboards
from tools.report.ngram_file import NgramFile
from tools.report.seconds import Seconds, read_seconds
from tools.report.tables import ladder_table
from tools.report.template import FIELDS, UNMEASURED, Filler, format_field

TIMINGS = ROOT / "results" / "seconds.jsonl"
COUNTED = ROOT / "results" / "ngrams.jsonl"
WIDTH = "width_128_shared_row"
NAMES = ["baseline", "learning_rate", "schedule", WIDTH]
OTHERS = [name for name in recipes.names() if name not in NAMES]  # the committed text names some of them
DESCRIPTIONS = {name: f"What {name} does.\n\nWhy {name} works." for name in [*NAMES, *OTHERS]}
ANSWERS = ROOT / "answers"
LADDER = ROOT / "results" / "ladder.jsonl"
LEVELS = {"baseline": 10.8, "learning_rate": 6.0, "schedule": 5.7, WIDTH: 5.695}

Row = dict[str, Any]


@functools.cache
def runs() -> dict[str, Run]:
    """A small ladder: each rung changes one section of the run before."""
    found = [replace(recipes.baseline(), steps=20)]
    found.append(replace(found[-1], optim=AdamW(lr=1e-3)))
    found.append(replace(found[-1], schedule=LinearDecay(warmup=2)))
    found.append(replace(found[-1], model=replace(found[-1].model, d_model=36)))
    return {name: replace(run, recipe=name) for name, run in zip(NAMES, found, strict=True)}


def make_row(name: str, seed: int, *, tested: bool = True, corpus: str = "tinystories", **changes: Any) -> Row:
    """What `compare` writes, with invented but reproducible losses."""
    draw = np.random.default_rng([seed, sum(map(ord, name))])
    dev = LEVELS.get(name, 5.5) + 0.01 * draw.standard_normal()
    curve = dev + (10.83 - dev) * np.exp(-np.arange(20) / 4) + 0.05 * draw.standard_normal(20)
    row = {
        "corpus": corpus,
        "corpus_sha256": {"train": "a", "dev": "b", "test": "c"},
        "track": "closed",
        "recipe": name,
        "arm": name,
        "modified": False,
        "overrides": {},
        "seed": seed,
        "status": "ok",
        "error": None,
        "params": 3_374_415,
        "train_loss_last": float(curve[-1]),
        "train_loss_last10": float(curve[-10:].mean()),
        "dev_loss": dev,
        "dev_bpb": dev / 4 / math.log(2),
        "test_loss": dev + 0.1 if tested else None,
        "test_bpb": (dev + 0.1) / 4 / math.log(2) if tested else None,
        "ngram_split": "test" if tested else "dev",
        "ngram_uniform": 10.825,
        "ngram_unigram": 5.88 + seed / 1000,
        "ngram_kn2": 3.76,
        "ngram_kn3": 3.33,
        "ngram_kn5": 3.25,
        "ngram_mkn5": 3.21,
        "ngram_best": 2.95,
        "rules_broken": [],
        "seconds": 100.0 + seed,
        "peak_mb": 900.0,
        "run": dump(replace(runs().get(name, runs()[WIDTH]), recipe=name, seed=seed)),
        "losses": [float(f"{x:.5g}") for x in curve],
        "grad_norms": [float(f"{x:.5g}") for x in np.exp(draw.standard_normal(20) / 9)],
    }
    return row | changes


def crash(row: Row) -> Row:
    """The row of the same trial if its process had crashed."""
    scores = ("train_loss_last", "train_loss_last10", "dev_loss", "dev_bpb", "test_loss", "test_bpb", "params")
    return row | dict.fromkeys(scores) | {"status": "failed", "error": "SIGKILL", "losses": [], "grad_norms": []}


def make_rows(seeds: int = 3) -> list[Row]:
    return [make_row(name, seed) for seed in range(seeds) for name in NAMES]


def boards_of(rows: Sequence[Row]) -> list[Leaderboard]:
    return build_leaderboards([Record(**row) for row in rows], NAMES)


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_all(rows: Path, folder: Path) -> list[Path]:
    """The report of a file of records, with a written answer from the committed template."""
    (folder / "answers").mkdir(exist_ok=True)
    shutil.copy(ANSWERS / TEMPLATE, folder / "answers")
    return write_report(rows, folder / "results", folder / "answers", NAMES, DESCRIPTIONS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of everything that can occur: l.jsonl, results/, answers/."""
    folder = tmp_path_factory.mktemp("report")
    rows = make_rows()
    for seed in range(2):
        less = dump(recipes.without("learning_rate", WIDTH))
        rows.append(make_row("without-learning_rate", seed, dev_loss=6.1, test_loss=6.2, run=less))
        rows.append(make_row("without-schedule", seed))
        rows.append(make_row("published", seed))
        rows.append(make_row(WIDTH, seed, overrides={"steps": 30}, modified=True, tested=False))
        rows.append(make_row(WIDTH, seed, overrides={"optim.lr": 0.01}, modified=True, tested=False))
    guess = math.log(50_257)
    sick = {"status": "diverged", "error": "step 3: loss nan", "dev_loss": guess, "test_loss": guess}
    rows.append(make_row("schedule", 3, **sick, losses=[10.8, 10.7], grad_norms=[1.0, 2.0]))
    rows.append(make_row(WIDTH, 3, rules_broken=["700 s, at most 600"]))
    rows.append(crash(make_row(WIDTH, 4)))
    write_all(write_rows(folder / "l.jsonl", rows), folder)
    return folder


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_committed_texts_are_what_the_committed_records_give() -> None:
    """Byte for byte; `python -m tools.report` writes them."""
    seconds = read_seconds(TIMINGS)
    boards = build_leaderboards(NgramFile.read(COUNTED).complete(read_records(LADDER)), ladder_names())
    page = ladder_page(boards, recipe_descriptions(), build_fronts(boards, seconds, ladder_names()), seconds)
    assert (ROOT / "results" / "LADDER.md").read_text(encoding="utf-8") == page
    template = ANSWERS / TEMPLATE
    filler = Filler(boards, ladder_names(), recipe_descriptions(), "../results/pictures")
    answer = filler.fill(template.read_text(encoding="utf-8"), template)
    assert (ANSWERS / "learning.md").read_text(encoding="utf-8") == answer
    for text, folder in ((page, ROOT / "results"), (answer, ANSWERS)):
        pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
        assert pictures
        assert [picture for picture in pictures if not (folder / picture).is_file()] == []
    assert "{{" not in answer
    assert UNMEASURED not in answer


@pytest.mark.thorough
def test_the_committed_pictures_are_what_the_committed_records_give(tmp_path: Path) -> None:
    written = write_report(LADDER, tmp_path, tmp_path, timings=TIMINGS, ngrams=COUNTED)
    pictures = {path.name: path.read_bytes() for path in written if path.suffix == ".png"}
    committed = ROOT / "results" / "pictures"
    assert {path.name for path in committed.glob("*.png")} == set(pictures)
    assert [name for name, content in pictures.items() if (committed / name).read_bytes() != content] == []


def test_every_kind_of_record_has_its_place(made: Path) -> None:
    page = (made / "results" / "LADDER.md").read_text()
    for heading in ("Other recipes", f"{WIDTH} without one part", "### 20 steps", "Sweeps", "Notes"):
        assert heading in page
    assert "schedule: diverged, counted as a uniform guess: step 3: loss nan (seed 3)" in page
    assert f"{WIDTH}: against the rules of closed: 700 s, at most 600 (seed 3)" in page
    assert f"{WIDTH}: failed, not counted: SIGKILL (seed 4)" in page
    assert re.search(r"\| learning_rate \| 6.100 ± 0.000 \|.*\| helps \|", page)
    assert "without-schedule: not an ablation of any rung of today's ladder" in page
    answer = (made / "answers" / "learning.md").read_text()
    assert "{{" not in answer
    assert all((made / "answers" / name).is_file() for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", answer))


@pytest.mark.parametrize("content", [None, "", '{"corpus": "half a li', "{}\n"])
def test_no_records_and_no_record(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "l.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"no records|line 1 is not a record") as caught:
        write_report(tmp_path / "l.jsonl", tmp_path / "out", tmp_path, NAMES, DESCRIPTIONS)
    assert caught.value.code == errors.DATA
    assert not (tmp_path / "out").exists()


# --- leaderboards -----------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_records() -> None:
    rows = make_rows()
    [board] = boards_of(rows)
    table = ladder_table(board, DESCRIPTIONS)
    test = {name: [r["test_loss"] for r in rows if r["recipe"] == name] for name in NAMES}
    cells = dict(zip(table.header, table.rows[1], strict=True))
    assert cells["test"] == f"{np.mean(test['learning_rate']):.3f} ± {np.std(test['learning_rate'], ddof=1):.3f}"
    differences = np.subtract(test["baseline"], test["learning_rate"])
    interval = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert cells["gain over the rung below [95 %]"] == (
        f"{differences.mean():+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    )
    assert (cells["pairs"], cells["what changed"]) == ("3", "What learning_rate does.")
    ngrams = NGRAMS
    assert [dict(zip(table.header, row, strict=True))["rung"] for row in table.rows] == [*NAMES, *ngrams]
    assert table.rows[5][6] == "5.881", "the mean over seeds"
    assert table.rows[3][12] == "tie"


def test_diverged_seeds_count_and_crashed_ones_are_noted() -> None:
    guess = math.log(50_257)
    rows = [*make_rows(2), make_row(WIDTH, 2, status="diverged", test_loss=guess), crash(make_row("schedule", 2))]
    [board] = boards_of(rows)
    assert board.rungs[3].summary("test").max == guess  # type: ignore[union-attr]
    assert sorted(board.rungs[2].losses("test")) == [0, 1]
    assert "schedule: failed, not counted: SIGKILL (seed 2)" in ladder_page([board], DESCRIPTIONS)


def test_the_newest_settings_of_a_recipe_count() -> None:
    old, new = make_row("schedule", 0), make_row("schedule", 0, dev_loss=5.0, test_loss=5.1)
    new["run"] = copy.deepcopy(new["run"])
    new["run"]["optim"]["lr"] = 0.02
    [board] = boards_of([old, make_row("schedule", 1), new])
    assert (board.rungs[0].losses("test"), board.rungs[0].superseded) == ({0: 5.1}, 2)
    [board] = boards_of([old, make_row("schedule", 0, tested=False)])
    assert board.rungs[0].losses("test") == {0: old["test_loss"]}, "of equal runs the tested one"


def test_ngram_baselines_are_those_of_the_highest_rung() -> None:
    rows = make_rows(2)
    for row in rows:
        row["ngram_kn3"] = 3.4 if row["recipe"] == WIDTH else 3.2
    assert boards_of(rows)[0].ngrams["test"]["kn3"] == pytest.approx(3.4)
    rows = [row | {"ngram_kn3": None} if row["recipe"] == WIDTH else row for row in rows]
    assert boards_of(rows)[0].ngrams["test"]["kn3"] == pytest.approx(3.2), "of the highest that has any"


# --- loss against seconds ---------------------------------------------------------------------------------------------


def test_the_front_has_what_no_other_is_below_in_both() -> None:
    """Losses fall along the ladder; `learning_rate` is slower and worse than `schedule`, the top is not measured."""
    seconds = Seconds({("tinystories", name): s for name, s in zip(NAMES, (10.0, 40.0, 30.0), strict=False)})
    [front] = build_fronts(boards_of(make_rows()), seconds, NAMES)
    assert [point.entry.name for point in front.points if point.best] == ["baseline", "schedule"]
    assert [point.mark for point in front.points] == ["0", "1", "2", "3"]
    assert [x for x, _ in front.line] == [10.0, 30.0]
    assert [row[3] for row in front_table(front).rows] == ["on it", "", "on it", ""]
    rows = [make_row("soap", 0), *(make_row("soap", seed, track="open-cpu") for seed in range(2))]
    [front] = build_fronts(boards_of(rows), Seconds(), NAMES)
    assert [(p.mark, p.entry.name, p.track) for p in front.points] == [("a", "soap", "open-cpu")], "of most seeds"


def test_steps_to_the_trigram_and_code_length() -> None:
    """The mean of the last WINDOW batches is compared, so one low batch is not enough."""

    def record_of(losses: list[float], **changes: Any) -> Record:
        row = make_row("schedule", 0, losses=losses, **changes)
        row["run"]["steps"] = len(losses)
        return Record(**row)

    falling = [5.0, 5.0, 5.0, 5.0, 3.0, *[3.0] * WINDOW]
    assert steps_to_trigram(record_of(falling, ngram_kn3=3.3)) == 4 + WINDOW
    assert steps_to_trigram(record_of([5.0] * 5 + [0.1] + [5.0] * 5, ngram_kn3=3.5)) is None
    assert steps_to_trigram(record_of(falling, ngram_kn3=None)) is None
    record = record_of(list(np.linspace(9, 3, 7)))
    assert code_length(record) == pytest.approx(6.0)
    record.run["steps"] = 8
    assert code_length(record) is None, "of a whole run only"


# --- the written answer -----------------------------------------------------------------------------------------------


def filled(template: str, rows: Sequence[Row]) -> str:
    text = Filler(boards_of(rows), NAMES, DESCRIPTIONS, "../p").fill(template, Path("t.md"))
    return text.partition("-->\n\n")[2]


def test_placeholders() -> None:
    rows = make_rows()
    mean = np.mean([r["test_loss"] for r in rows if r["recipe"] == WIDTH])
    assert filled("a {{tinystories/closed/top/loss}} b", rows) == f"a {mean:.3f} b"
    assert filled("{{sotu/closed/top/loss}}", rows) == UNMEASURED
    assert filled("{{picture/tinystories/closed}}", rows).endswith("(../p/tinystories-closed-ladder.png)")
    assert filled("{{table/tinystories/closed}}", rows).count("\n") == 1 + len(NAMES) + len(NGRAMS)
    assert filled(r"$\frac{a}{{b} c}$", rows) == r"$\frac{a}{{b} c}$", "formulas stay"
    [board] = boards_of(rows)
    assert board.top is not None
    assert all(format_field(board, board.top, field) != UNMEASURED for field in FIELDS)
    text = filled("{{rungs}}", rows)
    assert [text.count(f"### {place} {name}\n") for place, name in enumerate(NAMES)] == [1, 1, 1, 1]


@pytest.mark.parametrize("key", ["tinystories/closed/top/lss", "tinystories/closed/basline/loss", "x"])
def test_a_placeholder_that_names_nothing(key: str) -> None:
    with pytest.raises(UserError, match=r"t\.md, line 2"):
        filled("first\n{{" + key + "}}", make_rows(1))


# --- baselines that were counted later --------------------------------------------------------------------------------


def test_baselines_counted_later_reach_the_records_that_lack_them(tmp_path: Path) -> None:
    older = {"ngram_mkn5": None, "ngram_best": None}
    first, second = read_records(write_rows(tmp_path / "r.jsonl", [make_row("baseline", s) | older for s in (0, 1)]))
    path = tmp_path / "n.jsonl"

    def counted(**changes: Any) -> NgramFile:
        line = {"train_sha256": first.corpus_sha256["train"], "split": first.ngram_split, "seed": 0, "kn3": 3.33}
        line |= {"steps": first.run["steps"], "data": first.run["data"], "mkn5": 3.2, "best": 2.9}
        path.write_text(json.dumps(line | changes) + "\n")
        return NgramFile.read(path)

    found = counted().complete([first, second])
    assert [(r.ngram_mkn5, r.ngram_best) for r in found] == [(3.2, 2.9), (None, None)]
    known = replace(first, ngram_mkn5=3.1, ngram_best=3.0)
    assert counted().complete([known]) == [known]
    for changes in ({"split": "dev"}, {"steps": 3}, {"data": {"seq_len": 3}}, {"train_sha256": "another"}):
        assert counted(**changes).complete([first]) == [first], changes
    with pytest.raises(UserError, match=r"seed 0.* 3\.4"):
        counted(kn3=3.4).complete([first])
    path.write_text(path.read_text() + '{"train_sha256": "a"}\n')
    with pytest.raises(UserError, match="line 2"):
        NgramFile.read(path)
