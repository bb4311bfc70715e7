"""Submissions in containers: the command line as data, errors, the folder of the image; and real ones if asked for.

HECTOGPT_TEST_CONTAINER=podman:IMAGE (or docker:IMAGE) names an engine and an image that was built from the folder that
`hectogpt grade --make-container` writes today; without it the tests with real containers are skipped.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from grade_hostile import HOSTILE, MLP, at
from grade_solutions import BASE
from test_grade_command import command

from hectogpt.cli.grade_container import Container, make_container
from hectogpt.errors import UserError
from hectogpt.grade import submission
from hectogpt.grade.grading import grade
from hectogpt.grade.result import Result
from hectogpt.grade.runner import Limits
from hectogpt.grade.submission import Submission

ENGINE, _, IMAGE = os.environ.get("HECTOGPT_TEST_CONTAINER", "").partition(":")
real = pytest.mark.skipif(not IMAGE, reason="HECTOGPT_TEST_CONTAINER names no engine and image")


def test_the_command_line() -> None:
    program = Container("podman", "an/image:1", 3 << 30, 150.0).program(Path("/tmp/some where"))
    start = list(program.start)
    assert start[:2] == ["podman", "run"]
    where = start.index("an/image:1")
    options, child = start[2:where], start[where + 1 :]
    assert child == ["timeout", "-s", "KILL", "150", "python", "-m", "hectogpt.worker", "hectogpt.grade.child"]
    values = {
        "--network": "none",
        "--volume": "/tmp/some where:/submission:ro,Z",
        "--user": "65534:65534",
        "--cap-drop": "ALL",
        "--security-opt": "no-new-privileges",
        "--memory": str(3 << 30),
        "--memory-swap": str(3 << 30),
        "--cpus": "1",
        "--pids-limit": "64",
        "--pull": "never",
        "--workdir": "/work",
    }
    assert {name: options[options.index(name) + 1] for name in values} == values
    assert {"--rm", "--interactive", "--read-only"} <= set(options)
    assert options[options.index("--tmpfs") + 1].startswith("/work:rw,")
    assert "HOME=/work" in options
    assert not [option for option in options if option.startswith("--privileged") or str(Path.home()) in option]
    name = options[options.index("--name") + 1]
    assert program.stop == ("podman", "rm", "--force", name)
    assert name not in Container("podman", "an/image:1", 3 << 30, 150.0).program(Path("/tmp")).start


def test_without_the_program_there_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model_solution.py").write_text(BASE)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command(str(tmp_path), "--container", "docker") == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: there is no program docker\n")


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_an_engine_that_fails_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program of that name which does what an engine without the image does."""
    (tmp_path / "model_solution.py").write_text(BASE)
    engine = tmp_path / "podman"
    engine.write_text("#!/bin/sh\necho 'Error: no-such: image not known' >&2\nexit 125\n")
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert command(str(tmp_path), "--container", "podman", "--image", "no-such") == 2
    told = capsys.readouterr().err
    assert "no grader starts in a container of the image no-such" in told
    assert "why: Error: no-such: image not known" in told
    assert "--make-container" in told


def test_the_folder_of_the_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "image"
    assert command("--make-container", str(folder)) == 0
    assert "podman build" in capsys.readouterr().err
    text = (folder / "Containerfile").read_text()
    assert (folder / "Dockerfile").read_text() == text
    for source in (line.split()[1] for line in text.splitlines() if line.startswith("COPY")):
        assert (folder / source).exists()
    assert (folder / "hectogpt" / "grade" / "child.py").is_file()
    assert not list(folder.rglob("__pycache__"))
    assert not (folder / "hectogpt" / "assignment" / "files").exists()  # the solution
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image"]
    with pytest.raises(UserError, match="holds something"):
        make_container(folder)


# --- real containers --------------------------------------------------------------------------------------------------

ROOM = """
    import os
    seen = [os.path.exists(path) for path in ({checkout!r}, {home!r})]
    written = []
    for path in ("/submission/x", "/opt/x", "/x"):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            written.append(path)
        except OSError:
            pass
    raise ValueError(f"{{seen}} {{written}} {{os.getuid()}} {{sorted(os.listdir('/submission'))}} {{os.listdir('/sys/class/net')}}")
"""  # noqa: E501
FORKS = """
    import ctypes
    libc = ctypes.CDLL(None)
    for _ in range(1000):
        libc.fork() == 0 and libc.pause()
    return x
"""


def graded(source: str) -> Result:
    limits = Limits(seconds=15.0, total_seconds=300.0, memory=1 << 30)
    place = Container(ENGINE, IMAGE, 2 << 30, 360.0).program
    files = {"model_solution.py": source.encode()}
    return grade(Submission("a submission", Path("."), files), Limits(**vars(limits) | {"elsewhere": place}))


def outcomes(result: Result) -> dict[str, str]:
    return {p.part: p.outcome for p in result.parts if p.outcome not in ("passed", "not handed in")}


@real
@pytest.mark.thorough
def test_the_textbook_in_a_container() -> None:
    (one,) = submission.find((Path(__file__).parents[2] / "reference",))
    result = grade(one, Limits(total_seconds=300.0, elsewhere=Container(ENGINE, IMAGE, 3 << 30, 360.0).program))
    assert outcomes(result) == {}
    assert result.points == 30


@real
@pytest.mark.thorough
@pytest.mark.parametrize("name", HOSTILE)
def test_harm_in_a_container_has_the_same_outcome(name: str) -> None:
    case = HOSTILE[name]
    assert outcomes(graded(case.source)) == {case.part: case.outcome}


@real
@pytest.mark.thorough
def test_what_a_container_shows(tmp_path: Path) -> None:
    """Nothing of this machine: no other file, no network but its own loopback, no way to write outside its folder."""
    checkout = str(Path(__file__).resolve().parent)
    result = graded(at(MLP, ROOM.format(checkout=checkout, home=str(tmp_path))))
    seen = result.part("mlp").broken[0].symptom
    assert "[False, False] [] 65534 ['model_solution.py'] ['lo']" in seen


@real
@pytest.mark.thorough
def test_processes_that_a_container_leaves_end_with_it() -> None:
    before = containers()
    assert outcomes(graded(at(MLP, FORKS)))["mlp"] in ("failed", "timed out", "crashed")
    assert containers() <= before


def containers() -> set[str]:
    listed = subprocess.run([ENGINE, "ps", "--all", "--quiet"], capture_output=True, text=True, check=True)
    return set(listed.stdout.split())
