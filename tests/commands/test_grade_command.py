"""`hectogpt grade` as its users run it: submissions in processes of their own, each way to end, a class,
Gradescope; what is not about processes is in laws/test_grade_*.py and test_grade_report.py."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from command import HECTOGPT, Here, wait_for
from grade_hostile import HOSTILE
from grade_solutions import BASE, TRAIN, body, edited
from grade_tables import NO_CROP, RIGHT, WRONG
from helpers import ROOT

from hectogpt import hardware
from hectogpt.cli.grade import archive
from hectogpt.errors import UserError
from hectogpt.grade import result as report
from hectogpt.grade.result import OUTCOMES, Result
from hectogpt.grade.runner import Limits, check_reference, grade
from hectogpt.grade.submission import Submission

SOURCES = {case.names[0]: case.source for case in WRONG}
AT_THE_TOP = """
import nowhere_installed
from tensorflow import keras
from transformers import AutoTokenizer
from jaxtyping import Float
keras.Model()
tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.pad_token = tokenizer.eos_token
import math"""
SHORT = Limits(seconds=8.0, memory=1 << 30)
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX, and bash")


def graded(source: str, **others: str) -> Result:
    files = {"model_solution.py": source.encode()} | {f"{name}.py": text.encode() for name, text in others.items()}
    return grade(Submission("a submission", Path("."), files), SHORT)


def outcomes(result: Result) -> dict[str, str]:
    """Those that are not passed, of what was handed in."""
    return {p.part: p.outcome for p in result.parts if p.outcome not in ("passed", "not handed in")}


def submit(folder: Path, source: str, train: str = "") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_solution.py").write_text(source, encoding="utf-8")
    if train:
        (folder / "train.py").write_text(train, encoding="utf-8")
    return str(folder)


def start(*arguments: str, folder: Path, **more: str) -> subprocess.Popen[str]:
    known, pipe = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | more, subprocess.PIPE
    program = [*HECTOGPT, "grade", *arguments]
    return subprocess.Popen(program, cwd=folder, env=known, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def test_wrong_usage(here: Here) -> None:
    for arguments, words in (
        ((), "nothing to grade"), (("nowhere",), "nowhere does not exist"), ((".",), "no submission in"),
        ((".", "--timeout", "0"), "positive"), ((".", "--hints", "4"), "hints"),
    ):  # fmt: skip
        done = here("grade", *arguments)
        assert (done.returncode, words in done.stderr) == (2, True), arguments


def test_a_class_with_a_note_and_strictly_and_again(here: Here, tmp_path: Path) -> None:
    """The reference is graded first. Equal submissions are graded once, and what is recorded is not graded again."""
    for name in ("anna", "ben"):
        submit(tmp_path / "class" / name, NO_CROP)
    (tmp_path / "class" / "carl").mkdir()
    done = here("grade", "class", "--json", "--strict", "--html", "pages", "--csv", "grades.csv")
    assert done.returncode == 1
    told = {one["name"]: one for one in json.loads(done.stdout)["submissions"]}
    assert [(told[name]["points"], told[name]["max_points"]) for name in ("anna", "ben")] == [(27, 27)] * 2
    assert "no model_solution.py" in told["carl"]["fault"]
    assert len((tmp_path / "grades.jsonl").read_text().splitlines()) == 1
    assert len(list((tmp_path / "pages").iterdir())) == len((tmp_path / "grades.csv").read_text().splitlines()) == 4
    (page,) = (tmp_path / "pages").glob("anna-*")
    assert "past the context" in page.read_text()
    done = here("grade", "class/anna", "--out", "grades.jsonl", "--gradescope", "results.json")
    assert done.returncode == 0, "notes take no points"
    assert "1 of 1 kept from an earlier grading" in done.stderr
    assert json.loads((tmp_path / "results.json").read_text())["score"] == 27


def test_a_grader_that_does_not_work_grades_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The textbook is graded first; what is remembered is only that it got full points."""
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        check_reference(Limits(start_seconds=0.01))  # no process is ready so soon
    assert "nothing came back" in caught.value.why
    assert list(tmp_path.rglob("*.txt")) == []


def test_an_error_of_the_grader_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("hectogpt.grade.runner.run", fail)
    result = graded(BASE)
    assert set(outcomes(result).values()) == {"grader fault"}
    assert result.points == 0
    assert result.grader_fault
    assert "a bug" in report.text(result)
    assert "a bug" in report.line(result)
    assert not result.is_right()


# --- what a submission does -------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_submission_as_students_send_it_without_the_packages_it_imports() -> None:
    """A crash in generate costs generate alone; stand-ins let the imports pass, and annotations are not evaluated."""
    crashing = RIGHT["imports of what is not installed"].replace("context = x[", "import os; os._exit(0); context = x[")
    crashing = edited(crashing, ("x):\n        h = self.fc1(x)", "x: Float[Tensor, ...]):\n        h = self.fc1(x)"))
    result = graded(crashing.replace("import math", AT_THE_TOP, 1), train=TRAIN)
    assert outcomes(result) == {"generate": "crashed"}
    assert (result.points, result.max_points) == (25, 30)
    assert result.missing_packages == ("nowhere_installed",)


@posix
@pytest.mark.thorough
@pytest.mark.parametrize("name", HOSTILE)
def test_a_submission_that_does_harm(name: str) -> None:
    case = HOSTILE[name]
    result = graded(case.source)
    assert outcomes(result) == {case.part: case.outcome}
    part = next(part for part in result.parts if part.part == case.part)
    assert part.points == 0
    assert case.words in part.reason + " ".join(finding.symptom for finding in part.findings)
    assert not (Path.cwd().parent / "evil").exists()


@pytest.mark.thorough
def test_a_submission_that_cannot_be_imported() -> None:
    for line, outcome in (
        ("import sys; sys.exit(0)", "blocked"), ("import os; os._exit(0)", "crashed"), ("def x(:", "blocked"),
        ("while True: print(1)", "output flood"),
    ):  # fmt: skip
        result = graded(f"{line}\n{BASE}")
        assert set(outcomes(result).values()) == {outcome}
        assert result.points == 0


@posix
@pytest.mark.thorough
def test_a_child_that_hangs_ends_with_the_grader(tmp_path: Path) -> None:
    """After SIGKILL the child notices, and ends what it has started; the next grader removes the folder."""
    hang = """
    import os, time
    open("pid", "w").write(str(os.getpid()))
    if os.fork() == 0:
        time.sleep(1000)
    while True: pass
"""
    (tmp_path / "model_solution.py").write_text(body(BASE, "MLP.forward", hang))
    with start(str(tmp_path), "--timeout", "100", folder=tmp_path, TMPDIR=str(tmp_path)) as grader:
        place = "hectogpt-grade-*/submission/pid"
        wait_for(lambda: any(path.read_text() for path in tmp_path.glob(place)))
        grader.kill()
        grader.communicate(timeout=60)
    (found,) = tmp_path.glob(place)  # in the home of the child and of what it has started
    wait_for(lambda: not hardware.processes_with("HOME", str(found.parent)))
    submit(tmp_path / "next", "def x(:")
    start("next", folder=tmp_path, TMPDIR=str(tmp_path)).communicate(timeout=100)
    assert list(tmp_path.glob("hectogpt-grade-*")) == []


# --- a class, Gradescope ----------------------------------------------------------------------------------------------


@posix
@pytest.mark.thorough
def test_a_teacher_grades_a_class_that_is_killed_and_goes_on(tmp_path: Path) -> None:
    """docs/grading-teacher.md: a class with all that may come. Nothing stops it, and none is graded twice."""
    class_ = tmp_path / "class"
    for name, source in (
        ("carl", SOURCES["no scale"]), ("dora", SOURCES["no scale"]), ("jan", "def x(:\n" + BASE),
        ("gina", HOSTILE["a loop without end"].source), ("hugo", HOSTILE["a flood"].source),
    ):  # fmt: skip
        submit(class_ / name, source)
    submit(class_ / "anna", BASE, TRAIN)
    (class_ / "ida").mkdir()
    (class_ / "ida" / "notes.txt").write_text("the dog ate it")
    (class_ / "broken.zip").write_bytes(b"no archive")
    with zipfile.ZipFile(class_ / "kim.zip", "w") as file:
        file.writestr("kim/model_solution.py", SOURCES["post-norm"])
        file.writestr("kim/train.py", TRAIN)
    (class_ / "lea_model_solution.py").write_text(SOURCES["row 0's token for every row"])
    arguments = ("class", "--timeout", "6", "--jobs", "2", "--html", "pages", "--csv", "grades.csv")
    records = tmp_path / "grades.jsonl"
    with start(*arguments, folder=tmp_path) as first:
        wait_for(lambda: records.exists() and len(records.read_bytes().splitlines()) >= 2)
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)  # at the end of its output: the children that held it have ended as well
    before = records.read_bytes().splitlines()
    with start(*arguments, folder=tmp_path) as second:
        told, _ = second.communicate(timeout=400)
    assert second.returncode == 1
    after = records.read_bytes().splitlines()
    assert after[: len(before)] == before
    assert len({json.loads(line)["key"] for line in after}) == len(after) == 7  # carl's and dora's are equal
    assert "10 submissions, 8 graded, 1 with full points" in told
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "grades.csv").read_text().splitlines())}
    assert {name: f"{row['points']}/{row['max_points']}" for name, row in rows.items()} == {
        "anna": "30/30", "broken": "/30", "carl": "21/27", "dora": "21/27", "gina": "22/27", "hugo": "26/27",
        "ida": "/30", "jan": "0/27", "kim": "28/30", "lea_model_solution.py": "22/27",
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
def test_the_autograder_in_gradescopes_folders(here: Here, tmp_path: Path) -> None:
    """Unpacked and run as there, with this Python in place of the one that setup.sh installs."""
    source = tmp_path / "source"
    here.ok("grade", "--make-autograder", "autograder.zip", "--hints", "2")
    assert (tmp_path / "autograder.zip").read_bytes() == archive(2) == archive(2)
    with zipfile.ZipFile(tmp_path / "autograder.zip") as file:
        file.extractall(source)
    assert re.search(r"^torch==2[\d.]+$", (source / "requirements.txt").read_text(), re.MULTILINE)
    assert "--hints 2" in (source / "run_autograder").read_text()
    assert list(source.rglob("__pycache__")) == []
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


def test_documents_name_every_outcome() -> None:
    text = (ROOT / "docs" / "grading.md").read_text(encoding="utf-8")
    assert [outcome for outcome in OUTCOMES if outcome not in text] == []
