"""Placeholders of the written answer: numbers, tables, pictures, rungs; an error with its line for all others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from reports import DESCRIPTIONS, NAMES, WIDTH, Row, boards_of, make_row, make_rows

from hectogpt.errors import UserError
from tools.report.template import FIELDS, UNMEASURED, Filler, format_field


def filled(template: str, rows: Sequence[Row]) -> str:
    text = Filler(boards_of(rows), NAMES, DESCRIPTIONS, "../p").fill(template, Path("t.md"))
    return text.partition("-->\n\n")[2]


def test_placeholders() -> None:
    rows = make_rows()
    mean = np.mean([r["test_loss"] for r in rows if r["recipe"] == WIDTH])
    assert filled("a {{tinystories/closed/top/loss}} b", rows) == f"a {mean:.3f} b"
    assert filled(f"{{{{tinystories/closed/{WIDTH}/verdict}}}}", rows) == "tie"
    assert filled("{{sotu/closed/top/loss}}", rows) == UNMEASURED
    assert filled("{{picture/tinystories/closed}}", rows).endswith("(../p/tinystories-closed-ladder.png)")
    assert filled("{{curves/tinystories/closed}}", rows).endswith("(../p/tinystories-closed-curves.png)")
    assert filled(f"{{{{what/{WIDTH}}}}}", rows) == DESCRIPTIONS[WIDTH].partition("\n\n")[0]
    assert "(tie)" in filled("{{table/tinystories/closed}}", rows)
    assert filled("{{table/tinystories/closed}}", rows).count("\n") == 1 + len(NAMES) + 6
    assert filled(r"$\frac{a}{{b} c}$", rows) == r"$\frac{a}{{b} c}$", "formulas stay"


def test_every_field_has_a_value() -> None:
    [board] = boards_of(make_rows())
    assert board.top is not None
    assert all(format_field(board, board.top, field) != UNMEASURED for field in FIELDS)


def test_every_rung_appears_once() -> None:
    text = filled("{{rung/schedule}}\n\nWritten by hand.\n\n{{rungs}}", make_rows())
    assert [text.count(f"### {place} {name}\n") for place, name in enumerate(NAMES)] == [1, 1, 1, 1]
    assert text.index("### 2 schedule") < text.index("Written by hand.") < text.index("### 0 baseline")
    assert "Why schedule works." in text


def test_a_rung_says_how_many_seeds_and_pairs_there_are() -> None:
    rows = [make_row("baseline", 0), make_row("learning_rate", 0), make_row("learning_rate", 1)]
    text = filled("{{rung/learning_rate}}", rows)
    assert "(test, 2 seeds); gained " in text
    assert "over baseline (test, 1 pair" in text


@pytest.mark.parametrize("key", ["tinystories/closed/top/lss", "tinystories/closed/basline/loss", "rung/x", "x"])
def test_a_placeholder_that_names_nothing(key: str) -> None:
    with pytest.raises(UserError, match=r"t\.md, line 2"):
        filled("first\n{{" + key + "}}", make_rows(1))
