"""What `make proof` tries often and .ci/run with few tries (tests/faults/promises.py): its lines and its page."""

from __future__ import annotations

from pathlib import Path

import pytest
from forks import Line
from promises import BEGIN, END, PAGE, PROOFS, text_of, write_table


def test_a_line_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line("killed anywhere", 200, 1, 30.13, "0 lost")
    assert text_of(line) == "killed anywhere: 199/200 ok, 0 lost, 30.1 s"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr("promises.PAGE", page)
    write_table([line])
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\nMeasured on ")
    assert text.endswith(f"| killed anywhere | 199/200 | 0 lost | 30.1 |\n{END}\nafter\n")


def test_every_proof_is_named_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in PROOFS if f"tests/faults/{name}.py" not in text] == []
    assert text.count(BEGIN) == text.count(END) == 1
