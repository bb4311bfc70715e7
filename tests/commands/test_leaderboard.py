"""Leaderboards and tables: numbers from the records alone, each record in its place, paired differences."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
from reports import DESCRIPTIONS, NAMES, WIDTH, boards_of, crash, make_row, make_rows
from scipy import stats

from tools.report.ladder_page import ladder_page
from tools.report.leaderboard import changed_sections, compare_curves, compare_entries
from tools.report.tables import ablation_table, comparison_table, ladder_table, selection_bias_note


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
    assert cells["pairs"] == "3"
    assert cells["what changed"] == "What learning_rate does."
    assert [dict(zip(table.header, row, strict=True))["rung"] for row in table.rows] == [
        *NAMES,
        *("uniform", "unigram", "kn2", "kn3", "mkn5", "best"),
    ]
    assert table.rows[5][6] == "5.881", "the mean over seeds"
    assert table.rows[3][12] == "tie"


def test_the_interval_of_a_loss_is_over_its_own_seeds() -> None:
    """However few of them the baseline shares."""
    rows = [make_row("baseline", 0), make_row("baseline", 1), *(make_row(WIDTH, seed) for seed in range(1, 7))]
    [board] = boards_of(rows)
    losses = [row["test_loss"] for row in rows[2:]]
    expected = stats.t.interval(0.95, 5, np.mean(losses), stats.sem(losses))
    assert board.rungs[1].interval("test") == pytest.approx(expected)
    assert compare_entries(board.rungs[1], board.rungs[0])[0].n == 1  # type: ignore[union-attr]
    [single] = boards_of([make_row("baseline", 0)])
    assert single.rungs[0].interval("test") is None


def test_pairs_are_the_seeds_of_both() -> None:
    rows = [make_row("baseline", s) for s in range(3)] + [make_row("learning_rate", s) for s in range(1, 6)]
    [board] = boards_of(rows)
    cells = dict(zip((table := ladder_table(board, DESCRIPTIONS)).header, table.rows[1], strict=True))
    assert (cells["n"], cells["pairs"]) == ("5", "2")
    assert "below the baseline (2 pairs)" in ladder_page([board], DESCRIPTIONS)


def test_the_sections_that_changed() -> None:
    [board] = boards_of(make_rows(1))
    found = [changed_sections(new, old) for old, new in zip(board.rungs, board.rungs[1:], strict=False)]
    assert found == ["optim", "schedule", "model"]


def test_runs_that_this_version_cannot_express_are_compared_by_field() -> None:
    rows = make_rows(1)
    rows[1]["run"] = copy.deepcopy(rows[1]["run"]) | {"optim": {"type": "Forgotten"}}
    [board] = boards_of(rows)
    assert changed_sections(board.rungs[1], board.rungs[0]) == "optim"


def test_diverged_seeds_count() -> None:
    rows = [*make_rows(2), make_row(WIDTH, 2, status="diverged", test_loss=math.log(50_257))]
    [board] = boards_of(rows)
    assert board.rungs[3].summary("test").max == math.log(50_257)  # type: ignore[union-attr]


def test_crashed_trials_are_noted_and_not_counted() -> None:
    rows = [*make_rows(2), crash(make_row(WIDTH, 2))]
    [board] = boards_of(rows)
    assert sorted(board.rungs[3].losses("test")) == [0, 1]
    assert board.rungs[3].split == "test"
    assert f"{WIDTH}: failed, not counted: SIGKILL (seed 2)" in ladder_page([board], DESCRIPTIONS)
    [alone] = boards_of([crash(make_row(WIDTH, 2))])
    assert alone.entries() == []
    assert "not counted: SIGKILL" in ladder_page([alone], DESCRIPTIONS)


def test_curves_are_compared_on_the_same_batches() -> None:
    """Seed by seed, those that both rungs have; a run that stopped early is missing from there on."""
    rows = [*make_rows(2), make_row("schedule", 2), make_row(WIDTH, 2, losses=[9.0]), make_row(WIDTH, 3)]
    _, _, below, rung = boards_of(rows)[0].rungs
    gains = compare_curves(rung, below)
    assert gains.shape == (3, 20)
    for seed in range(2):
        expected = np.subtract(make_row("schedule", seed)["losses"], make_row(WIDTH, seed)["losses"])
        np.testing.assert_array_equal(gains[seed], expected)
    assert gains[2, 0] == make_row("schedule", 2)["losses"][0] - 9.0
    assert np.isnan(gains[2, 1:]).all()
    assert compare_curves(replace(rung, records=rung.records[2:3]), below).shape == (1, 1)
    assert compare_curves(replace(rung, records=rung.records[3:]), below).size == 0


def test_the_newest_settings_of_a_recipe_count() -> None:
    old, new = make_row("schedule", 0), make_row("schedule", 0, dev_loss=5.0, test_loss=5.1)
    new["run"] = copy.deepcopy(new["run"])
    new["run"]["optim"]["lr"] = 0.02
    [board] = boards_of([old, make_row("schedule", 1), new])
    assert board.rungs[0].losses("test") == {0: 5.1}
    assert board.rungs[0].superseded == 2
    untested = make_row("schedule", 0, tested=False)
    [board] = boards_of([old, untested])
    assert board.rungs[0].losses("test") == {0: old["test_loss"]}, "of equal runs the tested one"


def test_seeds_that_chose_a_setting_are_not_quoted() -> None:
    [board] = boards_of([make_row(WIDTH, s, tested=s > 2) for s in range(5)])
    entry = board.rungs[0]
    assert (entry.split, sorted(entry.losses("dev")), entry.dev_only) == ("test", [3, 4], 3)
    assert f"{WIDTH}: 3 seeds that were scored on dev only are left out" in ladder_page([board], DESCRIPTIONS)


def test_a_mix_of_tested_and_untested_compares_on_dev() -> None:
    rows = [make_row("baseline", s) for s in range(2)] + [make_row("learning_rate", s, tested=False) for s in range(2)]
    [board] = boards_of(rows)
    assert compare_entries(board.rungs[1], board.rungs[0])[1] == "dev"


def test_corpora_and_tracks_apart() -> None:
    rows = [*make_rows(1), make_row("baseline", 0, corpus="sotu"), make_row("baseline", 0) | {"track": "open-cpu"}]
    assert [b.name for b in boards_of(rows)] == ["tinystories, closed", "tinystories, open-cpu", "sotu, closed"]
    assert ladder_page(boards_of(rows), DESCRIPTIONS).count("Lowest loss: ") == 3


def test_ngram_baselines_are_those_of_the_highest_rung() -> None:
    rows = make_rows(2)
    for row in rows:
        row["ngram_kn3"] = 3.4 if row["recipe"] == WIDTH else 3.2
    [board] = boards_of(rows)
    assert board.ngrams["test"]["kn3"] == pytest.approx(3.4)
    rows = [row | {"ngram_kn3": None} if row["recipe"] == WIDTH else row for row in rows]
    assert boards_of(rows)[0].ngrams["test"]["kn3"] == pytest.approx(3.2), "of the highest that has any"


def test_a_recipe_that_is_no_more_says_so() -> None:
    [board] = boards_of([*make_rows(2), make_row("published", 0), make_row("published", 1)])
    table = comparison_table(board.others, board.top, DESCRIPTIONS)
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert cells["what it is"] == "not a recipe of this version"
    assert cells["pairs"] == "2"


def test_the_best_of_several_settings() -> None:
    """One seed each leaves nothing to estimate the bias from; two give sd sqrt(2 ln K / n)."""
    [board] = boards_of([make_row(WIDTH, 0, overrides={"optim.lr": lr}) for lr in (0.1, 0.2)])
    assert "cannot be estimated" in selection_bias_note(board.sweeps)
    values = {0.1: (5.0, 5.2), 0.2: (5.1, 5.3)}
    rows = [
        make_row(WIDTH, seed, overrides={"optim.lr": lr}, test_loss=loss)
        for lr, losses in values.items()
        for seed, loss in enumerate(losses)
    ]
    expected = np.std([5.0, 5.2], ddof=1) * math.sqrt(2 * math.log(2) / 2)
    assert f"{expected:.3f} below its true mean" in selection_bias_note(boards_of(rows)[0].sweeps)


def test_the_words_for_a_part_that_one_pair_speaks_about() -> None:
    """One pair proves nothing, but it has a side."""
    rows = [make_row(WIDTH, 0, dev_loss=5.0, tested=False)]
    rows += [make_row("without-a", 0, dev_loss=6.0, tested=False), make_row("without-b", 0, dev_loss=4.0, tested=False)]
    [board] = boards_of(rows)
    told = {row[0]: row[-1] for row in ablation_table(board.ablations, board.rungs[0]).rows}
    assert told == {"a": "helps, unproven", "b": "hurts, unproven"}
