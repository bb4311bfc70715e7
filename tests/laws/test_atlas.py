"""The atlas: every idea is a row, and a row says what its records say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from atlas_records import arm, write
from helpers import ROOT

from tools.report import atlas

SWIGLU, RELU2, TIED = (
    next(idea for idea in atlas.ideas() if idea.name == name) for name in ("swiglu", "relu2", "tied")
)


def test_the_page_is_what_its_maker_makes_and_has_a_row_for_every_idea(tmp_path: Path) -> None:
    made, page = (path.read_text(encoding="utf-8") for path in atlas.write_pages(out=tmp_path))
    assert made == (ROOT / "docs" / "atlas.md").read_text(encoding="utf-8"), "python -m tools.report.atlas"
    files = re.findall(r"^\| \[\w+\]\(literature/(\w+/\w+)\.py\) \|", made, re.MULTILINE)
    every = {
        f"{path.parent.name}/{path.stem}" for path in atlas.LITERATURE.glob("*/*.py") if "Claim:" in path.read_text()
    }
    assert sorted(files) == sorted(every)
    assert page.count('"sha256"') == len(every) + 1


def test_a_row_says_what_the_records_say(tmp_path: Path) -> None:
    """A positive gain is a lower loss. Few seeds are no verdict; other files, threads and fields are other trials. An
    idea that crashes has the error in its row. A gain on one text is not a mean gain, and goes to the end."""
    old = [trial | {"run": trial["run"] | {"ideas": ["an older file"]}} for trial in arm(RELU2, 0.5)]
    others = [*arm(RELU2, 0.5, run={"threads": 2}), *arm(RELU2, 0.5, overrides={"optim.lr": 1}), *old]
    crashed = arm(RELU2, 0.1, 1, "sotu", status="failed", error="no memory\nwas left")
    arms = [arm(None, 0.0, 12), arm(SWIGLU, 0.1), arm(TIED, -0.1, 7), arm(RELU2, 0.1, 3), others, crashed]
    arms += [arm(None, 0.0, text="sotu"), arm(TIED, -0.1, text="sotu")]
    ordered = atlas.read_rows(write(tmp_path, arms))[1]
    rows = {row.idea.name: row.effects["tinystories"] for row in ordered}
    found = {name: effect.found for name, effect in rows.items() if effect.found}
    told = {name: (one.verdict, one.n) for name, one in found.items()}
    assert told == {"swiglu": ("better", 5), "tied": ("worse", 7)}
    assert found["swiglu"].gain == pytest.approx(0.0992)
    assert (rows["relu2"].word, len(rows["relu2"].pairs)) == ("not measured", 3)
    assert ordered[0].idea == TIED
    assert [str(row.effects["sotu"]) for row in ordered if row.idea == RELU2] == ["not measured: no memory"]


def test_the_gain_of_shorter_runs_is_a_figure(tmp_path: Path) -> None:
    """Also what is published of an idea that is measured here."""
    short = [arm(idea, gain, run={"steps": 25}, overrides={"steps": 25}) for idea, gain in ((None, 0.0), (SWIGLU, 0.3))]
    both = [arm(idea, gain, text=text) for text in atlas.TEXTS for idea, gain in ((None, 0.0), (SWIGLU, 0.1))]
    write(tmp_path, [*both, *short])
    page = atlas.write_pages(tmp_path, tmp_path)[0].read_text(encoding="utf-8")
    assert re.search(r"\| swiglu \| TinyStories \| \+0.299 .*\|  \| \+0.099 .*\|  \|", page)
    assert re.search(r"\| swiglu \| \+0.099 \| \+0.039 \|", page)
