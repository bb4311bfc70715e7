"""The documents of grading: the table is of today, links lead somewhere, commands exist."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from grade_table import DOCUMENT, with_table

from hectogpt.cli.grade import GradeArguments
from hectogpt.grade.result import OUTCOMES

OTHERS = {"--network", "--rm", "--read-only", "--tmpfs", "--volume", "--env", "--check"}  # of docker and the kit
DOCUMENTS = [DOCUMENT, DOCUMENT.with_name("grading-teacher.md")]


@pytest.mark.thorough
def test_the_table_is_of_today() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_table(text) == text, "run `python tests/grade_table.py`"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_options_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (DOCUMENT.parent / link).exists(), link
    options = {"--" + field.name.replace("_", "-") for field in fields(GradeArguments)} | OTHERS
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text.replace("<!--", ""))) <= options
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_every_outcome_is_explained() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [outcome for outcome in OUTCOMES if outcome not in text] == []
