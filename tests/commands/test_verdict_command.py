"""`hectogpt verdict` on files of other programs: the forms that it reads, and a sentence for each that it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import assert_good_error

from hectogpt import errors

BASE = "seed,loss\n0,3.10\n1,3.12\n2,3.08\n3,3.11\n"
IDEA = "seed,loss\n3,3.05\n0,3.03\n1,3.06\n2,3.01\n9,2.0\n"
FORMS = {
    "semicolons and a byte order mark": ("b.csv", "\ufeff" + IDEA.replace(",", ";")),
    "tabs and other columns": ("b.tsv", IDEA.replace(",", "\tx\t").replace("seed\tx\tloss", "seed\tname\tloss")),
    "JSON lines": ("b.jsonl", "".join(f'{{"loss": {r[2:]}, "seed": {r[0]}}}\n' for r in IDEA.split()[1:])),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_losses_is_read(here: Any, form: str) -> None:
    name, text = FORMS[form]
    Path("a.csv").write_text(BASE, encoding="utf-8")
    Path(name).write_text(text, encoding="utf-8")
    found = json.loads(here.ok("verdict", "a.csv", name, "--json", "--picture", "p.png").stdout)
    assert (found["verdict"], found["pairs"], found["unused"], found["paired"]) == ("better", 4, ["9"], True)
    assert found["gain"] == pytest.approx(0.065)
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    done = here("verdict", "a.csv", name, "--picture", "nowhere/p.png")
    assert (done.returncode, "is better" in done.stdout) == (errors.STORAGE, True)  # the verdict is not lost


def test_two_columns_of_one_file_and_runs_without_seeds(here: Any) -> None:
    Path("both.csv").write_text("seed,base,idea\n0,3.1,3.0\n1,3.2,3.1\n2,3.3,3.2\n", encoding="utf-8")
    found = json.loads(here.ok("verdict", "both.csv:base", "both.csv:idea", "--json").stdout)
    assert (found["verdict"], found["pairs"]) == ("better", 3)
    Path("a.csv").write_text(BASE.replace("seed,", "run,"), encoding="utf-8")
    found = json.loads(here.ok("verdict", "a.csv", "a.csv", "--json").stdout)
    assert (found["gain"], found["paired"]) == (0.0, False)


WRONG = {
    "another log": "step 1: loss 3.2\nstep 2: loss 3.1\n",
    "no such column": "seed,accuracy\n0,0.9\n",
    "nan": "seed,loss\n0,nan\n",
    "a seed twice": "seed,loss\n0,3.0\n0,3.1\n",
    "other seeds": "seed,loss\n7,3.0\n8,3.1\n",
    "no seeds": "run,loss\n7,3.0\n8,3.1\n",
    "empty": "",
    "no text": "\x00\x01",
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_cannot_be_compared_is_refused(here: Any, case: str) -> None:
    Path("a.csv").write_text(BASE, encoding="utf-8")
    Path("b.csv").write_text(WRONG[case], encoding="utf-8")
    assert_good_error(here("verdict", "a.csv", "b.csv"), errors.DATA)
    assert_good_error(here("verdict", "a.csv", "a.csv", "--margin", "-1"), errors.USAGE, "--margin")
