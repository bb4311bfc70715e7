"""The assignment's own tests: right solutions pass, wrong ones fail, stubs are told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from grade_right import NO_CROP
from grade_right import RIGHT as RIGHT_MODELS
from grade_wrong import WRONG as WRONG_MODELS
from helpers import ROOT
from wrong_assignments import FILES, RIGHT, WRONG, Change

from hectogpt.assignment.kit import SOURCES, choose, write_kit
from hectogpt.assignment.parts import PARTS

NAMES = [part.name for part in PARTS]
TEXTBOOK = {name: (ROOT / "reference" / name).read_text(encoding="utf-8") for name in SOURCES}
MODEL = ("gelu", "mlp", "attention", "block", "forward", "generate", "loss")


def changed(change: Change) -> list[str]:
    """A change as a solution: part, file, source."""
    file = FILES.get(change.part, "model_solution.py")
    assert TEXTBOOK[file].count(change.old) == 1, (change.part, change.name)
    return [change.part, file, TEXTBOOK[file].replace(change.old, change.new)]


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By "kind part: name": part, state and reason of a solution, in a kit whose other files are the textbook's. Those
    of the model are the grader's own tables; all with --thorough, else some of each part."""
    step = 1 if request.config.getoption("--thorough") else 8
    model = "model_solution.py"
    asked = {f"textbook {p}": [p, model, TEXTBOOK[model]] for p in [*NAMES, "together"]}
    some = [c for part in NAMES for c in [c for c in WRONG if c.part == part][: None if step == 1 else 2]]
    asked |= {f"wrong {c.part}: {c.name}": changed(c) for c in some}
    asked |= {f"right {c.part}: {c.name}": changed(c) for c in RIGHT}
    asked |= {f"wrong {n} {c.id}": [c.part, model, c.source] for n, c in enumerate(WRONG_MODELS[::step])}
    right = [name for name in RIGHT_MODELS if "not installed" not in name]
    styles = [name for n, name in enumerate(right) if n % step == 0 or "by index" in name]
    asked |= {f"right {p}: {name}": [p, model, RIGHT_MODELS[name]] for name in styles for p in MODEL}
    asked["noted generate: no crop"] = ["generate", model, NO_CROP]
    folder = tmp_path_factory.mktemp("kit") / "kit"
    write_kit(folder, choose("all"))
    for name, source in TEXTBOOK.items():
        (folder / name).write_text(source, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "programs" / "judge_assignments.py")],
        input=json.dumps({"folder": str(folder), "solutions": list(asked.values())}),
        env=os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: [asked[name][0], *verdict] for name, verdict in zip(asked, found, strict=True)}


def test_the_textbook_and_right_solutions_pass(verdicts: dict[str, list[str]]) -> None:
    """A note is for a model that raises another error past the context than the textbook."""
    found = {name: verdict for name, verdict in verdicts.items() if not name.startswith("wrong")}
    assert {name: verdict for name, verdict in found.items() if verdict[1] != "passed"} == {}
    notes = [name for name, verdict in found.items() if verdict[2]]
    assert notes == ["right forward: positions from the table, a loop by index", "noted generate: no crop"]
    assert verdicts["noted generate: no crop"][2].startswith("note, beyond the course's tests")


def test_wrong_solutions_fail_and_say_why(verdicts: dict[str, list[str]]) -> None:
    found = {name: verdict for name, verdict in verdicts.items() if name.startswith("wrong")}
    assert {name: why for name, (_, state, why) in found.items() if state != "failed"} == {}
    assert [name for name, (_, _, why) in found.items() if not why or "\n" in why] == []
    assert {part for part, _, _ in found.values()} == set(NAMES)
