"""The report: numbers from the records alone, the same bytes twice, pages that need no network, errors that name."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.lab.report import TEMPLATE, UNMEASURED, fill, ladder_page, write_report
from hectogpt.lab.standings import curve_gains, gain, kind, standings
from hectogpt.lab.tables import ladder_table
from hectogpt.train.optim import AdamW
from hectogpt.train.schedules import Linear
from hectogpt.values import dump

NAMES = ["baseline", "learning_rate", "schedule", "width"]
BESIDE = [name for name in recipes.names() if name not in NAMES]  # the committed text names some of them
DESCRIPTIONS = {name: f"What {name} does.\n\nWhy {name} works." for name in [*NAMES, *BESIDE]}
ANSWERS = Path(__file__).resolve().parent.parent / "answers"
LEVELS = {"baseline": 10.8, "learning_rate": 6.0, "schedule": 5.7, "width": 5.695}


def runs() -> dict[str, Any]:
    """A small ladder: each rung changes one section of the run before."""
    found = [replace(recipes.baseline(), steps=20)]
    found.append(replace(found[-1], optim=AdamW(lr=1e-3)))
    found.append(replace(found[-1], schedule=Linear(warmup=2)))
    found.append(replace(found[-1], model=replace(found[-1].model, d_model=36)))
    return {name: replace(run, recipe=name) for name, run in zip(NAMES, found, strict=True)}


def record(name: str, seed: int, *, tested: bool = True, corpus: str = "tinystories", **changes: Any) -> dict[str, Any]:
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
        "anchor_split": "test" if tested else "dev",
        "anchor_uniform": 10.825,
        "anchor_unigram": 5.88 + seed / 1000,
        "anchor_kn2": 3.76,
        "anchor_kn3": 3.33,
        "rules_broken": [],
        "seconds": 100.0 + seed,
        "peak_mb": 900.0,
        "run": dump(replace(runs().get(name, runs()["width"]), recipe=name, seed=seed)),
        "losses": [float(f"{x:.5g}") for x in curve],
        "grad_norms": [float(f"{x:.5g}") for x in np.exp(draw.standard_normal(20) / 9)],
    }
    return row | changes


def records(seeds: int = 3) -> list[dict[str, Any]]:
    return [record(name, seed) for seed in range(seeds) for name in NAMES]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A report of everything that can occur, and its records."""
    folder = tmp_path_factory.mktemp("report")
    rows = records()
    for seed in range(2):
        less = dump(recipes.without("learning_rate", "width"))
        rows.append(record("without-learning_rate", seed, dev_loss=6.1, test_loss=6.2, run=less))
        rows.append(record("without-schedule", seed))
        rows.append(record("published", seed))
        rows.append(record("width", seed, overrides={"steps": 30}, modified=True, tested=False))
        rows.append(record("width", seed, overrides={"optim.lr": 0.01}, modified=True, tested=False))
    guess = math.log(50_257)
    sick = {"status": "diverged", "error": "step 3: loss nan", "dev_loss": guess, "test_loss": guess}
    rows.append(record("schedule", 3, **sick, losses=[10.8, 10.7], grad_norms=[1.0, 2.0]))
    rows.append(record("width", 3, rules_broken=["700 s, at most 600"]))
    (folder / "answers").mkdir()
    shutil.copy(ANSWERS / TEMPLATE, folder / "answers")
    write_report(write(folder / "l.jsonl", rows), folder / "results", folder / "answers", NAMES, DESCRIPTIONS)
    return folder, rows


def test_the_same_bytes_twice(made: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    first, _ = made
    (tmp_path / "answers").mkdir()
    shutil.copy(ANSWERS / TEMPLATE, tmp_path / "answers")
    paths = write_report(first / "l.jsonl", tmp_path / "results", tmp_path / "answers", NAMES, DESCRIPTIONS)
    assert len(paths) == len(NAMES) + 1 + 3
    for path in paths:
        assert path.read_bytes() == (first / path.relative_to(tmp_path)).read_bytes(), path.name


DRAW = """
import sys
from pathlib import Path
from hectogpt.lab.pictures import plot_rung
from hectogpt.lab.report import ladder_names
from hectogpt.lab.standings import standings
from hectogpt.lab.trials import read_rows
for standing in standings(read_rows(Path(sys.argv[1])), ladder_names()):
    if standing.track == "closed":
        for place in (0, 7):
            plot_rung(Path(sys.argv[2]) / f"{standing.corpus}-{place}.png", standing, place)
"""


def test_the_same_bytes_on_a_simpler_processor(tmp_path: Path) -> None:
    """numpy picks its loops by the processor: two committed pictures once differed by a grey level in a few pixels."""
    from numpy._core._multiarray_umath import __cpu_dispatch__

    drawn = []
    for name, without in (("here", ""), ("simpler", " ".join(__cpu_dispatch__))):
        folder = tmp_path / name
        folder.mkdir()
        environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": without}
        records = ANSWERS.parent / "results" / "ladder.jsonl"
        subprocess.run([sys.executable, "-W", "ignore", "-c", DRAW, records, folder], env=environment, check=True)
        drawn.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(drawn[0]) == 4
    assert drawn[0] == drawn[1]


def test_pictures_carry_no_date_and_no_version(made: tuple[Path, list[dict[str, Any]]]) -> None:
    pictures = sorted((made[0] / "results" / "pictures").glob("*.png"))
    assert [p.name for p in pictures][:2] == [
        "tinystories-closed-00-baseline.png",
        "tinystories-closed-01-learning_rate.png",
    ]
    for picture in pictures:
        assert not {b"tEXt", b"tIME", b"iTXt"} & set(re.findall(rb"tEXt|tIME|iTXt", picture.read_bytes()))


def test_numbers_are_those_of_the_records() -> None:
    rows = records()
    [standing] = standings(rows, NAMES)
    table = ladder_table(standing, DESCRIPTIONS)
    test = {name: [r["test_loss"] for r in rows if r["recipe"] == name] for name in NAMES}
    cells = dict(zip(table.header, table.rows[1], strict=True))
    assert cells["test"] == f"{np.mean(test['learning_rate']):.3f} ± {np.std(test['learning_rate'], ddof=1):.3f}"
    differences = np.subtract(test["baseline"], test["learning_rate"])
    interval = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert cells["gain over the rung below [95 %]"] == (
        f"{differences.mean():+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    )
    assert cells["what changed"] == "What learning_rate does."
    assert [dict(zip(table.header, row, strict=True))["rung"] for row in table.rows] == [
        *NAMES,
        *("uniform", "unigram", "kn2", "kn3"),
    ]
    assert table.rows[5][6] == "5.881", "the mean over seeds"
    assert table.rows[3][11] == "tie"


def test_kinds_are_the_sections_that_changed() -> None:
    [standing] = standings(records(1), NAMES)
    kinds = [kind(new, old) for old, new in zip(standing.rungs, standing.rungs[1:], strict=False)]
    assert kinds == ["optim", "schedule", "model"]


def test_every_kind_of_record_has_its_place(made: tuple[Path, list[dict[str, Any]]]) -> None:
    page = (made[0] / "results" / "LADDER.md").read_text()
    for heading in ("Beside the ladder", "width without one part", "### 20 steps", "Recorded sweeps", "To be known"):
        assert heading in page
    assert "schedule: diverged, counted as a uniform guess: step 3: loss nan (seed 3)" in page
    assert "width: against the rules of closed: 700 s, at most 600 (seed 3)" in page
    assert re.search(r"\| learning_rate \| 6.100 ± 0.000 \|.*\| helps \|", page)
    assert "without-schedule: left out of a ladder that is no more" in page


def test_failed_seeds_count() -> None:
    rows = [*records(2), record("width", 2, test_loss=math.log(50_257))]
    [standing] = standings(rows, NAMES)
    assert standing.rungs[3].summary("test").most == math.log(50_257)  # type: ignore[union-attr]


def test_curves_are_compared_on_the_same_batches() -> None:
    """Seed by seed, those that both rungs have; a run that stopped early is missing from there on."""
    rows = [*records(2), record("schedule", 2), record("width", 2, losses=[9.0, None]), record("width", 3)]
    _, _, below, rung = standings(rows, NAMES)[0].rungs
    gains = curve_gains(rung, below)
    assert gains.shape == (3, 20)
    for seed in range(2):
        expected = np.subtract(record("schedule", seed)["losses"], record("width", seed)["losses"])
        np.testing.assert_array_equal(gains[seed], expected)
    assert gains[2, 0] == record("schedule", 2)["losses"][0] - 9.0
    assert np.isnan(gains[2, 1:]).all()
    assert curve_gains(replace(rung, rows=rung.rows[2:3]), below).shape == (1, 1)
    assert curve_gains(replace(rung, rows=rung.rows[3:]), below).size == 0


def test_the_newest_settings_of_a_recipe_count() -> None:
    old, new = record("schedule", 0), record("schedule", 0, dev_loss=5.0, test_loss=5.1)
    new["run"] = copy.deepcopy(new["run"])
    new["run"]["optim"]["lr"] = 0.02
    [standing] = standings([old, record("schedule", 1), new], NAMES)
    assert standing.rungs[0].losses("test") == {0: 5.1}
    assert standing.rungs[0].older == 2
    untested = record("schedule", 0, tested=False)
    [standing] = standings([old, untested], NAMES)
    assert standing.rungs[0].losses("test") == {0: old["test_loss"]}, "of equal runs the tested one"


def test_partial_records(tmp_path: Path) -> None:
    """One seed, no test scores, a rung missing in between, a rung of which every seed failed at once."""
    rows = [record("baseline", 0, tested=False), record("schedule", 0, tested=False), record("width", 1, tested=False)]
    rows[2] |= {"status": "failed", "error": "out of memory", "losses": [], "grad_norms": [], "params": None}
    (tmp_path / "answers").mkdir()
    shutil.copy(ANSWERS / TEMPLATE, tmp_path / "answers")
    write_report(write(tmp_path / "l.jsonl", rows), tmp_path, tmp_path / "answers", NAMES, DESCRIPTIONS)
    assert UNMEASURED in (tmp_path / "answers" / "learning.md").read_text()
    [standing] = standings(rows, NAMES)
    pair, split = gain(standing.rungs[1], standing.rungs[0])
    assert split == "dev"
    assert pair is not None
    assert pair.p is None
    assert gain(standing.rungs[2], standing.rungs[1])[0] is None, "no seed in common"


def test_seeds_that_chose_a_setting_are_not_quoted() -> None:
    rows = [record("width", s, tested=s > 2) for s in range(5)]
    [standing] = standings(rows, NAMES)
    entry = standing.rungs[0]
    assert (entry.split, sorted(entry.losses("dev")), entry.untested) == ("test", [3, 4], 3)
    assert "width: 3 seeds scored on dev only left aside" in ladder_page([standing], DESCRIPTIONS)


def test_a_mix_of_tested_and_untested_compares_on_dev() -> None:
    rows = [record("baseline", s) for s in range(2)] + [record("learning_rate", s, tested=False) for s in range(2)]
    [standing] = standings(rows, NAMES)
    assert gain(standing.rungs[1], standing.rungs[0])[1] == "dev"


def test_corpora_and_tracks_apart() -> None:
    rows = [*records(1), record("baseline", 0, corpus="sotu"), record("baseline", 0) | {"track": "open-cpu"}]
    assert [s.name for s in standings(rows, NAMES)] == ["tinystories, closed", "tinystories, open-cpu", "sotu, closed"]
    assert ladder_page(standings(rows, NAMES), DESCRIPTIONS).count("Lowest: ") == 3


def test_pictures_of_rungs_that_are_no_more_go(tmp_path: Path) -> None:
    path = write(tmp_path / "l.jsonl", [record("baseline", 0), record("schedule", 0)])
    write_report(path, tmp_path, tmp_path, NAMES, DESCRIPTIONS)
    (tmp_path / "pictures" / "photo.png").write_bytes(b"")
    write(path, [record("baseline", 0)])
    write_report(path, tmp_path, tmp_path, NAMES, DESCRIPTIONS)
    left = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert left == ["photo.png", "tinystories-closed-00-baseline.png", "tinystories-closed-ladder.png"]


# --- the template -----------------------------------------------------------------------------------------------------


def filled(template: str, rows: list[dict[str, Any]]) -> str:
    text = fill(template, standings(rows, NAMES), NAMES, DESCRIPTIONS, "../p", Path("t.md"))
    return text.partition("-->\n\n")[2]


def test_placeholders() -> None:
    rows = records()
    mean = np.mean([r["test_loss"] for r in rows if r["recipe"] == "width"])
    assert filled("a {{tinystories/closed/top/loss}} b", rows) == f"a {mean:.3f} b"
    assert filled("{{tinystories/closed/width/verdict}}", rows) == "tie"
    assert filled("{{sotu/closed/top/loss}}", rows) == UNMEASURED
    assert filled("{{picture/tinystories/closed}}", rows).endswith("(../p/tinystories-closed-ladder.png)")
    assert filled(r"$\frac{a}{{b} c}$", rows) == r"$\frac{a}{{b} c}$", "formulas stay"


def test_every_rung_appears_once() -> None:
    text = filled("{{rung/schedule}}\n\nWritten by hand.\n\n{{rungs}}", records())
    assert [text.count(f"### {place} {name}\n") for place, name in enumerate(NAMES)] == [1, 1, 1, 1]
    assert text.index("### 2 schedule") < text.index("Written by hand.") < text.index("### 0 baseline")
    assert "Why schedule works." in text


@pytest.mark.parametrize("key", ["tinystories/closed/top/lss", "tinystories/closed/basline/loss", "rung/x", "x"])
def test_a_placeholder_that_names_nothing(key: str) -> None:
    with pytest.raises(UserError, match=r"t\.md, line 2"):
        filled("first\n{{" + key + "}}", records(1))


def test_no_number_of_the_committed_text_is_missing(made: tuple[Path, list[dict[str, Any]]]) -> None:
    text = (made[0] / "answers" / "learning.md").read_text()
    assert "{{" not in text
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (made[0] / "answers" / picture).is_file()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "", '{"corpus": "half a li'])
def test_no_records(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "l.jsonl").write_text(content)
    with pytest.raises(UserError, match="no records") as caught:
        write_report(tmp_path / "l.jsonl", tmp_path / "out", tmp_path, NAMES, DESCRIPTIONS)
    assert caught.value.code == errors.DATA
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "l.jsonl", records(1))
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:50]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="line 3") as caught:
        write_report(path, tmp_path / "out", tmp_path, NAMES, DESCRIPTIONS)
    assert caught.value.code == errors.DATA


# --- the page ---------------------------------------------------------------------------------------------------------


def wait_until(page: Any, condition: Callable[[], bool]) -> None:
    """Playwright's own waiting evaluates strings inside the page, which the page's policy forbids."""
    for _ in range(100):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not happen within 5 s")


@pytest.mark.browser
def test_the_page_works_offline(made: tuple[Path, list[dict[str, Any]]], browser: Any) -> None:
    """In a real browser: draws, hides a curve, switches to a log axis, asks nobody for anything, says no error."""
    page = browser.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((made[0] / "results" / "ladder.html").as_uri())
    curves = page.locator("#tinystories-closed-curves")
    curves.locator(".legendtoggle").nth(1).click()
    state = "(() => { const f = document.getElementById('tinystories-closed-curves'); return [f.layout.yaxis.type,"
    state += " f.data.some(t => t.visible === 'legendonly')]; })()"
    wait_until(page, lambda: page.evaluate(state)[1])
    curves.locator(".updatemenu-button", has_text="log").click()
    wait_until(page, lambda: page.evaluate(state)[0] == "log")
    assert page.locator("#tinystories-closed-ladder .point").count() >= len(NAMES)
    assert page.locator('[data-title^="Share"]').count() == 0, "nothing offers to upload the figures"
    page.close()
    assert len(asked) == 1
    assert asked[0].startswith("file:")
    assert said == []
