"""A user's own file: imported as it was read, its errors told with the line, nothing of the process left changed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hectogpt.errors import UserError
from hectogpt.idea_file import IdeaFile, explain, load_idea, read_idea, remember, remembered
from hectogpt.model.parts import ScoreBias
from hectogpt.serialization import classes_of, idea_module, load


def write(folder: Path, source: str, name: str = "mine.py") -> IdeaFile:
    (folder / name).write_text(source, encoding="utf-8")
    return read_idea(folder / name)


def refused(idea: IdeaFile) -> UserError:
    with pytest.raises(UserError) as caught:
        load_idea(idea)
    assert idea_module(idea.sha256) not in sys.modules
    return caught.value


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", "folder"])
def test_what_cannot_be_read_is_one_error(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "mine.py"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.py"):
        read_idea(path)


# --- importing --------------------------------------------------------------------------------------------------------


def test_the_source_that_was_read_is_imported_and_once(tmp_path: Path) -> None:
    idea = write(tmp_path, "from beside import number\nvalues = []\nsource = 'as it was read'\n")
    (tmp_path / "beside.py").write_text("number = 7\n")
    idea.path.write_text("raise ValueError('edited meanwhile')\n")
    module = load_idea(idea)
    assert (module.source, module.number, module.__file__) == ("as it was read", 7, str(idea.path))
    module.values.append(1)
    assert load_idea(idea).values == [1]
    assert not list(tmp_path.rglob("__pycache__/mine*")), "an import leaves nothing beside the file"


def test_what_the_file_prints_goes_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "import sys\nprint('one')\nsys.stdout.write('two\\n')\n"
    source += "def later(file):\n    print('three')\n    print('four', file=file)\n"
    module = load_idea(write(tmp_path, source))
    with open(tmp_path / "out", "w") as file:
        module.later(file)
    told = capsys.readouterr()
    assert (told.out, told.err.split()) == ("", ["one", "two", "three"])
    assert (tmp_path / "out").read_text() == "four\n"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax (mine.py, line 2: def f(:)"),
        (
            "def f():\n    return 1 / 0\n\nx = f()\n",
            "ZeroDivisionError: division by zero (mine.py, line 2: return 1 / 0)",
        ),
        ("import no_such_module_at_all\n", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("import sys\nsys.exit()\n", "it called exit() (mine.py, line 2: sys.exit())"),
    ],
)
def test_a_file_that_does_not_import_is_told_with_its_line(tmp_path: Path, source: str, why: str) -> None:
    error = refused(write(tmp_path, source))
    assert "mine.py cannot be imported" in error.what
    assert why in error.why + error.fix


# --- classes ----------------------------------------------------------------------------------------------------------

BIAS = """
from dataclasses import dataclass
from hectogpt import ScoreBias

@dataclass(frozen=True)
class Same(ScoreBias):
    {field}: float = 1.0
    def build(self, n_heads, d_head):
        raise NotImplementedError
"""


def test_a_file_finds_its_own_classes_whatever_others_define(tmp_path: Path) -> None:
    one = write(tmp_path, BIAS.format(field="a"))
    other = write(tmp_path, BIAS.format(field="b"), "other.py")
    kinds = {idea.sha256: load_idea(idea).Same for idea in (one, other)}
    for idea, field in ((one, "a"), (other, "b"), (one, "a")):
        with classes_of([idea.sha256]):
            found = load(ScoreBias, {"type": "Same", field: 2.0})
        assert type(found) is kinds[idea.sha256]
    for names in ((), ("0" * 64,)):
        with classes_of(names), pytest.raises(UserError, match="unknown type 'Same'"):
            load(ScoreBias, {"type": "Same"})


# --- errors while a run is at work ------------------------------------------------------------------------------------


def explained(source: str, folder: Path) -> UserError | None:
    module = load_idea(write(folder, source))
    try:
        module.work()
    except BaseException as error:
        return explain(error)
    raise AssertionError("it went well")


def test_an_error_at_work_is_told_with_part_and_line(tmp_path: Path) -> None:
    source = "class Part:\n    def step(self):\n        return [][1]\n\ndef work():\n    Part().step()\n"
    error = explained(source, tmp_path)
    assert error is not None
    assert error.what == "mine.py: Part.step failed"
    assert error.why == "IndexError: list index out of range (mine.py, line 3: return [][1])"
    assert str(tmp_path) in error.fix
    error = explained("def work():\n    exit(0)\n", tmp_path)
    assert error is not None
    assert "it called exit()" in error.why


# --- remembering ------------------------------------------------------------------------------------------------------


def test_a_file_is_remembered_while_it_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))
    idea = write(tmp_path, "x = 1\n")
    assert remembered(idea.sha256) is None
    remember(idea)
    assert remembered(idea.sha256) == idea
    idea.path.write_text("x = 2\n")
    assert remembered(idea.sha256) is None
    idea.path.write_text("x = 1\n")
    assert remembered(idea.sha256) == idea
    idea.path.rename(tmp_path / "moved.py")
    assert remembered(idea.sha256) is None
