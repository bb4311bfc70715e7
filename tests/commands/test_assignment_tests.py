"""The assignment's own tests: right solutions pass, wrong ones fail, stubs are told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from wrong_assignments import FILES, RIGHT, WRONG, Change

from hectogpt.assignment.kit import SOURCES, choose, write_kit
from hectogpt.assignment.parts import PARTS

TEXTBOOK = {name: (ROOT / "reference" / name).read_text(encoding="utf-8") for name in SOURCES}


def judge(folder: Path, solutions: list[list[str]]) -> list[list[str]]:
    """State and reason of each [part, file, source] in a kit whose other files are the textbook's."""
    write_kit(folder, choose("all"))
    for name, source in TEXTBOOK.items():
        (folder / name).write_text(source, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "programs" / "judge_assignments.py")],
        input=json.dumps({"folder": str(folder), "solutions": solutions}),
        env=os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def changed(change: Change) -> list[str]:
    """A change as a solution."""
    file = FILES.get(change.part, "model_solution.py")
    assert TEXTBOOK[file].count(change.old) == 1, (change.part, change.name)
    return [change.part, file, TEXTBOOK[file].replace(change.old, change.new)]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[str]]:
    """State and reason by part and name of a solution; the textbook is called "textbook"."""
    asked = [Change(part.name, "textbook", "", "") for part in PARTS] + [Change("together", "textbook", "", "")]
    solutions = [[c.part, "model_solution.py", TEXTBOOK["model_solution.py"]] for c in asked]
    asked += [*WRONG, *RIGHT]
    solutions += [changed(change) for change in [*WRONG, *RIGHT]]
    found = judge(tmp_path_factory.mktemp("kit") / "kit", solutions)
    return {(change.part, change.name): verdict for change, verdict in zip(asked, found, strict=True)}


def test_the_textbook_passes(verdicts: dict[tuple[str, str], list[str]]) -> None:
    found = {part: verdict for (part, name), verdict in verdicts.items() if name == "textbook"}
    assert found == {part: ["passed", ""] for part in [*(part.name for part in PARTS), "together"]}


@pytest.mark.parametrize("change", RIGHT, ids=lambda c: f"{c.part}: {c.name}")
def test_a_right_solution_passes(change: Change, verdicts: dict[tuple[str, str], list[str]]) -> None:
    assert verdicts[change.part, change.name] == ["passed", ""]


@pytest.mark.parametrize("change", WRONG, ids=lambda c: f"{c.part}: {c.name}")
def test_a_wrong_solution_fails_and_says_why(change: Change, verdicts: dict[tuple[str, str], list[str]]) -> None:
    state, why = verdicts[change.part, change.name]
    assert state == "failed"
    assert why
    assert "\n" not in why


def test_wrong_solutions_are_many_and_touch_every_part() -> None:
    assert len({(change.part, change.name) for change in [*WRONG, *RIGHT]}) == len(WRONG) + len(RIGHT)
    assert {change.part for change in WRONG} == {part.name for part in PARTS}
