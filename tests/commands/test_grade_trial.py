"""Two trials: a student fills in a kit while `hectogpt grade --watch` looks on, and a teacher grades a class."""

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
from grade_hostile import HOSTILE
from grade_solutions import BASE, KIT, TRAIN
from grade_wrong import WRONG
from helpers import ROOT
from test_grade_command import command, start, submit

from hectogpt.cli import main

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX, and bash")]
REFERENCE = ROOT / "reference"

# part, what is written instead of the right lines, where the second hint points, what the third says
MISTAKES = (
    ("attention", "score + self.causal_mask[:, :, :t, :t], dim=-1)", "score, dim=-1) + self.causal_mask[:, :, :t, :t]",
     "the order of mask and softmax", "after the softmax"),
    ("attention", " / math.sqrt(self.d_attention)", "", "the scale of the scores", "not divided by anything"),
    ("attention", "dim=-1", "dim=-2", "the axis of the softmax", "over the queries, not over the keys"),
    ("block", "return x + self.mlp", "return self.mlp", "the MLP half", "not added to what the MLP returns"),
    ("generate", "logits.argmax(-1, keepdim=True)", "torch.multinomial(logits.softmax(-1), 1)",
     "the choice of the next token", "drawn at random"),
    ("loss", "self(input_ids[:, :-1])\nreturn F.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:]",
     "self(input_ids)\nreturn F.cross_entropy(logits.flatten(0, 1), input_ids[:, :]",
     "which logits are held against which tokens", "There is no shift"),
)  # fmt: skip


class Student:
    """A kit, and a grader that watches it."""

    def __init__(self, folder: Path) -> None:
        main(["assignment", str(folder / "x")])
        self.file = folder / "x" / "model_solution.py"
        self.watching = start("x", "--watch", folder=folder)
        self.begun: set[str] = set()
        self.draft = ""  # what is not saved yet

    def told(self) -> str:
        """What the grader says of one save."""
        lines: list[str] = []
        assert self.watching.stdout is not None
        for line in self.watching.stdout:
            lines = [] if "graded in" in line else lines
            lines.append(line)
            if "plot_results" in line:
                break
        return "".join(lines)

    def write(self, part: str, body: str, *, more: bool = False) -> str:
        """Put code into the place of a part's stub, or of what was written there before; returns what is said. more:
        there is more to write before the file is saved."""
        source = self.draft or self.file.read_text()
        old = re.compile(
            rf"( *)# mine: {part}\n(?:.*\n)*? *# end of mine\n"
            if part in self.begun
            else rf'( *)raise NotImplementedError\("exercise {part}: .*\n'
        )
        found = old.search(source)
        assert found is not None
        self.begun.add(part)
        lines = [f"# mine: {part}", *body.strip("\n").splitlines(), "# end of mine"]
        new = "".join(f"{found[1]}{line}\n" for line in lines)
        self.draft = source[: found.start()] + new + source[found.end() :]
        if more:
            return ""
        self.file.write_text(self.draft)
        self.draft = ""
        return self.told()

    def again(self) -> str:
        """Save with a comment more."""
        self.file.write_text(self.file.read_text() + "\n# no idea\n")
        return self.told()


def test_a_student_from_stubs_to_full_points_by_the_hints_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"  # other tests grade at the same time
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    student = Student(tmp_path)
    try:
        told = student.told()
        assert "x: 0 of 30 points" in told
        assert "NotImplementedError" not in told  # the outcome says so already
        points = 0
        for part, right in KIT.items():
            for wrong, old, new, where, what in MISTAKES:
                if wrong == part:
                    make_and_find_out(student, part, right, old, new, where, what, points)
            if part in ("gelu", "init"):
                student.write(part, right, more=True)
                continue
            told = student.write(part, right)
            assert "level 1" in told
            assert re.search(rf"passed +{NAMES[part]}", told), told
            points = int(re.findall(r"x: (\d+) of 30", told)[0])
        assert points == 27
        for name in ("utils.py", "train.py"):
            shutil.copy(REFERENCE / name, student.file.parent)
            while "converter" not in student.told():  # one file at a time, or both
                pass
        assert student.watching.stdout is not None
        assert any("Everything is right" in line for line in student.watching.stdout)
    finally:
        student.watching.send_signal(signal.SIGINT)
        student.watching.communicate(timeout=60)
    assert student.watching.returncode == 130
    assert list(scratch.glob("hectogpt-grade-*")) == []


NAMES = {
    "gelu": "GELU",
    "mlp": "MLP",
    "attention": "CausalAttention",
    "block": "DecoderBlock",
    "init": "Transformer._init_weights",
    "forward": "Transformer.forward",
    "generate": "Transformer.generate",
    "loss": "Transformer.get_loss_on_batch",
}


def make_and_find_out(
    student: Student, part: str, right: str, old: str, new: str, where: str, what: str, points: int
) -> None:
    """A mistake, then two saves that change nothing: the hints get deeper, level by level."""
    assert right.count(old) == 1
    first = student.write(part, right.replace(old, new))
    assert re.search(rf"failed +{NAMES[part]}", first), first
    assert f"x: {points} of 30 points" in first
    assert "symptom:" in first
    assert "where:" not in first
    second = student.again()
    assert "level 2" in second
    assert where in second
    assert what not in second
    third = student.again()
    assert "level 3" in third
    assert what in third


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
    for name in re.findall(r"href='([^']+)'", overview):
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
