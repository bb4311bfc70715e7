"""`hectogpt grade` as its users run it: exit codes, files, a class that is killed and goes on, watching, Gradescope."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
from grade_hostile import HOSTILE
from grade_right import NO_CROP
from grade_solutions import BASE, TRAIN
from grade_wrong import WRONG
from helpers import ROOT

from hectogpt.cli import main
from hectogpt.cli.grade import HELP, GradeArguments
from hectogpt.grade.result import OUTCOMES

SOURCES = {case.names[0]: case.source for case in WRONG}
DOCUMENTS = [ROOT / "docs" / name for name in ("grading.md", "grading-teacher.md")]
# Options of docker and of the kit.
OTHERS = {"--network", "--rm", "--read-only", "--tmpfs", "--volume", "--env", "--check", "--solution"}
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX, and bash")


def command(*arguments: str) -> int:
    """The exit code."""
    try:
        main(["grade", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def submit(folder: Path, source: str, train: str = "") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_solution.py").write_text(source, encoding="utf-8")
    if train:
        (folder / "train.py").write_text(train, encoding="utf-8")
    return str(folder)


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "hectogpt", "grade", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(program, cwd=folder, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def test_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        ((), "nothing to grade"), (("nowhere",), "there is no nowhere"), ((".",), "no submission in"),
        ((".", "--timeout", "0"), "have to be positive"), ((".", "--hints", "4"), "hints"),
    ):  # fmt: skip
        assert command(*arguments) == 2
        assert words in capsys.readouterr().err


def test_one_submission_with_a_note_and_strictly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also: --gradescope and --html beside it, and no records for one."""
    folder = submit(tmp_path / "anna", NO_CROP)
    page, results = tmp_path / "pages", tmp_path / "results.json"
    assert command(folder, "--json", "--strict", "--html", str(page), "--gradescope", str(results)) == 1
    (told,) = json.loads(capsys.readouterr().out)["submissions"]
    assert told["points"] == told["max_points"] == 27
    assert json.loads(results.read_text())["score"] == 27
    assert "past the context" in (page / "index.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anna", "pages", "results.json"]
    assert command(folder) == 0


@posix
@pytest.mark.thorough
def test_a_teacher_grades_a_class_that_is_killed_and_goes_on(tmp_path: Path) -> None:
    """docs/grading-teacher.md: a class with all that may come. Nothing stops it, and none is graded twice."""
    class_ = tmp_path / "class"
    submit(class_ / "anna", BASE, TRAIN)
    for name, mistake in (
        ("ben", "mask after softmax"),
        ("carl", "no scale"),
        ("dora", "no scale"),
        ("finn", "no shift"),
    ):
        submit(class_ / name, SOURCES[mistake], TRAIN)
    submit(class_ / "emil", SOURCES["softmax over queries"])
    submit(class_ / "gina", HOSTILE["a loop without end"].source, TRAIN)
    submit(class_ / "hugo", HOSTILE["a flood"].source, TRAIN)
    (class_ / "ida").mkdir()
    (class_ / "ida" / "notes.txt").write_text("the dog ate it")
    submit(class_ / "jan", "def x(:\n" + BASE, TRAIN)
    (class_ / "broken.zip").write_bytes(b"no archive")
    with zipfile.ZipFile(class_ / "kim.zip", "w") as file:
        file.writestr("kim/model_solution.py", SOURCES["post-norm"])
        file.writestr("kim/train.py", TRAIN)
    (class_ / "lea_model_solution.py").write_text(SOURCES["row 0's token for every row"])
    arguments = ("class", "--timeout", "6", "--jobs", "2", "--html", "pages", "--csv", "grades.csv")
    records = tmp_path / "grades.jsonl"
    with start(*arguments, folder=tmp_path) as first:
        while not records.exists() or len(records.read_bytes().splitlines()) < 2:
            assert first.poll() is None
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)  # at the end of its output: the children that held it have ended as well
    before = records.read_bytes().splitlines()
    with start(*arguments, folder=tmp_path) as second:
        told, _ = second.communicate(timeout=400)
    assert second.returncode == 1
    after = records.read_bytes().splitlines()
    assert after[: len(before)] == before
    assert len({json.loads(line)["key"] for line in after}) == len(after) == 10  # carl's and dora's are equal
    assert "13 submissions, 11 graded, 1 with full points" in told
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "grades.csv").read_text().splitlines())}
    assert {name: f"{row['points']}/{row['max_points']}" for name, row in rows.items()} == {
        "anna": "30/30", "ben": "24/30", "broken": "/30", "carl": "24/30", "dora": "24/30", "emil": "21/27",
        "finn": "23/30", "gina": "25/30", "hugo": "29/30", "ida": "/30", "jan": "0/30", "kim": "28/30",
        "lea_model_solution.py": "22/27",
    }  # fmt: skip
    assert "no model_solution.py" in rows["ida"]["not graded"]
    assert "cannot be read" in rows["broken"]["not graded"]
    assert rows["gina"]["generate mistake"] == "timed out"
    assert rows["hugo"]["mlp mistake"] == "prints without end"
    overview = (tmp_path / "pages" / "index.html").read_text()
    assert overview.count("blocked: model_solution.py cannot be imported") == 2  # once among mistakes, once for jan
    for name in re.findall(r'"href": "([^"]+)"', overview):
        assert (tmp_path / "pages" / name).is_file()


@posix
@pytest.mark.thorough
def test_watching_goes_deeper_after_a_save_that_changes_nothing(tmp_path: Path) -> None:
    wrong = SOURCES["scale by d_model"]
    folder = submit(tmp_path / "anna", wrong)
    with start(folder, "--watch", folder=tmp_path) as watching:
        assert watching.stdout is not None

        def until(word: str) -> str:
            lines = []
            assert watching.stdout is not None
            for line in watching.stdout:
                lines.append(line)
                if word in line:
                    break
            return "".join(lines)

        first = until("get_loss_on_batch")
        assert "level 1" in first
        assert "symptom:" in first
        assert "where:" not in first
        submit(tmp_path / "anna", wrong + "\n# another save\n")
        second = until("get_loss_on_batch")
        assert "where:" in second
        assert "what:" not in second
        submit(tmp_path / "anna", wrong + "\n# and another\n")
        assert "divided by the root of d_model" in until("get_loss_on_batch")
        submit(tmp_path / "anna", BASE)
        assert "level 1" in until("Everything is right")
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=60)
    assert watching.returncode == 130


@posix
@pytest.mark.thorough
def test_the_autograder_in_gradescopes_folders(tmp_path: Path) -> None:
    """Unpacked and run as there, with this Python in place of the one that setup.sh installs."""
    source = tmp_path / "source"
    assert command("--make-autograder", str(tmp_path / "autograder.zip")) == 0
    with zipfile.ZipFile(tmp_path / "autograder.zip") as file:
        file.extractall(source)
    subprocess.run(["bash", "-n", str(source / "setup.sh")], check=True)
    for name in ("run_autograder", "setup.sh"):
        script = (source / name).read_text().replace("/autograder/", f"{tmp_path}/")
        script = script.replace("/opt/grader/bin/python", sys.executable).replace("/opt/grader", str(tmp_path))
        lines = script.split("\n")
        kept = [line for line in lines if name != "setup.sh" or line.startswith(("export", "rm", sys.executable))]
        (tmp_path / name).write_text("\n".join(kept))
    subprocess.run(["bash", "-e", str(tmp_path / "setup.sh")], cwd=tmp_path, check=True)
    assert list(source.rglob("reference")) == []
    for text, points, words in ((BASE, 30, "30 of 30"), ("def x(:\n", 0, "0 of 30"), ("", 0, "no model_solution")):
        submission = tmp_path / "submission"
        shutil.rmtree(submission, ignore_errors=True)
        submission.mkdir()
        (submission / "essay.txt").write_text("words")
        if text:
            submit(submission, text, TRAIN)
        subprocess.run(["bash", str(tmp_path / "run_autograder")], cwd=tmp_path, check=True, capture_output=True)
        told = json.loads((tmp_path / "results" / "results.json").read_text())
        assert told["score"] == points
        assert words in told["output"]
        if points:
            assert {t["number"]: t["score"] for t in told["tests"] if t["max_score"]} == {
                "3(a)ii": 1, "3(a)iii": 6, "3(a)iv": 2, "3(a)v": 6, "3(a)vi": 5, "3(b)ii": 7, "3(b)iii": 3,
            }  # fmt: skip


def test_help_and_documents_name_every_option_and_outcome() -> None:
    options = {"--" + field.name.replace("_", "-") for field in fields(GradeArguments)}
    assert {option for option in options - {"--paths"} if option not in HELP} == set()
    assert len(HELP.splitlines()) <= 45
    assert max(map(len, HELP.splitlines())) <= 80
    assert [outcome for outcome in OUTCOMES if outcome not in DOCUMENTS[0].read_text(encoding="utf-8")] == []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= options | OTHERS
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (path.parent / link).exists(), link
