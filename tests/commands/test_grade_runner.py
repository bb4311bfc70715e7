"""Submissions in processes of their own: what they do harms nobody, and each way to end has its name."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from grade_hostile import HOSTILE
from grade_right import RIGHT
from grade_solutions import BASE, TRAIN, body, edited
from helpers import ROOT

from hectogpt import hardware
from hectogpt.errors import EXACTNESS, UserError
from hectogpt.grade import report, submission
from hectogpt.grade.classroom import check_reference, grade
from hectogpt.grade.result import Result
from hectogpt.grade.submission import Limits, Submission

AT_THE_TOP = """
import nowhere_installed
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.pad_token = tokenizer.eos_token
import math"""
SHORT = Limits(seconds=8.0, memory=1 << 30)


def graded(source: str, **others: str) -> Result:
    files = {"model_solution.py": source.encode()} | {f"{name}.py": text.encode() for name, text in others.items()}
    return grade(Submission("a submission", Path("."), files), SHORT)


def outcomes(result: Result) -> dict[str, str]:
    """Those that are not passed, of what was handed in."""
    return {p.part: p.outcome for p in result.parts if p.outcome not in ("passed", "not handed in")}


def test_the_textbook_gets_full_points() -> None:
    (one,) = submission.find((ROOT / "reference",))
    result = grade(one)
    assert outcomes(result) == {}
    assert (result.points, result.max_points) == (30, 30)
    assert result.is_right(strict=True)


@pytest.mark.thorough
def test_a_submission_as_students_send_it_without_the_packages_it_imports() -> None:
    """A crash in generate costs generate alone; stand-ins let the imports pass."""
    crashing = RIGHT["imports of what is not installed"].replace("context = x[", "import os; os._exit(0); context = x[")
    result = graded(crashing.replace("import math", AT_THE_TOP, 1), train=TRAIN)
    assert outcomes(result) == {"generate": "crashed"}
    assert (result.points, result.max_points) == (25, 30)
    assert result.missing == ["nowhere_installed"]


@pytest.mark.thorough
@pytest.mark.skipif(os.name != "posix", reason="processes of POSIX")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_submission_that_does_harm(name: str) -> None:
    case = HOSTILE[name]
    result = graded(case.source)
    assert outcomes(result) == {case.part: case.outcome}
    part = result.part(case.part)
    assert part.points == 0
    assert case.words in part.reason + " ".join(finding.symptom for finding in part.findings)
    assert not (Path.cwd().parent / "evil").exists()


@pytest.mark.thorough
def test_a_submission_that_cannot_be_imported_and_one_without_a_class() -> None:
    for line, outcome in (
        ("import sys; sys.exit(0)", "blocked"), ("import os; os._exit(0)", "crashed"), ("def x(:", "blocked"),
        ("while True: print(1)", "output flood"),
    ):  # fmt: skip
        result = graded(f"{line}\n{BASE}")
        assert set(outcomes(result).values()) == {outcome}
        assert result.points == 0
    blocks = outcomes(graded(edited(BASE, ("class DecoderBlock(", "class Block("))))
    assert blocks == {"block": "not started", **dict.fromkeys(("init", "forward", "generate", "loss"), "blocked")}


def test_annotations_that_cannot_be_evaluated_are_postponed() -> None:
    """As Python 3.14 does: `Float[Tensor, ...]` raises when it is evaluated."""
    old = "def forward(self, x):\n        h = self.fc1(x)"
    imported = ("from torch import Tensor", "from torch import Tensor\nfrom jaxtyping import Float")
    source = edited(BASE, imported, (old, old.replace("x):", "x: Float[Tensor, ...]):")))
    assert outcomes(graded(source)) == {}


@pytest.mark.thorough
def test_the_starters_stubs_are_not_started() -> None:
    """They return torch.empty(1), which broadcasts."""
    source = BASE
    ends = (
        "return out\n\n\nclass CausalAttention",
        "return out\n\n\nclass DecoderBlock",
        "return logits\n\n    @torch",
    )
    for old in (*ends, "return loss\n"):
        source = edited(source, (old, old.replace(old.split("\n")[0], "return torch.empty(1)", 1)))
    result = graded(source)
    expected = {"mlp": "not started", "attention": "not started", "forward": "not started", "loss": "not started"}
    assert outcomes(result) == expected


@pytest.mark.thorough
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_child_that_hangs_ends_with_the_grader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with SIGKILL, the grader can end nobody; the child notices, and ends what it has started. The folder that
    is left goes when another grader begins."""
    hang = """
    import os, time
    open("pid", "w").write(str(os.getpid()))
    if os.fork() == 0:
        time.sleep(1000)
    while True: pass
"""
    (tmp_path / "model_solution.py").write_text(body(BASE, "MLP.forward", hang))
    program = [sys.executable, "-m", "hectogpt", "grade", str(tmp_path), "--timeout", "100"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as grader:
        until = time.monotonic() + 120
        while not (found := list(tmp_path.glob("hectogpt-grade-*/submission/pid"))) or not found[0].read_text():
            assert time.monotonic() < until
            assert grader.poll() is None
            time.sleep(0.05)
        pid = int(found[0].read_text())
        grader.kill()
        grader.communicate(timeout=60)
    home = str(found[0].parent)  # of the child and of what it has started
    while hardware.processes_with("HOME", home) or hardware.is_process(pid):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert found[0].exists()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    submission.remove_leftovers()
    assert list(tmp_path.glob("hectogpt-grade-*")) == []


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_only_folders_of_graders_that_are_gone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone, begun, other = (tmp_path / name for name in ("hectogpt-grade-gone", "hectogpt-grade-begun", "other"))
    for folder in (gone, begun, other):
        folder.mkdir()
        (folder / "kept").touch()
    for folder in (gone, other):
        (folder / "lock").touch()
    link = tmp_path / "hectogpt-grade-link"
    link.symlink_to(other)
    with submission.temporary() as alive_one:
        submission.remove_leftovers()
        assert alive_one.is_dir()
        assert not gone.exists()
        assert [folder / "kept" for folder in (begun, other, link) if not (folder / "kept").exists()] == []


def test_a_grader_that_does_not_work_grades_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The textbook is graded first; what is remembered is only that it got full points."""
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        check_reference(Limits(start_seconds=0.01))  # no process is ready so soon
    assert caught.value.code == EXACTNESS
    assert "nothing came back" in caught.value.why
    assert list(tmp_path.rglob("*.txt")) == []


def test_an_error_of_the_grader_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("hectogpt.grade.classroom.run", fail)
    result = graded(BASE)
    assert set(outcomes(result).values()) == {"grader fault"}
    assert result.points == 0
    assert result.grader_fault
    assert "a bug" in report.text(result)
    assert "a bug" in report.line(result)
    assert not result.is_right()
