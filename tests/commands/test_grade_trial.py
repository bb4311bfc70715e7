"""A trial: a teacher grades a class, by hand and with Gradescope."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from grade_hostile import HOSTILE
from grade_solutions import BASE, TRAIN
from grade_wrong import WRONG
from helpers import ROOT
from test_grade_command import command, submit

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX, and bash")]
REFERENCE = ROOT / "reference"

# --- a class ----------------------------------------------------------------------------------------------------------

SOURCES = {names[0]: source for names, source in ((case.names, case.source) for case in WRONG)}


def hand_in(folder: Path, source: str) -> None:
    submit(folder, source)
    (folder / "train.py").write_text(TRAIN)
    shutil.copy(REFERENCE / "utils.py", folder)


def test_a_teacher_grades_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/grading-teacher.md: a class of twelve, with all that may come."""
    monkeypatch.chdir(tmp_path)
    class_ = tmp_path / "submissions"
    hand_in(class_ / "anna", BASE)
    for name, mistake in (("ben", "mask after softmax"), ("carl", "no scale"), ("dora", "no scale")):
        hand_in(class_ / name, SOURCES[mistake])
    submit(class_ / "emil", SOURCES["softmax over queries"])
    hand_in(class_ / "finn", SOURCES["no shift"])
    hand_in(class_ / "gina", HOSTILE["a loop without end"].source)
    hand_in(class_ / "hugo", HOSTILE["a flood"].source)
    (class_ / "ida").mkdir()
    (class_ / "ida" / "notes.txt").write_text("the dog ate it")
    hand_in(class_ / "jan", "def x(:\n" + BASE)
    hand_in(tmp_path / "kim", SOURCES["post-norm"])
    with zipfile.ZipFile(class_ / "kim.zip", "w") as file:
        for path in sorted((tmp_path / "kim").iterdir()):
            file.write(path, f"kim/{path.name}")
    (class_ / "lea_model_solution.py").write_text(SOURCES["row 0's token for every row"])

    assert command("submissions", "--html", "pages", "--csv", "grades.csv", "--timeout", "6") == 1
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "grades.csv").read_text().splitlines())}
    points = {name: f"{row['points']}/{row['max_points']}" for name, row in rows.items()}
    assert points == {
        "anna": "30/30",
        "ben": "24/30",
        "carl": "24/30",
        "dora": "24/30",
        "emil": "21/27",
        "finn": "23/30",
        "gina": "25/30",
        "hugo": "29/30",
        "ida": "0/0",
        "jan": "0/30",
        "kim": "28/30",
        "lea_model_solution.py": "22/27",
    }
    assert "no model_solution.py" in rows["ida"]["fault"]
    assert rows["gina"]["generate mistake"] == "timed out"
    assert rows["hugo"]["mlp mistake"] == "prints without end"
    overview = (tmp_path / "pages" / "index.html").read_text()
    assert "11 graded, 1 with full points" in overview
    assert overview.count("blocked: model_solution.py cannot be imported") == 2  # once among mistakes, once for jan
    for name in re.findall(r'"href": "([^"]+)"', overview):
        assert (tmp_path / "pages" / name).is_file()
    assert len((tmp_path / "grades.jsonl").read_text().splitlines()) == 10  # carl's and dora's are equal


RESULTS = {
    "right": (BASE, 30, "30 of 30"),
    "broken": ("def x(:\n", 0, "0 of 30"),
    "empty": ("", 0, "no model_solution"),
}


def test_the_autograder_in_gradescopes_folders(tmp_path: Path) -> None:
    """Unpacked and run as there, with this Python in place of the one that setup.sh installs."""
    source = tmp_path / "source"
    assert command("--make-autograder", str(tmp_path / "autograder.zip")) == 0
    with zipfile.ZipFile(tmp_path / "autograder.zip") as file:
        file.extractall(source)
    subprocess.run(["bash", "-n", str(source / "setup.sh")], check=True)
    for name in ("run_autograder", "setup.sh"):
        script = (source / name).read_text().replace("/autograder/", f"{tmp_path}/")
        lines = (
            script.replace("/opt/grader/bin/python", sys.executable).replace("/opt/grader", str(tmp_path)).split("\n")
        )
        kept = [line for line in lines if name != "setup.sh" or line.startswith(("export", "rm", sys.executable))]
        (tmp_path / name).write_text("\n".join(kept))
    subprocess.run(["bash", "-e", str(tmp_path / "setup.sh")], cwd=tmp_path, check=True)
    assert list(source.rglob("reference")) == []
    for name, (text, points, words) in RESULTS.items():
        submission = tmp_path / "submission"
        shutil.rmtree(submission, ignore_errors=True)
        submission.mkdir()
        (submission / "essay.txt").write_text("words")
        if name != "empty":
            hand_in(submission, text)
        subprocess.run(["bash", str(tmp_path / "run_autograder")], cwd=tmp_path, check=True, capture_output=True)
        told = json.loads((tmp_path / "results" / "results.json").read_text())
        assert told["score"] == points, name
        assert words in told["output"]
        assert "grader failed" not in told["output"]
        if name == "right":
            assert {t["number"]: t["score"] for t in told["tests"] if t["max_score"]} == {
                "3(a)ii": 1,
                "3(a)iii": 6,
                "3(a)iv": 2,
                "3(a)v": 6,
                "3(a)vi": 5,
                "3(b)ii": 7,
                "3(b)iii": 3,
            }
