"""`hectogpt judge`: a verdict with its record and page, done again, a queue, exit codes."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from command import Here, assert_good_error, hectogpt
from experiments import make_corpus
from helpers import ROOT

import hectogpt as package
from hectogpt import sandbox
from hectogpt.cli.judge import exit_code, verdict_text
from hectogpt.lab.judgement import read_judgement

CHEATS = ROOT / "tests" / "data" / "cheats.py"
SMALL = ["--corpus", "tokens", "--threads", "1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    for name in ("tokens", "others"):
        (tmp_path / name).mkdir()
        make_corpus(tmp_path / name)
    shutil.copy(CHEATS, tmp_path / "my.py")
    return Here(tmp_path, monkeypatch, capsys)


# An idea that computes what its base does, in a file that notes when it is imported in place of Python's own.
SHADOW = """
if __name__ == "secrets":
    open("imported", "w").close()
def idea(run):
    return reads_text_ahead(run)
"""


def test_a_file_of_the_working_folder_does_not_run_in_the_judge(tmp_path: Path) -> None:
    (tmp_path / "secrets.py").write_text(SHADOW)
    assert_good_error(hectogpt("judge", "secrets.py:idea", "--corpus", "nothing", cwd=tmp_path), 3, "nothing")
    assert not (tmp_path / "imported").exists()


@pytest.mark.thorough
def test_a_verdict_has_a_record_and_can_be_done_again(here: Here, tmp_path: Path) -> None:
    (tmp_path / "secrets.py").write_text(CHEATS.read_text(encoding="utf-8") + SHADOW)
    asked = ["secrets.py:idea@my.py:tiny", "--corpus", "tokens", "others", "--threads", "1", "--out", "mine.jsonl"]
    done = here("judge", *asked, "--minutes", "0.001", "--json", "--commit")
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["verdict"], verdict["base"]) == (1, "unproven", "my.py:tiny")
    assert (len(verdict["checks"]), verdict["seeds"]) == (5, 1), verdict
    assert verdict["interval"] == [None, None]  # of one seed
    # The same rows of both texts for the base and for an idea that computes the same.
    assert {name: each["gain"] for name, each in verdict["gains"].items()} == {"tokens": 0.0, "others": 0.0}
    assert all(check["passed"] for check in verdict["checks"])
    assert not (tmp_path / "imported").exists()
    assert verdict["sealed"] == (sandbox.bubblewrap() is not None)
    assert verdict["commitment"] in done.stderr
    assert (verdict["record"], read_judgement(tmp_path / "mine.jsonl").word) == ("mine.jsonl", "unproven")
    assert "scores each row by itself" in {one["name"] for one in verdict["checks"]}
    record = read_judgement(tmp_path / "mine.jsonl")
    codes = []
    for word, record.begin["sealed"] in itertools.product(("better", "tie", "refused", "dishonest"), (True, False)):
        record.word = word
        codes.append(exit_code(record))
        assert verdict_text(record, []).startswith("unsealed: ") != record.is_sealed
    assert codes == [0, 1, 1, 1, 2, 2, 3, 3]
    refused = here("judge", *asked)
    assert (refused.returncode, "mine.jsonl exists" in refused.stderr) == (2, True)
    (tmp_path / "my.py").rename(tmp_path / "gone.py")  # the record has the source
    again = here("judge", "--replay", "mine.jsonl", "--json", "--corpus", "tokens", "others")
    answer = json.loads(again.stdout)
    assert (again.returncode, answer["holds"], answer["largest_difference"]) == (0, True, 0.0)
    assert list(Path(tempfile.gettempdir()).glob("judge-*")) == []


@pytest.mark.thorough
def test_a_queue_judges_each_file_once_and_goes_on_after_a_bad_one(here: Here, tmp_path: Path) -> None:
    (tmp_path / "ideas").mkdir()
    (tmp_path / "ideas" / "a.py").write_text(
        "import hectogpt\nhectogpt.x = 1\ndef idea(run):\n    return run.nothing\n"
    )
    (tmp_path / "ideas" / "b.py").write_text("this is no Python")
    queue = ["judge", "--queue", "ideas", "--on", "my.py:tiny", "--json", *SMALL]
    assert here(*queue, "--hours", "1e-9").stdout == ""
    done = here(*queue)
    assert [json.loads(line)["verdict"] for line in done.stdout.splitlines()] == ["refused"]
    assert "b.py is not Python" in done.stderr
    assert not hasattr(package, "x")  # it ran in other processes alone
    again = here(*queue)
    assert (again.stdout, "a.py:idea has a verdict" in again.stderr) == ("", True)
    record = next((tmp_path / "judgements").glob("*.jsonl"))
    record.write_text(record.read_text().replace('"ended": ""', '"ended": "interrupted"'))
    assert json.loads(here(*queue).stdout)["earlier"] == ["refused"]
    refused = here("judge", "ideas/a.py:idea", "--on", "my.py:tiny", *SMALL)
    assert (refused.returncode, "was judged 2 times before: 2 refused" in refused.stdout) == (2, True)
