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

from hectogpt.errors import UserError
from hectogpt.grade import laws, runner, submission
from hectogpt.grade import result as report
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
    parts = [part for part in laws.GRADED if part != "train"]
    return Result(EVIL, "0" * 64, tuple(judged(source, *parts).values()), 1.5)


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(BASE, encoding="utf-8")
    return folder


def faults_in(*paths: Path) -> dict[str, str]:
    return {one.name: one.fault for one in submission.find(paths)}


# --- finding ----------------------------------------------------------------------------------------------------------


def test_submissions_are_found_in_files_folders_and_archives(tmp_path: Path) -> None:
    write(tmp_path, "anna/model_solution.py", "anna/utils.py", "anna/tests/test_x.py", "ben/deep/model_solution.py")
    write(tmp_path, "carl.py", "emil/notes.txt")
    with zipfile.ZipFile(tmp_path / "dora.zip", "w") as file:
        file.writestr("folder/model_solution.py", BASE)
        file.writestr("folder/train.py", "x = 1")
        file.writestr("__MACOSX/folder/._model_solution.py", "")
        file.writestr("../../evil.py", "x = 1")
        file.writestr("folder/" + "b" * 300 + ".py", "")
        for n in range(70):
            file.writestr(f"folder/a{n}.py", "")
    found = {one.name: one for one in submission.find((tmp_path,))}
    assert len(found.pop("dora").files) == submission.MOST
    assert {name: sorted(one.files) for name, one in found.items()} == {
        "anna": ["model_solution.py", "utils.py"],
        "ben/deep": ["model_solution.py"],
        "carl.py": ["model_solution.py"],
        "emil": [],  # nobody is forgotten
    }
    (alone,) = submission.find((tmp_path / "anna" / "model_solution.py",))
    assert alone.key == found["anna"].key
    write(tmp_path, "anna/helper.py")
    assert submission.find((tmp_path / "anna",))[0].key != alone.key
    flat = write(
        tmp_path / "flat", "smith_12_345_model_solution-1.py", "smith_12_346_train.py", "lee_9_7_model_solution.py"
    )
    write(flat, "max_3_4_work.ipynb")
    assert {one.name: sorted(one.files) for one in submission.find((flat,))} == {
        "smith_12_345_model_solution-1.py": ["model_solution.py", "train.py"],
        "lee_9_7_model_solution.py": ["model_solution.py"],
        "max_3_4_work.ipynb": [],
    }


def test_what_cannot_be_graded_is_one_students_affair(tmp_path: Path) -> None:
    """A broken deflate stream raises zlib.error, a broken LZMA one LZMAError: neither stops the class."""
    with pytest.raises(UserError, match="does not exist"):
        submission.find_one((tmp_path / "nowhere",))
    with pytest.raises(UserError, match="no submission in"):
        submission.find((tmp_path,))
    assert "there is no model_solution.py" in submission.find_one((tmp_path,)).fault
    write(tmp_path, "anna/model_solution.py")
    assert submission.find_one((tmp_path,)).fault == ""
    kinds = {"ben": zipfile.ZIP_DEFLATED, "carl": zipfile.ZIP_LZMA, "dora": zipfile.ZIP_BZIP2}
    for name, kind in kinds.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", kind) as file:
            file.writestr("model_solution.py", BASE)
        content = bytearray((tmp_path / f"{name}.zip").read_bytes())
        content[200:230] = bytes(30)
        (tmp_path / f"{name}.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("notes.txt", "none")
    faults = faults_in(tmp_path)
    assert faults.pop("anna") == ""
    assert "no model_solution.py" in faults.pop("other")
    assert set(faults) == set(kinds)
    assert all("the archive cannot be read" in fault for fault in faults.values())
    assert submission.find_one((tmp_path,)).name == "anna", "the only one that can be graded"
    write(tmp_path, "eva.py")
    assert "more than one submission" in submission.find_one((tmp_path,)).fault
    (tmp_path / "empty").mkdir()
    assert faults_in(tmp_path / "anna", tmp_path / "empty") == {
        "anna": "",
        "empty": "no model_solution.py can be read from it",
    }


def test_packages_are_copied_and_odd_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, "anna/model_solution.py", "anna/layers/attention.py", "anna/tests/test_x.py")
    (tmp_path / "ben.py").write_bytes(BASE.encode("utf-16"))
    with zipfile.ZipFile(tmp_path / "carl.zip", "w") as file:
        file.writestr("inner.zip", b"")
    with zipfile.ZipFile(tmp_path / "dora.zip", "w") as file:
        link = zipfile.ZipInfo("model_solution.py")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "../elsewhere.py")
    found = {one.name: one for one in submission.find((tmp_path,))}
    assert sorted(found["anna"].files) == ["layers/attention.py", "model_solution.py"]
    words = {"ben.py": "UTF-16", "carl": "archive in the archive", "dora": "is a link"}
    assert [name for name, said in words.items() if said not in found[name].fault] == []
    source = b"import gc\nself.eval()\neval('1')\n"
    assert len(submission.Submission("x", Path(), {"model_solution.py": source}).looks()) == 1


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


def test_what_a_teacher_may_want_to_see(wrong: Result) -> None:
    """Points do not depend on it."""
    one = submission.Submission("x", Path(), {"model_solution.py": b"import math\nfrom hectogpt.grade import laws\n"})
    assert one.looks() == ("model_solution.py:2: from hectogpt.grade import laws",)
    told = replace(wrong, looks=one.looks())
    assert "from hectogpt.grade import laws" in report.text(told)
    assert told.points == wrong.points
    assert submission.find((ROOT / "reference",))[0].looks() == ()


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_is_read_back_unless_it_is_of_another_version(wrong: Result, tmp_path: Path) -> None:
    path = tmp_path / "grades.jsonl"
    runner.write(path, replace(wrong, parts=(PartResult("mlp", "grader fault", "a bug"),)))
    assert runner.recorded(path) == {}
    runner.write(path, wrong)
    with path.open("a") as file:
        file.write('no JSON\n{"grader": 1}\n{"half": ')
    back = runner.recorded(path)[wrong.key]
    assert report.text(back) == report.text(wrong)
    assert back.points == wrong.points
    path.write_text(path.read_text().replace(runner.version(), "another"))
    assert runner.recorded(path) == {}


# --- forms ------------------------------------------------------------------------------------------------------------


def test_hints_go_as_deep_as_asked(wrong: Result) -> None:
    part = next(part for part in wrong.parts if part.part == "attention")
    kinds = [[kind for kind, _ in report.hints(part, level)] for level in (1, 2, 3)]
    assert kinds == [["symptom"], ["symptom", "where"], ["symptom", "where", "what", "effect"]]
    assert "d_model" in dict(report.hints(part, 3))["what"]


def test_text_pages_and_csv_are_harmless(wrong: Result) -> None:
    told = report.text(wrong)
    for words in ("14 of 27 points", "yours", "notes (beyond the tests; they cost no points)"):
        assert words in told
    assert "\x1b" not in told
    pages = report.pages([wrong, replace(wrong, name="../x"), replace(wrong, name="x")], 3)
    assert len(pages) == 4
    assert "\\u001b" not in json.dumps(pages)
    assert not [name for name in pages if "/" in name]
    assert list(report.pages([wrong], 3)) == ["index.html"]
    rows = list(csv.reader(io.StringIO(report.as_csv([wrong, replace(wrong, name="=1+1")]))))
    assert len({len(row) for row in rows}) == 1
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "@")]


def test_gradescope_gets_a_test_a_part(wrong: Result) -> None:
    """Its points: test_grade_command.py, in Gradescope's folders."""
    told = report.gradescope(wrong, 3)
    assert {test["status"] for test in told["tests"]} == {"passed", "failed"}
    attention = next(test for test in told["tests"] if test["name"] == "CausalAttention")
    assert attention["extra_data"]["diagnosis"] == "scale by d_model"
