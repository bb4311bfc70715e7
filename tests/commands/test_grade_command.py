"""`hectogpt grade` as its users run it: exit codes, files, a class that is killed and goes on, watching."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grade_hostile import HOSTILE
from grade_right import NO_CROP, RIGHT
from grade_solutions import BASE
from grade_wrong import WRONG
from helpers import ROOT

from hectogpt.cli import main


def command(*arguments: str) -> int:
    """The exit code."""
    try:
        main(["grade", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def submit(folder: Path, source: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_solution.py").write_text(source, encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to grade"),
        (("nowhere",), "there is no nowhere"),
        ((".",), "no submission in"),
        ((".", "--timeout", "0"), "have to be positive"),
        ((".", "--hints", "4"), "hints"),
    ],
)
def test_a_wrong_usage(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
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


@pytest.mark.thorough
def test_exit_codes(tmp_path: Path) -> None:
    assert command(submit(tmp_path / "right", BASE), "--strict") == 0
    assert command(submit(tmp_path / "noted", NO_CROP)) == 0
    assert command(submit(tmp_path / "wrong", WRONG[20].source)) == 1


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "hectogpt", "grade", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(program, cwd=folder, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


@pytest.mark.thorough
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_class_that_is_killed_goes_on(tmp_path: Path) -> None:
    """One hangs, one floods, two are equal, one cannot be read; none stops the others, and none is graded twice."""
    sources = [*list(RIGHT.values())[:3], *(case.source for case in WRONG[10:40:10]), BASE]
    sources += [HOSTILE["a loop without end"].source, HOSTILE["a flood"].source]
    for number, source in enumerate(sources):
        submit(tmp_path / "class" / f"student {number}", source)
    (tmp_path / "class" / "broken.zip").write_bytes(b"no archive")
    arguments = ("class", "--timeout", "4", "--jobs", "2", "--csv", "grades.csv")
    records = tmp_path / "grades.jsonl"
    with start(*arguments, folder=tmp_path) as first:
        while not records.exists() or len(records.read_bytes().splitlines()) < 2:
            assert first.poll() is None
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)  # at the end of its output: the children that held it have ended as well
    before = records.read_bytes().splitlines()
    with start(*arguments, folder=tmp_path) as second:
        told, _ = second.communicate(timeout=300)
    assert second.returncode == 1
    after = records.read_bytes().splitlines()
    assert after[: len(before)] == before
    keys = [json.loads(line)["key"] for line in after]
    assert len(keys) == len(set(keys)) == len(set(sources))
    assert f"{len(sources) + 1} submissions" in told
    assert "generate: timed out" in told
    assert "mlp: prints without end" in told
    assert "broken: not graded" in told
    assert len((tmp_path / "grades.csv").read_text().splitlines()) == len(sources) + 2


@pytest.mark.thorough
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_watching_goes_deeper_after_a_save_that_changes_nothing(tmp_path: Path) -> None:
    wrong = next(case.source for case in WRONG if case.names[0] == "scale by d_model")
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

        first = until("state_dict")
        assert "level 1" in first
        assert "symptom:" in first
        assert "where:" not in first
        submit(tmp_path / "anna", wrong + "\n# another save\n")
        second = until("state_dict")
        assert "where:" in second
        assert "what:" not in second
        submit(tmp_path / "anna", wrong + "\n# and another\n")
        assert "divided by the root of d_model" in until("state_dict")
        submit(tmp_path / "anna", BASE)
        assert "level 1" in until("Everything is right")
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=60)
    assert watching.returncode == 130


def test_the_help_fits_a_screen_and_names_every_option() -> None:
    from dataclasses import fields

    from hectogpt.cli.grade import HELP, GradeArguments

    named = {field.name.replace("_", "-") for field in fields(GradeArguments)} - {"paths"}
    assert {name for name in named if f"--{name}" not in HELP} == set()
    lines = HELP.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
