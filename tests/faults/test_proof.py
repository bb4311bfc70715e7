"""A few tries of what `make proof` tries often and .ci/run with all planted bugs (tests/faults/promises.py).

They run in a process of their own, which forks; a test process has threads, and must not.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from promises import BEGIN, END, PAGE, PROOFS, Line, text_of, write_table

BEGINNING = """
import torch
import forks, killed, power_cut, small_runs, storage
torch.set_num_threads(1)
with small_runs.place(12) as (where, cases):
"""


def tried(program: str) -> list[str]:
    """The lines that a program prints that has `cases` and an empty folder `where`."""
    lines = "".join(f"    {line}\n" for line in program.strip().splitlines())
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + lines],
        cwd=ROOT / "tests" / "faults",
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """What short tries came to, by name; of one process, since loading torch takes most of the time."""
    lines = tried(
        """
for n in (0, 3):
    print(f"record{n}", forks.value_of(lambda: power_cut.states_of(power_cut.record_saving(n), where))[1])
judge = storage.Judge(cases['plain'].with_steps(2), where)
syncs = int(storage.fail_to_sync(judge, where, -1)[0])
print("syncs", syncs > 4, [storage.fail_to_sync(judge, where, number) for number in range(syncs)] == [[]] * syncs)
print("run.json", killed.point_kills('plain', cases['plain'], where, every=2, only='run.json').failures)
"""
    )
    return dict(line.split(" ", 1) for line in lines)


def test_a_record_is_on_disk_when_it_is_told(found: dict[str, str]) -> None:
    """A line that is appended survives a loss of power, and so does the name of a new file."""
    assert (found["record0"], found["record3"]) == ("[]", "[]")


def test_a_save_whose_fsync_fails_is_not_believed(found: dict[str, str]) -> None:
    assert found["syncs"] == "True True"


def test_run_json_is_whole_or_absent(found: dict[str, str]) -> None:
    """A run that is killed while its folder is made can be started again."""
    assert found["run.json"] == "0"


def test_a_line_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line("killed anywhere", 200, 1, 30.13, "0 lost")
    assert text_of(line) == "killed anywhere: 199/200 ok, 0 lost, 30.1 s"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr("promises.PAGE", page)
    write_table([line])
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\nMeasured on ")
    assert text.endswith(f"| killed anywhere | 199/200 | 0 lost | 30.1 |\n{END}\nafter\n")


def test_every_proof_is_named_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in PROOFS if f"tests/faults/{name}.py" not in text] == []
    assert text.count(BEGIN) == text.count(END) == 1
