"""`hectogpt assignment`: kits are made from the textbook, written whole or not at all, checked. Its own tests:
right solutions pass, wrong ones fail, stubs are told apart."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command import Here, assert_good_error
from grade_solutions import edited
from grade_tables import FILES, NO_CROP, NOTED_CHANGES, NOTES, RIGHT, RIGHT_CHANGES, WRONG, WRONG_CHANGES, Change
from helpers import ROOT

from hectogpt import errors
from hectogpt.assignment.kit import choose, exercises, stubs, with_stubs, write_kit
from hectogpt.assignment.parts import PARTS, SOURCES
from hectogpt.assignment.progress import TOGETHER, Progress, check_kit, run_part

TEXTBOOK = {name: (ROOT / "reference" / name).read_text(encoding="utf-8") for name in SOURCES}
NAMES = [part.name for part in PARTS]
TEXTS = ("README.md", "AGENTS.md", "CLAUDE.md", "text.txt")


# --- stubs ------------------------------------------------------------------------------------------------------------


def test_every_part_is_marked_once_and_has_a_stub() -> None:
    found = [(part, function) for source in TEXTBOOK.values() for part, function, _ in exercises(source)]
    assert sorted(found) == sorted(stubs())
    assert found == [*dict.fromkeys(found)]
    for part in PARTS:
        functions = [function for name, function in found if name == part.name]
        assert functions == [function.rpartition(".")[2] for function in part.functions]
        assert f"# exercise: {part.name}\n" in TEXTBOOK[part.file]
    assert sum(part.points for part in PARTS) == 30


@pytest.mark.parametrize("name", SOURCES)
def test_a_stub_has_the_frame_of_the_textbook_and_none_of_its_code(name: str) -> None:
    """A file without exercises is the textbook's."""
    marked = [line for line in TEXTBOOK[name].splitlines(keepends=True) if "# exercise:" not in line]
    assert with_stubs(TEXTBOOK[name], ()) == "".join(marked)
    written = with_stubs(TEXTBOOK[name], NAMES)
    assert max(map(len, written.splitlines())) <= 120
    for part, function, code in exercises(TEXTBOOK[name]):
        assert code not in written
        assert f'raise NotImplementedError("exercise {part}: {function} is not written yet")' in written
        assert any(sign in stubs()[part, function] for sign in ("[", "shape", "dict", "parameter", "lists"))
    for node in (n for n in ast.walk(ast.parse(written)) if isinstance(n, ast.FunctionDef)):
        assert not any(isinstance(statement, ast.Raise) for statement in node.body[:-1])


# --- what the tests expect --------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_expected_values_are_the_textbooks() -> None:
    program = "import tools.assignment as a; print(a.written(a.compute()))"
    environment = os.environ | {"TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    stored = (ROOT / "assignment" / "tests" / "expected.json").read_text(encoding="utf-8")
    numbers = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
    assert numbers.sub("", stored).split() == numbers.sub("", done.stdout).split()
    values = [np.array(numbers.findall(text), dtype=float) for text in (stored, done.stdout)]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-7, atol=1e-8)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_kit_is_written(here: Here, tmp_path: Path) -> None:
    done = here.ok("assignment", "my gpt")
    assert "13 parts to write, 30 points" in done.stdout
    assert "hectogpt assignment --check 'my gpt'" in done.stdout
    kit = tmp_path / "my gpt"
    assert {path.name for path in kit.iterdir()} == {*SOURCES, *TEXTS, "create_submission.sh", "tests"}
    assert {path.name for path in (kit / "tests").iterdir()} == {
        *(f"test_{name}.py" for name in [*NAMES, TOGETHER]),
        "checking.py",
        "conftest.py",
        "watch.py",
        "expected.json",
    }
    readme = (kit / "README.md").read_text(encoding="utf-8")
    for text in ("(14 points)", "(6 points)", "(30 points)", "(9 points)", "| attention | `CausalAttention.forward` |"):
        assert text in readme.replace("*(9 points)*", "(9 points)")
    assert 400_000 < (kit / "text.txt").stat().st_size < 700_000
    assert os.access(kit / "create_submission.sh", os.X_OK)
    imports = [
        line for path in kit.rglob("*.py") for line in path.read_text().splitlines() if "import hectogpt" in line
    ]
    assert imports == []


@pytest.mark.parametrize("parts", ["mlp, attention", "scored"])
def test_parts_are_chosen(tmp_path: Path, parts: str) -> None:
    write_kit(tmp_path, choose(parts))
    names = ["mlp", "attention"] if parts != "scored" else [part.name for part in PARTS if part.points]
    source = "".join((tmp_path / name).read_text(encoding="utf-8") for name in SOURCES)
    assert [name for name in NAMES if f"exercise {name}:" in source] == names
    found = {path.name for path in (tmp_path / "tests").glob("test_*.py")}
    assert found == {f"test_{name}.py" for name in [*names, TOGETHER]}
    assert "# exercise" not in source


def test_a_kit_for_teachers_has_the_solution(here: Here, tmp_path: Path) -> None:
    done = here("assignment", "kit", "--solution")
    assert "kit/solution holds the textbook's files and the written answers" in done.stdout
    for name in SOURCES:
        solution = (tmp_path / "kit" / "solution" / name).read_text(encoding="utf-8")
        assert ast.dump(ast.parse(solution)) == ast.dump(ast.parse(TEXTBOOK[name]))
    answers = tmp_path / "kit" / "solution" / "answers"
    assert {"attention.md", "positions.md", "learning.md"} <= {path.name for path in answers.iterdir()}
    for file in answers.glob("*.md"):
        pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", file.read_text(encoding="utf-8"))
        assert [picture for picture in pictures if not (answers / picture).is_file()] == []
    assert list((answers / "figures").glob("*.svg"))


def test_nothing_is_ever_overwritten(here: Here, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    here.ok("assignment", "empty")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".mine").write_text("work")
    (tmp_path / "file").write_text("work")
    (tmp_path / "link").symlink_to("nowhere")
    held = {"empty": "it holds", "work": ".mine", "file": "it is not a folder", "link": "it is not a folder"}
    for name, what in held.items():
        before = sorted(tmp_path.rglob("*"))
        assert_good_error(here("assignment", name), errors.USAGE, name, what, "untouched")
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "work" / ".mine").read_text() == "work"


def test_what_cannot_be_written(here: Here, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("work")
    assert_good_error(here("assignment", "file/kit"), errors.STORAGE, "file/kit")
    assert_good_error(here("assignment", "kit", "--parts", "atention"), errors.USAGE, "did you mean 'attention'?")
    assert_good_error(here("assignment", "kit", "--parts", ","), errors.USAGE, "no part is chosen")
    assert here("assignment").returncode == errors.USAGE


# --- checking ---------------------------------------------------------------------------------------------------------


def solve(folder: Path, *changes: tuple[str, str, str]) -> Path:
    """Put the textbook into a kit, with (file, text, other text) changed."""
    for name, source in TEXTBOOK.items():
        edits = [(old, new) for file, old, new in changes if file == name]
        (folder / name).write_text(edited(source, *edits), encoding="utf-8")
    return folder


@pytest.mark.thorough
def test_whatever_a_part_does_the_others_are_judged(tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    write_kit(kit, choose("all"))
    mark = "        # exercise: "
    solve(
        kit,
        ("model_solution.py", f"{mark}gelu\n", "        while True:\n            pass\n"),
        ("model_solution.py", f"{mark}mlp\n", "        import os\n        os._exit(0)\n"),
        ("model_solution.py", f"{mark}block\n", "        raise SystemExit(0)\n"),
        ("model_solution.py", f"{mark}forward\n", '        print(\'{"part": "loss", "state": "passed"}\')\n'),
        ("model_solution.py", f"{mark}generate\n", "        return self.generate(x, num_new_tokens)\n"),
        ("model_solution.py", f"{mark}loss\n", "        assert False, 'mine\\x1b[31m\\nsecond line'\n"),
        ("train.py", "import argparse\n", "import argparse\nthis is no Python\n"),
    )
    told: list[Progress] = []
    assert check_kit(kit, told.append, limit=8.0) == told
    found = {progress.part: progress.why for progress in told if progress.state == "failed"}
    assert {progress.part for progress in told if progress.state == "passed"} >= {"attention", "forward", "converter"}
    for part, why in {
        "gelu": "not done after 8 s",
        "mlp": "the process ended: exit code 0",
        "block": "SystemExit: 0 (model_solution.py, line ",
        "generate": "RecursionError: ",
        "loss": "AssertionError: mine\x1b[31m (model_solution.py, line ",
        **dict.fromkeys(("chunks", "train", "plot"), "SyntaxError: invalid syntax (train.py, line 16)"),
    }.items():
        assert found[part].startswith(why)


def test_reasons_are_told_in_a_line(here: Here, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    write_kit(kit, choose("mlp,attention,chunks"))
    solve(kit, ("model_solution.py", "math.sqrt(self.d_attention)", "math.sqrt(self.n_heads)"))
    model = (kit / "model_solution.py").read_text(encoding="utf-8")
    (kit / "model_solution.py").write_text(with_stubs(model, ["mlp"]), encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    done = here("assignment", "--check", "kit")
    assert done.returncode == 1
    assert sorted(tmp_path.rglob("*")) == before  # it leaves nothing behind
    lines = done.stdout.splitlines()
    assert (lines[0], lines[2]) == ("  mlp         not started", "  chunks      passed")
    assert lines[1].startswith("  attention   failed       attention: ")
    assert "numbers differ, first at [0, 1, 0]: yours " in lines[1]
    assert lines[3] == "  together    waiting      for mlp"
    assert lines[4].startswith("1 of 4 tests passed; parts worth ")
    assert lines[5:] == [
        "the full message:   cd kit && python -m pytest tests/test_attention.py",
        "possible mistakes:  hectogpt grade kit",
    ]


def test_a_folder_that_is_no_kit(here: Here, tmp_path: Path) -> None:
    write_kit(tmp_path / "kit", choose("mlp"))
    shutil.rmtree(tmp_path / "kit" / "tests")
    for name, what in (("other", "other is not"), ("kit", "tests/test_*.py")):
        assert_good_error(here("assignment", "--check", name), errors.DATA, what)


@pytest.mark.thorough
def test_plain_pytest_names_a_stub_and_passes_a_solution(tmp_path: Path) -> None:
    write_kit(tmp_path / "kit", choose("all"))
    for words, code in (("exercise mlp: forward is not written yet", 1), (" passed", 0)):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(command, cwd=tmp_path / "kit", capture_output=True, text=True)
        assert words in done.stdout
        assert done.returncode == code
        solve(tmp_path / "kit")


# --- the kit's own tests --------------------------------------------------------------------------------------------

MODEL = ("gelu", "mlp", "attention", "block", "forward", "generate", "loss")
Judge = Callable[[str, str], tuple[str, str]]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    """(part, source of its file) -> state and reason, in a kit whose other files are the textbook's."""
    folder, own = tmp_path_factory.mktemp("kit") / "kit", ("model_solution", "train", "utils", "checking", "watch")
    write_kit(folder, choose("all"))
    solve(folder)

    def of(part: str, source: str) -> tuple[str, str]:
        file = FILES.get(part, "model_solution.py")
        for name in (*own, f"test_{part}"):
            sys.modules.pop(name, None)
        (folder / file).write_text(source, encoding="utf-8")
        found = run_part(folder, part)
        (folder / file).write_text(TEXTBOOK[file], encoding="utf-8")
        return found

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "path", [str(folder), str(folder / "tests"), *sys.path])
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.chdir(folder)  # a solution may write to the folder that it runs in
        yield of
    for name in (*own, *(f"test_{name}" for name in [*NAMES, TOGETHER])):
        sys.modules.pop(name, None)


def changed(change: Change) -> str:
    return edited(TEXTBOOK[FILES.get(change.part, "model_solution.py")], (change.old, change.new))


def test_the_textbook_and_right_solutions_pass(judge: Judge, request: pytest.FixtureRequest) -> None:
    """Most with --thorough alone. A note is for a model that raises another error past the context."""
    noted_style, is_thorough = "positions from the table, a loop by index", request.config.getoption("--thorough")
    styles = RIGHT if is_thorough else {noted_style: RIGHT[noted_style]}
    asked = [(part, "textbook", TEXTBOOK[FILES.get(part, "model_solution.py")]) for part in [*NAMES, TOGETHER]]
    asked += [(c.part, c.name, changed(c)) for c in RIGHT_CHANGES]
    asked += [(p, name, source) for name, source in styles.items() for p in MODEL if "not installed" not in name]
    found = {f"{part}: {name}": judge(part, source) for part, name, source in asked}
    assert {name: why for name, (state, why) in found.items() if state != "passed"} == {}
    assert [name for name, (_, note) in found.items() if note] == [f"forward: {noted_style}"]
    changes = [one for one in NOTED_CHANGES if one.name != "plain numbers kept"]  # types are checked here
    noted = [("generate", NO_CROP), *NOTES, *((c.part, changed(c)) for c in changes)]  # the grader makes notes of these
    told = [judge(part, source) for part, source in noted[:: 1 if is_thorough else 3]]
    assert [why for state, why in told if state != "passed"] == []


def test_wrong_solutions_fail_and_say_why(judge: Judge, request: pytest.FixtureRequest) -> None:
    """Those of the model are the grader's own table. All with --thorough, else some of each part."""
    most, step = (None, 1) if request.config.getoption("--thorough") else (2, 8)
    asked = [(c.part, changed(c)) for part in NAMES for c in [c for c in WRONG_CHANGES if c.part == part][:most]]
    for part, source in [*asked, *((c.part, c.source) for c in WRONG[::step])]:
        state, why = judge(part, source)
        assert (state, why != "", "\n" in why) == ("failed", True, False), source
