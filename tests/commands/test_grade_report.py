"""Finding submissions, records that go on, and the forms of a result: nothing foreign gets through unescaped."""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from grade_solutions import BASE, edited, judged
from helpers import ROOT

from hectogpt.cli.grade_autograder import archive
from hectogpt.errors import UserError
from hectogpt.grade import classroom, laws, page, report, result, settings, submission
from hectogpt.grade.result import PartResult, Result

EVIL = "<script>alert(1)</script>\x1b[31m=1+1"


@pytest.fixture(scope="module")
def wrong() -> Result:
    """One submission with a named mistake, an error with a foreign message, and a note."""
    source = edited(
        BASE,
        ("scores = scores / math.sqrt(self.d_attention)", "scores = scores / C ** 0.5"),
        ("        return loss\n", f"        raise ValueError({EVIL!r})\n"),
        ("context = x[:, -self.config.context_length:]", "context = x"),
    )
    parts = [part for part in laws.GRADED if part not in ("train", "plot", "converter")]
    return Result(EVIL, "0" * 64, list(judged(source, *parts).values()), 1.5)


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(BASE, encoding="utf-8")
    return folder


# --- finding ----------------------------------------------------------------------------------------------------------


def test_submissions_are_found_in_files_folders_and_archives(tmp_path: Path) -> None:
    write(
        tmp_path,
        "anna/model_solution.py",
        "anna/utils.py",
        "anna/tests/test_x.py",
        "ben/deep/model_solution.py",
        "carl.py",
    )
    with zipfile.ZipFile(tmp_path / "dora.zip", "w") as file:
        file.writestr("folder/model_solution.py", BASE)
        file.writestr("folder/train.py", "x = 1")
        file.writestr("__MACOSX/folder/._model_solution.py", "")
        file.writestr("../../evil.py", "x = 1")
    found = submission.find((tmp_path,))
    assert {s.name: sorted(s.files) for s in found} == {
        "anna": ["model_solution.py", "utils.py"],
        "ben/deep": ["model_solution.py"],
        "carl.py": ["model_solution.py"],
        "dora": ["model_solution.py", "train.py"],
    }
    (alone,) = submission.find((tmp_path / "anna" / "model_solution.py",))
    assert sorted(alone.files) == ["model_solution.py", "utils.py"]
    assert alone.key == next(s for s in found if s.name == "anna").key
    with submission.temporary() as folder:
        alone.write(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["model_solution.py", "utils.py"]
    assert not folder.exists()


def test_what_is_no_submission(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        submission.find((tmp_path / "nowhere",))
    with pytest.raises(UserError, match="no submission in"):
        submission.find((tmp_path,))
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 no archive")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("notes.txt", "none")
    faults = {s.name: s.fault for s in submission.find((tmp_path,))}
    assert "cannot be read" in faults["broken"]
    assert "no model_solution.py" in faults["other"]


def test_a_damaged_archive_is_one_students_affair(tmp_path: Path) -> None:
    """A broken deflate stream raises zlib.error, a broken LZMA one LZMAError: neither stops the class."""
    write(tmp_path, "anna/model_solution.py")
    for name, kind in (("ben", zipfile.ZIP_DEFLATED), ("carl", zipfile.ZIP_LZMA), ("dora", zipfile.ZIP_BZIP2)):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", kind) as file:
            file.writestr("model_solution.py", BASE)
        content = bytearray((tmp_path / f"{name}.zip").read_bytes())
        content[200:230] = bytes(30)
        (tmp_path / f"{name}.zip").write_bytes(content)
    faults = {s.name: s.fault for s in submission.find((tmp_path,))}
    assert faults.pop("anna") == ""
    assert set(faults) == {"ben", "carl", "dora"}
    assert all("the archive cannot be read" in fault for fault in faults.values())


def test_graded_files_come_first_and_odd_names_are_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for n in range(70):
            file.writestr(f"a{n}.py", "")
        file.writestr("b" * 300 + ".py", "")
        file.writestr("model_solution.py", BASE)
    (one,) = submission.find((tmp_path / "a.zip",))
    assert "model_solution.py" in one.files
    assert max(map(len, one.files)) < 100


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("secret")
    write(tmp_path, "class/anna/model_solution.py")
    (tmp_path / "class/anna/utils.py").symlink_to(tmp_path / "mine.py")
    (tmp_path / "class/ben").mkdir()
    (tmp_path / "class/ben/model_solution.py").symlink_to(tmp_path / "mine.py")
    (tmp_path / "class/carl").symlink_to(tmp_path / "class/anna")
    found = {s.name: s for s in submission.find((tmp_path / "class",))}
    assert list(found["anna"].files) == ["model_solution.py"]
    assert "links are not followed" in found["ben"].fault
    assert "links are not followed" in found["carl"].fault
    assert not [s for s in found.values() if b"secret" in b"".join(s.files.values())]


def test_what_a_teacher_may_want_to_see(wrong: Result) -> None:
    """Points do not depend on it."""
    one = submission.Submission("x", Path(), {"model_solution.py": b"import math\nfrom hectogpt.grade import laws\n"})
    assert one.looks() == ["model_solution.py:2: from hectogpt.grade import laws"]
    told = replace(wrong, looks=one.looks())
    assert "from hectogpt.grade import laws" in report.text(told)
    assert told.points == wrong.points
    assert submission.find((ROOT / "reference",))[0].looks() == []


def test_who_handed_in_nothing_is_listed_and_stops_nobody(tmp_path: Path) -> None:
    write(tmp_path, "anna/model_solution.py", "ben/notes.txt", "carl/deep/model_solution.py", "tests/test_x.txt")
    faults = {s.name: s.fault for s in submission.find((tmp_path,))}
    assert faults == {"anna": "", "carl/deep": "", "ben": "there is no model_solution.py in it"}
    faults = {s.name: s.fault for s in submission.find((tmp_path / "anna", tmp_path / "ben"))}
    assert faults == {"anna": "", "ben": "there is no model_solution.py in it"}


def test_the_one_submission_of_a_student(tmp_path: Path) -> None:
    """None, or more than one, is the student's affair and not the grader's."""
    write(tmp_path, "notes.txt")
    assert "there is no model_solution.py" in submission.find_one((tmp_path,)).fault
    write(tmp_path, "a/model_solution.py")
    assert submission.find_one((tmp_path,)).fault == ""
    write(tmp_path, "b/model_solution.py")
    assert "more than one submission" in submission.find_one((tmp_path,)).fault
    with pytest.raises(UserError, match="there is no"):
        submission.find_one((tmp_path / "nowhere",))


def test_a_change_of_any_file_changes_the_key(tmp_path: Path) -> None:
    write(tmp_path, "model_solution.py", "helper.py")
    (before,) = submission.find((tmp_path,))
    (tmp_path / "helper.py").write_text(BASE + "\n", encoding="utf-8")
    assert submission.find((tmp_path,))[0].key != before.key


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_is_read_back(wrong: Result, tmp_path: Path) -> None:
    path = tmp_path / "grades.jsonl"
    classroom.write(path, wrong)
    with path.open("a") as file:
        file.write('no JSON\n{"grader": 1}\n{"half": ')
    back = classroom.recorded(path)[wrong.key]
    assert report.text(back) == report.text(wrong)
    assert back.points == wrong.points
    json.dumps(wrong.record(), allow_nan=False)


def test_faults_of_the_grader_and_records_of_another_version_are_not_used_again(wrong: Result, tmp_path: Path) -> None:
    path = tmp_path / "grades.jsonl"
    classroom.write(path, replace(wrong, parts=[PartResult("mlp", "grader fault", "a bug")]))
    assert classroom.recorded(path) == {}
    classroom.write(path, wrong)
    path.write_text(path.read_text().replace(settings.version(), "another"))
    assert classroom.recorded(path) == {}
    with pytest.raises((KeyError, ValueError)):
        result.read({"parts": [{"part": "mlp", "outcome": "excellent"}]})


def test_equal_submissions_and_recorded_ones_are_graded_once(
    wrong: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graded = []

    def grade(one: submission.Submission, *_: object) -> Result:
        graded.append(one.name)
        return replace(wrong, name=one.name, key=one.key)

    monkeypatch.setattr(classroom, "grade", grade)
    write(tmp_path, "a/model_solution.py", "b/model_solution.py")
    (tmp_path / "c.py").write_text("x = 1")
    found, out = submission.find((tmp_path,)), tmp_path / "grades.jsonl"
    assert sorted(r.name for r in classroom.grade_all(found, out, 2)) == ["a", "b", "c.py"]
    assert len(graded) == 2
    assert sorted(r.name for r in classroom.grade_all(found, out, 2)) == ["a", "b", "c.py"]
    assert len(graded) == 2


# --- forms ------------------------------------------------------------------------------------------------------------


def test_hints_go_as_deep_as_asked(wrong: Result) -> None:
    part = wrong.part("attention")
    kinds = [[kind for kind, _ in report.hints(part, level)] for level in (1, 2, 3)]
    assert "where" not in kinds[0]
    assert "where" in kinds[1]
    assert "what" not in kinds[1]
    assert "what" in kinds[2]
    assert "d_model" in dict(report.hints(part, 3))["what"]


def test_text_shows_points_symptoms_and_notes(wrong: Result) -> None:
    told = report.text(wrong)
    assert "14 of 27 points" in told
    assert "yours" in told
    assert "notes (beyond the tests: no points are lost)" in told
    assert "\x1b" not in told


def test_pages_are_data_without_control_characters(wrong: Result) -> None:
    for name, content in page.pages([wrong, replace(wrong, name="../x")], 3).items():
        assert "\\u001b" not in json.dumps(content)
        assert "/" not in name
    assert len(page.pages([wrong] * 3, 3)) == 4
    assert list(page.pages([wrong], 3)) == ["index.html"]


def test_no_cell_of_the_csv_is_a_formula(wrong: Result) -> None:
    rows = list(csv.reader(io.StringIO(report.as_csv([wrong, replace(wrong, name="=1+1")]))))
    assert len({len(row) for row in rows}) == 1
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "@")]


def test_gradescope_gets_a_test_a_part(wrong: Result) -> None:
    told = report.gradescope(wrong, 3, "after_published")
    assert told["score"] == sum(test["score"] for test in told["tests"])
    numbers = {test["number"]: test["max_score"] for test in told["tests"]}
    assert numbers["3(a)iii"] == 6
    assert {test["status"] for test in told["tests"]} == {"passed", "failed"}
    assert {test["visibility"] for test in told["tests"]} == {"after_published"}
    attention = next(test for test in told["tests"] if test["name"] == "CausalAttention")
    assert attention["extra_data"]["diagnosis"] == "scale by d_model"
    json.loads(report.as_text(told))


def test_the_autograder_archive() -> None:
    made = archive("visible", 2)
    assert made == archive("visible", 2)
    with zipfile.ZipFile(io.BytesIO(made)) as file:
        modes = {info.filename: info.external_attr >> 16 for info in file.infolist()}
        run = file.read("run_autograder").decode()
        needed = file.read("requirements.txt").decode()
    assert modes["setup.sh"] == modes["run_autograder"] == 0o755
    assert modes["hectogpt/grade/child.py"] == 0o644
    assert not [name for name in modes if "__pycache__" in name]
    assert "\ntorch==2" in needed
    assert "+" not in needed
    assert "extra" not in needed.replace("--extra-index-url", "")
    assert run.startswith("#!")
    assert "--hints 2" in run
    assert "/autograder/results/results.json" in run
